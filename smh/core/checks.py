"""Checks that plans, pools and views share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from smh.errors import PlanError, near_names


def whole_number(what: str, value: Any, low: int, high: int) -> int:
    """Return an integer within bounds, or raise :class:`~smh.PlanError` that says what was received."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value.__index__() <= high:
        raise PlanError(f"{what} must be an integer from {low} to {high}; got {value!r}")
    return int(value.__index__())


def ceil_digits(value: Fraction, digits: int = 4) -> str:
    """Return a short decimal that is not below ``value``, so that a user who types it is not refused again."""
    exponent = digits - 1 - math.floor(math.log10(value))
    scaled = math.ceil(value * Fraction(10) ** exponent)
    return f"{float(Fraction(scaled) / Fraction(10) ** exponent):.{digits}g}"


def check_keys(where: str, found: Mapping[str, Any], expected: Any) -> None:
    """Raise :class:`~smh.PlanError` unless the keys are exactly the expected ones."""
    unknown = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found))
    if unknown:
        raise PlanError(f"{where} has an unknown key {unknown[0]!r}: {near_names(unknown[0], expected)}")
    if missing:
        raise PlanError(f"{where} lacks the key {missing[0]!r}")
