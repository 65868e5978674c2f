"""The grid (specification, section 3.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from smh.core.kernels import Array, Kernels

LEAST, LARGEST = -29, 30
"""The least and the largest exponent of variables."""
_FIRST = -100
_POWERS = [*(2.0**e for e in range(_FIRST, 128)), math.inf]
"""Exponents of powers of two, beyond those of every grid and bound; 2**128 is above every float32 number."""
_FLOAT32 = np.asarray(_POWERS, dtype=np.float32)


class Grid(NamedTuple):
    """An array on its grid. All three fields are NaN if the array is poisoned."""

    integers: Array
    """q, in float32 or another type that holds the integers and that the kernels accept."""
    unit: Array
    """u, a power of two, float32, shape ()."""
    power: Array
    """``2**e``, or 0 if every integer is 0, float32, shape ()."""


def grid(kernels: Kernels, x: Array, bits: int, low: int, high: int, exponent: int | None = None) -> Grid:
    """Return the integers and the unit of an array (specification, sections 3.1 and 3.2).

    Parameters
    ----------
    kernels : Kernels
        The namespace of ``x``.
    x : array, float32
        Values; a NaN or an infinity poisons the array.
    bits : int
        B: integers have a magnitude below ``2**bits``.
    low, high : int
        An array whose magnitudes are all below ``2**-low`` is zero; one that needs an exponent above ``high`` is
        poisoned.
    exponent : int, optional
        A fixed exponent. Integers are then clipped, and ``low`` and ``high`` have no effect.

    Examples
    --------
    >>> import numpy as np
    >>> grid(Kernels(np), np.asarray([0.5, -3.0, 0.1], dtype=np.float32), 7, 30, 30).integers.tolist()
    [16.0, -96.0, 3.0]
    """
    xp = kernels.xp
    if kernels.smooth:
        one = xp.ones((), dtype=x.dtype, device=kernels.device(x))
        return Grid(x, one, one)
    largest = kernels.largest(x)
    finite = xp.isfinite(largest)
    if exponent is not None:
        like = xp.asarray(2.0**exponent, dtype=x.dtype, device=kernels.device(x))
        power = xp.where(finite, like, math.nan)
        q = kernels.rounded(x, 2.0**bits / power, bits, clip=True)
        return Grid(q, power * 2.0**-bits, xp.where(xp.all(q == 0.0), 0.0, power))
    power = xp.where(finite, _power(kernels, largest, 1 - low, high, 1.0 - 2.0**-bits, strict=True), math.nan)
    zero = largest < 2.0**-low
    q = kernels.rounded(x, xp.where(zero, 0.0, 2.0**bits / power), bits)
    return Grid(q, power * 2.0**-bits, xp.where(zero, 0.0, power))


def power_above(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return ``2**e`` with ``2**(e-1) <= x < 2**e``, for a scalar with ``low < e <= high``."""
    return _power(kernels, x, low + 1, high, 1.0, strict=False)


def power_bound(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return the least ``2**e >= x``, for a scalar of at most ``2**high``; 0 for 0."""
    return kernels.xp.where(x == 0.0, 0.0, _power(kernels, x, low, high, 1.0, strict=True))


def exponent_of(kernels: Kernels, power: Array) -> Array:
    """Return e of ``2**e``, -100 to 128, or minus infinity for 0, float32 like ``power``, shape ()."""
    xp = kernels.xp
    powers = xp.asarray(_FLOAT32, device=kernels.device(power))
    count = xp.sum(xp.astype(power >= powers, power.dtype))
    return xp.where(power == 0.0, -math.inf, count + (_FIRST - 1))


def ceil_log2(k: int) -> int:
    """Return the least c with ``2**c >= k``, for ``k >= 1``."""
    return (k - 1).bit_length()


def _power(kernels: Kernels, x: Array, low: int, high: int, share: float, strict: bool) -> Array:
    """Return the least ``2**e >= x`` for e from ``low`` to ``high``; NaN if x is above all of them.

    Each power is multiplied by ``share`` before the comparison. With ``strict``, x must be below it.
    """
    xp, device, powers = kernels.xp, kernels.device(x), _POWERS[low - _FIRST : high + 1 - _FIRST]
    bounds = xp.asarray(powers, dtype=x.dtype, device=device) * share
    count = xp.astype(xp.sum(xp.astype(x > bounds if strict else x >= bounds, x.dtype)), xp.int32)
    powers = xp.asarray([*powers, math.nan], dtype=x.dtype, device=device)
    return xp.reshape(xp.take(powers, xp.reshape(count, (1,))), ())
