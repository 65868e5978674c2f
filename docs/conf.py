"""Sphinx configuration."""

from smh import __version__

project = "smh"
author = "The smh authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"smh {release}"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
