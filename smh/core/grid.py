"""The grid, and the roundings (specification, sections 2 and 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from smh.core.kernels import Array, Kernels

LEAST, LARGEST = -29, 30
"""Exponents of variables."""


class Grid(NamedTuple):
    """An array on its grid.

    Attributes
    ----------
    integers : array, float32
        q; NaN in every element where the array is poisoned.
    unit : array, shape (), float32
        u, a power of two; NaN where the array is poisoned.
    power : array, shape (), float32
        ``2**e``; 0 where every integer is 0, NaN where the array is poisoned.
    """

    integers: Array
    unit: Array
    power: Array


def grid(kernels: Kernels, x: Array, bits: int, low: int, high: int, exponent: int | None = None) -> Grid:
    """Return the integers and the unit of an array (specification, sections 3.1 and 3.2).

    Parameters
    ----------
    kernels : Kernels
        The namespace of ``x``.
    x : array, float32
        Values.
    bits : int
        B: integers have a magnitude below ``2**bits``.
    low, high : int
        An array whose magnitudes are all below ``2**-low`` is zero; one that needs an exponent above ``high`` is
        poisoned, as one with a NaN or an infinity is.
    exponent : int, optional
        A fixed exponent; then integers are clipped, and ``low`` and ``high`` do not count.

    Returns
    -------
    Grid

    Examples
    --------
    >>> import numpy as np
    >>> grid(Kernels(np), np.asarray([0.5, -3.0, 0.1], dtype=np.float32), 7, 30, 30).integers.tolist()
    [16.0, -96.0, 3.0]
    """
    xp, most = kernels.xp, 2.0**bits - 1.0
    finite = xp.all(xp.isfinite(x))
    if exponent is not None:
        unit = _fixed(kernels, x, finite, 2.0 ** (exponent - bits))
        q = xp.clip(xp.round(x * _fixed(kernels, x, finite, 2.0 ** (bits - exponent))), -most, most)
        power = _fixed(kernels, x, finite, 2.0**exponent)
        return Grid(q, unit, xp.where(xp.all(q == 0.0), 0.0, power))
    largest = xp.max(xp.abs(x))
    exponents = range(1 - low, high + 1)
    # How many powers of two are too small; one more than there are where all of them are.
    count = _count(kernels, largest, [(1.0 - 2.0**-bits) * 2.0**e for e in exponents], strict=True)
    zero = largest < 2.0**-low
    power = _entry(kernels, x, [2.0**e for e in exponents] + [math.nan], count, finite)
    unit = _entry(kernels, x, [2.0 ** (e - bits) for e in exponents] + [math.nan], count, finite)
    inverse = _entry(kernels, x, [2.0 ** (bits - e) for e in exponents] + [math.nan], count, finite)
    q = xp.round(x * xp.where(zero & finite, 0.0, inverse))
    return Grid(q, unit, xp.where(zero & finite, 0.0, power))


def power_above(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return ``2**e`` with ``2**(e-1) <= x < 2**e``, float64, for a scalar with ``low < e <= high``."""
    exponents = range(low + 1, high + 1)
    count = _count(kernels, x, [2.0**e for e in exponents[:-1]], strict=False)
    return _entry(kernels, x, [2.0**e for e in exponents], count)


def power_bound(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return the least ``2**e >= x``, float64, for a scalar of at most ``2**high``; 0 for 0."""
    xp, exponents = kernels.xp, range(low, high + 1)
    count = _count(kernels, x, [2.0**e for e in exponents[:-1]], strict=True)
    return xp.where(x == 0.0, 0.0, _entry(kernels, x, [2.0**e for e in exponents], count))


def floor(xp: Any, x: Array, k: int = -120) -> Array:
    """Return +0 where ``|x| < 2**k``, else ``x``."""
    return xp.where(xp.abs(x) < 2.0**k, 0.0, x)


def round7(xp: Any, x: Array, k: int = -120) -> Array:
    """Return ``float32(floor(x, k))`` of float64 values."""
    return xp.astype(floor(xp, x, k), xp.float32)


def wide(xp: Any, x: Array) -> Array:
    """Return float32 values, none of them nonzero and below 2**-120, in float64.

    The floor changes nothing but what a machine might flush, and stands between two conversions: a compiler that joins
    these would drop a rounding.
    """
    return xp.astype(floor(xp, x), xp.float64)


def times(xp: Any, a: Array, b: Array, k: int = -120) -> Array:
    """Return ``float32(floor(a * b, k))`` of float32 values, compared before the rounding."""
    return round7(xp, wide(xp, a) * wide(xp, b), k)


def ceil_log2(k: int) -> int:
    """Return the least c with ``2**c >= k``, for ``k >= 1``."""
    return (k - 1).bit_length()


def _count(kernels: Kernels, x: Array, bounds: Sequence[float], strict: bool) -> Array:
    """Return how many bounds a scalar is above, or not below."""
    xp = kernels.xp
    bounds = xp.asarray(bounds, dtype=x.dtype, device=kernels.device(x))
    return xp.sum(xp.astype(x > bounds if strict else x >= bounds, xp.int64))


def _entry(kernels: Kernels, x: Array, values: Sequence[float], at: Array, finite: Array | None = None) -> Array:
    """Return an entry of a list in the type of ``x``; NaN where ``finite`` does not hold."""
    xp = kernels.xp
    found = xp.take(xp.asarray(values, dtype=x.dtype, device=kernels.device(x)), xp.reshape(at, (1,)))
    found = xp.reshape(found, ())
    return found if finite is None else xp.where(finite, found, math.nan)


def _fixed(kernels: Kernels, x: Array, finite: Array, value: float) -> Array:
    """Return a value; NaN where ``finite`` does not hold."""
    like = kernels.xp.asarray(value, dtype=x.dtype, device=kernels.device(x))
    return kernels.xp.where(finite, like, math.nan)
