"""Hooks of MkDocs: the version, the reference of the command line, and checks of what pages show and load."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).parent))

from commands import MARK, reference
from elsewhere import loaded
from roles import leftover

import smh

_FORMULA = re.compile(r'class="arithmatex">(.*?)</(?:span|div)>', re.DOTALL)


def on_config(config: Any, **_: Any) -> Any:
    """Show the version of the library in the header."""
    config.site_name = f"smh {smh.__version__}"
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference of all commands where a page asks for it."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Refuse a page with a role of Sphinx, or two formulas taken for one. Keep deviations on the line of a mean."""
    role = leftover(html)
    if role is not None:
        raise PluginError(f"{page.file.src_uri} shows {role}: docs/_extensions/roles.py should have made a link of it")
    for formula in _FORMULA.findall(html):
        if "$" in formula:
            raise PluginError(f"{page.file.src_uri} has a formula with a dollar in it, set a blank line: {formula}")
    return html.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from another site: pages work without a network."""
    found = loaded(output)
    if found is not None:
        raise PluginError(f"{page.file.src_uri} loads from another site: {found}")
    return output
