"""Checks shared by plans, pools, tensors and views."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from smh.errors import PlanError, near_names


def whole_number(what: str, value: Any, low: int, high: int) -> int:
    """Return an integer within bounds, or raise :class:`~smh.PlanError`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise PlanError(f"{what} must be an integer from {low} to {high}; got {value!r}")
    return number


def check_flag(what: str, value: Any, optional: bool = False) -> None:
    """Raise :class:`~smh.PlanError` unless a value is a bool, or None where it is optional."""
    if not isinstance(value, bool | np.bool_) and not (optional and value is None):
        raise PlanError(f"{what} must be True{', False or None' if optional else ' or False'}; got {value!r}")


def members(value: Any) -> tuple[Any, ...] | None:
    """Return the members of an iterable; None for any other value."""
    try:
        return tuple(value)
    except TypeError:
        return None


def check_one_of(what: str, value: Any, allowed: Collection[str]) -> None:
    """Raise :class:`~smh.PlanError` unless a value is one of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        raise PlanError(f"{what} must be one of {', '.join(map(repr, allowed))}; got {shown(value, allowed)}")


def shown(value: Any, allowed: Collection[str]) -> str:
    """Return a value that is none of the allowed strings, and which of them it resembles."""
    plain = type(value).__module__ == "builtins" and not isinstance(value, type)
    name = value if isinstance(value, str) else (value if isinstance(value, type) else type(value)).__name__
    given = f"{value!r:.80}" if plain else name if isinstance(value, type) else f"{name}(...)"
    near = [one for one in allowed if one in name.lower()]
    return f"{given}: use {near[0]!r}" if near else given


def check_keys(where: str, found: Mapping[str, Any], expected: Collection[str]) -> None:
    """Raise :class:`~smh.PlanError` unless the keys are exactly the expected ones."""
    unknown = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found))
    if unknown:
        raise PlanError(f"{where} has an unknown key {unknown[0]!r}: {near_names(unknown[0], expected)}")
    if missing:
        raise PlanError(f"{where} lacks the key {missing[0]!r}")
