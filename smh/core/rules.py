"""What plans decide of scales and modifiers: axes, fans, initial scales, kappas (specification, section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smh.core.scales import LEAST, LIMIT
from smh.errors import PlanError

RULES = ("fan_in", "fan_out", "he", "glorot")
MODIFIERS = ("relu", "sign")
_AXES = {0: "", 1: "o", 2: "i o", 3: "w i o", 4: "h w i o", 5: "d h w i o"}
MAX_KAPPA = 30


def fans(shape: Sequence[int], axes: str) -> tuple[int, int, int]:
    """Return fan_in (all axes but ``o``), fan_out (all but ``i``) and the size of ``o``; ``s`` counts in none.

    Parameters
    ----------
    shape : sequence of int
        The canonical shape.
    axes : str
        One letter per axis, separated by spaces.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> fans((12, 3, 3, 16, 32), "s h w i o")
    (144, 288, 32)
    """
    sizes = {letter: size for letter, size in zip(axes.split(), shape, strict=True) if letter != "s"}
    fan_in = math.prod(size for letter, size in sizes.items() if letter != "o")
    fan_out = math.prod(size for letter, size in sizes.items() if letter != "i")
    return fan_in, fan_out, sizes.get("o", 1)


def initial(rule: str | float, shape: Sequence[int], axes: str) -> float:
    """Return the initial scale of a tensor: computed in float64, rounded once to float32.

    Parameters
    ----------
    rule : str or float
        One of ``RULES``, or the number itself.
    shape : sequence of int
        The canonical shape.
    axes : str
        One letter per axis, separated by spaces.

    Returns
    -------
    float
        A float32 value in [2**-30, 2**30).

    Raises
    ------
    PlanError
        For an unknown rule, or a scale out of range.

    Examples
    --------
    >>> initial("he", (50, 10), "i o")
    0.20000000298023224
    """
    if not isinstance(rule, str):
        return number(rule)
    fan_in, fan_out, out = fans(shape, axes)
    if rule == "fan_in":
        value = 1.0 / math.sqrt(3.0 * fan_in)
    elif rule == "he":
        value = math.sqrt(2.0 / fan_in)
    elif rule == "glorot":
        value = math.sqrt(2.0 / (fan_in + fan_out))
    elif rule == "fan_out":
        rank = len(shape) - axes.split().count("s")
        value = math.sqrt(2.0 / fan_out) if rank > 2 else 1.0 / math.sqrt(out)
    else:
        raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {rule!r}")
    return number(value)


def number(value: Any) -> float:
    """Return a scale rounded to float32, or raise :class:`~smh.PlanError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {value!r}")
    with np.errstate(all="ignore"):
        scale = float(np.float32(max(min(value, 1e39), -1e39)))
    if not LEAST <= scale < LIMIT:
        raise PlanError(f"an initial scale must be at least 2**-30 and below 2**30; got {value!r}")
    return scale


def kappa(optimizer: str, scale: float, size: int) -> int:
    """Return the exponent by which a learned scale is stored larger than it is (specification, section 6.1)."""
    x = 1.0 / scale if optimizer == "adam" else math.sqrt(size)
    return min(MAX_KAPPA, max(0, math.frexp(x)[1] - 1))


def default_axes(shape: Sequence[int]) -> str:
    """Return the default meaning of a tensor's axes: ``i o``, ``w i o``, ``h w i o``, ``d h w i o`` by rank.

    Raises
    ------
    PlanError
        For six or more axes, whose meaning must be given.
    """
    if len(shape) not in _AXES:
        raise PlanError(f"a tensor of {len(shape)} axes needs axes=..., for example 'a b c h i o'; got shape {shape}")
    return _AXES[len(shape)]


def check_modifiers(modifiers: Sequence[str]) -> None:
    """Raise :class:`~smh.PlanError` for an unknown modifier."""
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise PlanError(f"modifiers must be among {', '.join(MODIFIERS)}; got {modifier!r}")
