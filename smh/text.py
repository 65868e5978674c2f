"""Show text from untrusted files: shortened, and without control characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

SURROGATE = re.compile("[\ud800-\udfff]")
"""Code points that a Python string can hold, but UTF-8 cannot."""


def printable(text: str) -> str:
    r"""Return text in which characters that cannot be printed are written as in a Python string.

    >>> print(printable("a name with \x1b[31m color"))
    a name with \x1b[31m color
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, most: int) -> str:
    """Return the beginning and the end of a text that has more than ``most`` characters.

    >>> shortened("0123456789", 6)
    '012 ... (4 characters) ... 789'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[len(text) - half :]}"


def some(names: Sequence[str]) -> str:
    """Return the first five of some names in quotes, and how many more there are."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
