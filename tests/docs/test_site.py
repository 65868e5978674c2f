"""The site works without a network, and its drawings are what their scripts write."""

import importlib
import re
import sys

import pytest

from tests.docs.docs_pages import DOCS, ROOT
from tests.docs.test_docs_extensions import load

elsewhere = load("elsewhere")
ASSETS = DOCS / "assets"


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/katex.js"></script>',
        "<script async src=//cdn.example.org/katex.js>",
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<p><img alt="x" src="http://example.org/a.png"></p>',
        '<source srcset="https://example.org/a.svg">',
    ],
)
def test_pages_that_load_from_other_sites_are_noticed(html):
    assert elsewhere.loaded(f"<p>before</p>{html}") in html


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://arxiv.org/abs/1911.11177">paper</a>',
        '<script src="assets/katex/katex.min.js"></script>',
        '<link rel="stylesheet" href="../assets/smh.css">',
        '<link rel="canonical" href="https://example.org/">',
        "<p>src=https://example.org</p>",
    ],
)
def test_links_and_own_files_are_fine(html):
    assert elsewhere.loaded(html) is None


def test_the_site_brings_what_it_loads():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "- offline" in config
    files = re.findall(r"^ +-? *(?:logo: |favicon: )?(assets/\S+)$", config, re.MULTILINE)
    assert len(files) == 7
    for file in files:
        assert (DOCS / file).is_file(), file
    css = (ASSETS / "katex" / "katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"url\((fonts/[\w-]+\.woff2)\)", css))
    assert len(fonts) == 20
    for font in fonts:
        assert (ASSETS / "katex" / font).is_file(), font
    for vendored in ("katex", "iframe-worker"):
        assert "Permission is hereby granted" in (ASSETS / vendored / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["accuracy", "layers", "method"])
def test_drawings_are_what_their_scripts_write(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "drawings"))
    for module in ("canvas", name):
        monkeypatch.delitem(sys.modules, module, raising=False)
    script = importlib.import_module(name)
    monkeypatch.setattr(sys.modules["canvas"], "ASSETS", tmp_path)
    for theme in sys.modules["canvas"].THEMES:
        script.draw(theme)
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == 2
    for file in drawn:
        assert file.read_text(encoding="utf-8") == (ASSETS / file.name).read_text(encoding="utf-8"), (
            f"run python docs/drawings/{name}.py: {file.name} is another one"
        )
