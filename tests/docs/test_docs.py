"""Every example in the documentation runs, and prints what the page shows."""

import doctest
import importlib
import pkgutil
import re

import pytest

import smh
from tests.docs.docs_pages import DOCS, PAGES, blocks, run

MODULES = sorted(module.name for module in pkgutil.walk_packages(smh.__path__, "smh."))


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")  # from within Keras
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_examples(page, tmp_path, monkeypatch):
    """Blocks of one page run in order and share their names."""
    monkeypatch.chdir(tmp_path)
    # The console of README stands for files of the reader; that of the command line is a test of the command line.
    run(page.read_text(encoding="utf-8"), str(page), console=page.name not in ("README.md", "cli.md"))


def resolved(name):
    """Return what a dotted name means, with its modules imported."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for k, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(parts[:k]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_on_pages_exist(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^::: .*|smh\.\w+\.safetensors", "", text)
    names = set(re.findall(r"(?<![\w./-])smh(?:\.[A-Za-z_]\w*)+", text))
    for name in sorted(names):
        resolved(name)


def test_names_that_do_not_exist_are_noticed():
    assert resolved("smh.Plan.build")
    for name in ("smh.rates.rate_multipliers", "smh.Plan.bild", "smh.compres"):
        with pytest.raises(ImportError):
            resolved(name)


def test_examples_are_found():
    found = {page.stem: [block.language for block in blocks(page.read_text(encoding="utf-8"))] for page in PAGES}
    assert found["first_hour"].count("python") >= 10
    assert found["first_hour"].count("console") == 2
    assert found["index"].count("python") == 3  # in content tabs
    assert sum(map(len, found.values())) > 90


def test_pages_show_no_code_that_nobody_runs():
    """What looks like Python is run, unless it has a title: then it is a file of this repository."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        ran = sum(block.language == "python" for block in blocks(text))
        assert text.count("```python") == ran, page.name
        assert text.count("``` python") == text.count('``` python title="'), page.name


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):  # those below are pages that scripts write
        assert f": {page.name}\n" in navigation, page.name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert False\n```\n", AssertionError),
        ('=== "Tab"\n\n    <!-- needs: numpy -->\n    ```python\n    1 / 0\n    ```\n', ZeroDivisionError),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", AssertionError),
        ("```console\n$ smh --version\nsmh 0.0\n```\n", AssertionError),
        ("```console\n$ smh inspect nothing.safetensors\n```\n", AssertionError),
    ],
)
def test_what_is_wrong_in_a_page_is_found(text, error):
    with pytest.raises(error):
        run(text, "page")


def test_blocks_of_missing_backends_are_left_out():
    run("<!-- needs: another -->\n```python\nassert False\n```\n", "page")


def test_every_public_function_has_an_example():
    for name in (
        "digest",
        "get_backend",
        "initialize",
        "list_backends",
        "load",
        "materialize",
        "save",
        "vjp",
    ):
        assert ">>>" in getattr(smh, name).__doc__, name
    assert ">>>" in smh.Plan.build.__doc__
