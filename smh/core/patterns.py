r"""Regular expressions that meet names: bounded in time, whoever chose the names.

Python tries the ways in which an expression can match one after the other. Where a repeated group holds a repetition or
a choice, as in ``(a+)+``, there can be more of them than seconds in a life, so such expressions are refused. Elsewhere
each repetition multiplies them by the length of a name at most, so they can be counted beforehand, and too many are
refused as well. What is refused can be given as names, or as a function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from smh.errors import PlanError

MOST_STEPS = 10**10
"""How many ways to match may have to be tried, at worst; some minutes."""

_TOKEN = re.compile(
    r"(?P<repeat>(?:[*+?]|\{\d+,?\d*\}|\{,\d+\})[?+]?)"
    r"|\[\^?\]?(?:[^\]\\]|\\.)*+\]|\\."  # a class of characters, or one that is escaped
    r"|(?P<open>\(\??)|(?P<choice>\|)|(?P<close>\))|.",  # the ? after a bracket is no repetition
    re.DOTALL,
)


def compile_pattern(pattern: str, names: Iterable[str], what: str) -> re.Pattern[str]:
    r"""Return a compiled regular expression, once it is known that matching it with some names takes bounded time.

    Parameters
    ----------
    pattern : str
        The expression.
    names : iterable of str
        What it will be matched with.
    what : str
        What it is, for messages.

    Raises
    ------
    PlanError
        If it is no regular expression, or matching could take too long.

    Examples
    --------
    >>> compile_pattern(r"layers\.\d+\..*", ["layers.0.weight"], "include").fullmatch("layers.0.weight") is not None
    True
    >>> compile_pattern("(a+)+b", ["a" * 40], "include")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    smh.errors.PlanError: include repeats a group that holds a repetition or a choice, ...
    """
    try:
        found = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PlanError(f"{what} is not a regular expression: {error}; got {pattern!r}") from error
    advice = "write it otherwise, or give names, or in Python a function such as re.compile(...).fullmatch"
    ways = _ways(pattern)
    if ways is None:
        raise PlanError(
            f"{what} repeats a group that holds a repetition or a choice, which can take for ever: {advice}; "
            f"got {pattern!r}"
        )
    repeats, choices = ways
    steps = choices * sum(math.comb(min(len(name), 10**6) + repeats, repeats) for name in names)
    if steps > MOST_STEPS:
        raise PlanError(
            f"{what} can match these names in more than {MOST_STEPS:,} ways, with {repeats} repetitions and names as "
            f"long as theirs: {advice}; got {pattern!r}"
        )
    return found


def _ways(pattern: str) -> tuple[int, int] | None:
    """Return the number of repetitions and the product of all choices, or None if a repeated group holds either."""
    repeats, choices = 0, 1
    groups = [(False, 1)]  # of each open one: whether it holds a repetition, how many choices
    closed = False  # whether what was read last is a group that holds either
    for token in _TOKEN.finditer(pattern):
        kind, was_closed, closed = token.lastgroup, closed, False
        held, branches = groups[-1]
        if kind == "repeat":
            optional = token[0].startswith("?")
            if was_closed and not optional:
                return None
            repeats, choices = repeats + (not optional), choices * (1 + optional)
            groups[-1] = True, branches
        elif kind == "open":
            groups.append((False, 1))
        elif kind == "choice":
            groups[-1] = held, branches + 1
        elif kind == "close" and len(groups) > 1:
            groups.pop()
            closed = held or branches > 1
            choices *= branches
            groups[-1] = groups[-1][0] or closed, groups[-1][1]
    return repeats, choices * groups[0][1]
