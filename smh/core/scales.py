"""Scales and modifiers, forward and backward (specification, sections 3.4, 3.5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from smh.core.grid import ceil_log2, exponent_of, power_above
from smh.core.kernels import Array, Kernels

LEAST, LIMIT = 2.0**-30, 2.0**30
"""Nonzero scales are in [LEAST, LIMIT)."""


def cleaned(kernels: Kernels, rho: Array, kappa: int) -> Array:
    """Return the scale ``2**-kappa * rho``: 0 if it is below 2**-30, NaN from 2**30 on."""
    xp = kernels.xp
    s = rho * 2.0**-kappa
    return xp.where(xp.abs(s) < LEAST, 0.0, xp.where(xp.abs(s) < LIMIT, s, math.nan))


def modified(kernels: Kernels, w: Array, modifiers: Sequence[str]) -> Array:
    """Apply modifiers in order. NaN passes through."""
    xp = kernels.xp
    for modifier in modifiers:
        if modifier == "relu":
            w = xp.where(w <= 0.0, 0.0, w)
        else:
            w = xp.where(w >= 0.0, 1.0, xp.where(w < 0.0, -1.0, w))
    return w


def masked(kernels: Kernels, g: Array, w: Array, modifiers: Sequence[str]) -> Array:
    """Return the cotangent of the input of the modifiers: +0 where the input of a relu was not above 0."""
    xp = kernels.xp
    for k, modifier in enumerate(modifiers):
        if modifier == "relu":
            g = xp.where(modified(kernels, w, modifiers[:k]) > 0.0, g, 0.0)
    return g


def gradient(kernels: Kernels, g: Array, v: Array, bound: Array, healthy: Array, kappa: int) -> Array:
    """Return the gradient of ``rho`` (specification, section 3.5).

    ``g`` is the cotangent of the input of the modifiers, ``v`` the virtual weights of the cells, and ``bound`` is E.
    ``healthy`` is true if no array of the pool is poisoned.
    """
    xp = kernels.xp
    if kernels.smooth:
        return xp.sum(g * v) * 2.0**-kappa
    largest = xp.max(xp.abs(g))
    sound = healthy & xp.all(xp.isfinite(g)) & xp.all(xp.isfinite(v)) & (largest < 2.0**90)
    zero = (largest < 2.0**-70) | (bound == -math.inf)
    e = exponent_of(kernels, power_above(kernels, largest, -70, 90))
    exponent = e + bound + float(ceil_log2(g.shape[0]) - 53)
    total = kernels.rounded_dot(g, v, xp.where(sound, xp.where(zero, 0.0, exponent), 0.0), kappa)
    return xp.where(sound, xp.where(zero, 0.0, total), math.nan)
