"""Every example in the documentation runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import smh

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
MODULES = sorted(module.name for module in pkgutil.walk_packages(smh.__path__, "smh."))
BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n+)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_examples(page, tmp_path, monkeypatch):
    """Blocks of one page run in order and share their names; those of a backend that is not registered are left out."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for needs, code in BLOCK.findall(page.read_text()):
        if needs and needs not in smh.list_backends():
            continue
        exec(compile(code, str(page), "exec"), names)


def test_examples_are_found():
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) > 5


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
