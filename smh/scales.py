"""Scales and modifiers: from a tensor's virtual weights to its weights (specification, section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smh.errors import PlanError
from smh.grid import TINY, flush, flush_if_needed
from smh.ops import Array, Finish, Ops

RULES = ("fan_in", "fan_out", "he", "glorot")
MODIFIERS = ("relu", "sign")
_AXES = {0: "", 1: "o", 2: "i o", 3: "w i o", 4: "h w i o", 5: "d h w i o"}


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


def fans(shape: Sequence[int], axes: str) -> tuple[int, int, int]:
    """Return fan_in (all axes but ``o``), fan_out (all but ``i``) and the size of the ``o`` axis.

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
    >>> fans((3, 3, 16, 32), "h w i o")
    (144, 288, 32)
    """
    sizes = dict(zip(axes.split(), shape, strict=True))
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
        A float32 value.

    Raises
    ------
    PlanError
        For an unknown rule, or a number that is not positive or not within float32.

    Examples
    --------
    >>> initial("he", (50, 10), "i o")
    0.20000000298023224
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {rule!r}")
        fan_in, fan_out, out = fans(shape, axes)
        if rule == "fan_in":
            value = 1.0 / math.sqrt(3.0 * fan_in)
        elif rule == "he":
            value = math.sqrt(2.0 / fan_in)
        elif rule == "glorot":
            value = math.sqrt(2.0 / (fan_in + fan_out))
        else:
            value = math.sqrt(2.0 / fan_out) if len(shape) > 2 else 1.0 / math.sqrt(out)
    else:
        value = number(rule)
    return float(np.float32(value))


def number(value: Any) -> float:
    """Return a scale given as a number, rounded to float32, or raise :class:`~smh.PlanError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {value!r}")
    with np.errstate(all="ignore"):
        scale = float(np.float32(max(min(value, 1e39), -1e39)))
    if not TINY <= scale < math.inf:
        raise PlanError(f"a scale must be positive, at least 2**-120 and within float32; got {value!r}")
    return scale


def check_modifiers(modifiers: Sequence[str]) -> None:
    """Raise :class:`~smh.PlanError` for an unknown modifier."""
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise PlanError(f"modifiers must be among {', '.join(MODIFIERS)}; got {modifier!r}")


def finish(ops: Ops, scale: Array | float, modifiers: Sequence[str]) -> Finish:
    """Return what becomes of virtual weights, elementwise: ``flush(scale * v)``, then the modifiers in order.

    Parameters
    ----------
    ops : Ops
        The namespace of the virtual weights.
    scale : array of shape () or float
        The tensor's scale, flushed.
    modifiers : sequence of str
        Names of modifiers.

    Returns
    -------
    callable
        From virtual weights, float32, to weights, which are the same for -0 and +0.
    """

    def weights(v: Array) -> Array:
        w = flush_if_needed(ops, v * scale)
        for modifier in modifiers:
            w = _modify(ops.xp, modifier, w)
        return w

    return weights


def pull(ops: Ops, scale: Array | float, modifiers: Sequence[str], v: Array, cotangent: Array) -> Array:
    """Return the cotangent of ``flush(scale * v)``, given that of the weights after the modifiers.

    ``relu`` lets it pass where its input was above zero; ``sign`` always does (a straight-through gradient).

    Parameters
    ----------
    ops : Ops
        The namespace of ``v``.
    scale : array of shape () or float
        The tensor's scale, flushed.
    modifiers : sequence of str
        Names of modifiers.
    v, cotangent : array, shape (k,), float32
        Virtual weights, and the flushed cotangent of the weights.

    Returns
    -------
    array, shape (k,), float32
    """
    xp = ops.xp
    if "relu" not in modifiers:
        return cotangent
    w = flush(xp, v * scale)
    for modifier in modifiers:
        if modifier == "relu":
            cotangent = xp.where(w > 0.0, cotangent, 0.0)
        w = _modify(xp, modifier, w)
    return cotangent


def _modify(xp: Any, modifier: str, w: Array) -> Array:
    if modifier == "relu":
        return xp.where(w <= 0.0, 0.0, w)
    return xp.where(w >= 0.0, 1.0, xp.where(w < 0.0, -1.0, w))
