"""Docstrings, written for Sphinx, as the Markdown of mkdocstrings: roles become links, simple tables pipe tables."""

from __future__ import annotations

import re
from collections.abc import Callable

_ROLE = re.compile(r":(class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")
_RULE = re.compile(r"={3,}( +={3,})+")
_SHOWN = re.compile(r":\w+:<code>[^<]*</code>|\{[\w:]+\}<code>[^<]*</code>")


def convert(text: str, find: Callable[[str], str | None]) -> str:
    """Return a docstring as Markdown.

    Parameters
    ----------
    text : str
        The docstring.
    find : callable
        Returns the whole path of what a role names; None for what another project documents, which becomes code.

    Returns
    -------
    str
        With ``[`Plan`][smh.Plan]``, for example, in the place of ``:class:`~smh.Plan```.
    """

    def link(match: re.Match[str]) -> str:
        role, short, name = match.groups()
        shown = name.rpartition(".")[2] if short else name
        shown += "()" if role in ("func", "meth") else ""
        path = find(name)
        return f"`{shown}`" if path is None else f"[`{shown}`][{path}]"

    return _ROLE.sub(link, _with_pipe_tables(text))


def leftover(html: str) -> str | None:
    """Return the first role that a page shows to its readers, or None."""
    found = _SHOWN.search(html)
    return found and found.group()


def _with_pipe_tables(text: str) -> str:
    """Write simple tables, whose three rules of ``=`` stand above, below and under the head, with bars."""
    lines: list[str] = []
    rules = 0
    columns: list[slice] = []
    for line in text.split("\n"):
        if _RULE.fullmatch(line.strip()):
            rules = (rules + 1) % 3
            columns = [slice(found.start(), found.end()) for found in re.finditer("=+", line)]
            columns[-1] = slice(columns[-1].start, None)
            if rules == 2:
                lines.append("|" + "---|" * len(columns))
        elif rules:
            lines.append("| " + " | ".join(line[column].strip() for column in columns) + " |")
        else:
            lines.append(line)
    return "\n".join(lines)
