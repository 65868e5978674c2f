r"""Regular expressions that meet names: bounded in time, whoever chose the names.

Python tries the ways in which an expression can match one after the other. Where a repeated group holds a repetition or
a choice, as in ``(a+)+``, there can be more of them than seconds in a life, so such expressions are refused. Elsewhere
each repetition multiplies them by the length of a name at most, so they can be counted beforehand, and too many are
refused as well. The command line bounds its expressions so; in Python, ``re.compile(...)`` is the user's own risk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from re import _parser  # type: ignore[attr-defined]  # so that expressions are counted as they are compiled
from typing import Any

from smh.errors import PlanError

MOST_STEPS = 10**10
"""How many ways to match may have to be tried, at worst; some minutes."""

_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def compile_pattern(pattern: str, names: Iterable[str], what: str) -> re.Pattern[str]:
    r"""Return a compiled regular expression, once it is known that matching it with some names takes bounded time.

    Parameters
    ----------
    pattern : str
        The expression.
    names : iterable of str
        The names to match.
    what : str
        The role of the expression, for messages.

    Raises
    ------
    PlanError
        If the pattern is not a regular expression, or matching could take too long.

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
    advice = "rewrite it, or pass names or globs"
    ways = _ways(_parser.parse(pattern))
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


def _ways(tree: Iterable[Any]) -> tuple[int, int] | None:
    """Return the number of repetitions and the product of all choices, or None if a repeated group holds either.

    The tree is what the parser of regular expressions makes: pairs of an operation and its arguments.
    """
    repeats, choices = 0, 1
    for operation, arguments in tree:
        optional = False
        if str(operation) in _REPEATS:
            _, most, group = arguments
            inner, optional = _ways(group), most == 1
            if inner is None or (inner != (0, 1) and not optional):
                return None
            repeats += not optional
            choices *= 1 + optional
        elif str(operation) == "BRANCH":
            branches = [_ways(branch) for branch in arguments[1]]
            if None in branches:
                return None
            inner = sum(found[0] for found in branches if found), sum(found[1] for found in branches if found)
        else:
            parts = arguments if isinstance(arguments, tuple) else (arguments,)
            inner = _ways([pair for part in parts if isinstance(part, _parser.SubPattern) for pair in part])
            if inner is None:
                return None
        repeats, choices = repeats + inner[0], choices * inner[1]
    return repeats, choices
