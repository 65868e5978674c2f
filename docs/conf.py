"""Configuration of Sphinx."""

import re
from pathlib import Path

_VERSION_FILE = Path(__file__).parent.parent / "smh" / "_version.py"

project = "smh"
author = "The smh authors"
copyright = "The smh authors"
release = re.search(r'__version__ = "(.+?)"', _VERSION_FILE.read_text()).group(1)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:class", r".* .*")]  # types in words: no class has a blank in its name

myst_enable_extensions = ["amsmath", "dollarmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = True

# Types stand in the docstrings, in words ("array, shape (K,), float32"), which are no references.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"smh {release}"
html_show_sourcelink = False
