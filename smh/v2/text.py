"""Text that strangers wrote, for people to read: short, and without what a terminal would obey."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text of which no control character reaches a terminal.

    Parameters
    ----------
    text : str
        One line, from a file, say, which may hold anything.

    Returns
    -------
    str
        With what cannot be printed written as in a Python string.

    Examples
    --------
    >>> print(printable("a name with \x1b[31m colour"))
    a name with \x1b[31m colour
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, most: int) -> str:
    """Return the beginning and the end of a text that is longer than it may be.

    Parameters
    ----------
    text : str
        Any text.
    most : int
        How many of its characters to keep.

    Examples
    --------
    >>> shortened("0123456789", 6)
    '012 ... (4 characters) ... 789'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[len(text) - half :]}"
