"""The grid (specification, section 3.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

from smh.core.kernels import Array, Kernels

LEAST, LARGEST = -29, 30
"""Exponents of variables."""
_FIRST = -100
_POWERS = [*(2.0**e for e in range(_FIRST, 128)), math.inf]
"""Powers of two, wider than any grid or bound; 2**128 is above every float32 number."""


class Grid(NamedTuple):
    """An array on its grid; all three are NaN where the array is poisoned."""

    integers: Array
    """q, float32, or any type that holds them and that the kernels take."""
    unit: Array
    """u, a power of two, float32, shape ()."""
    exponent: Array
    """e, or minus infinity where every integer is 0, float32, shape ()."""


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
        A fixed exponent; then integers are clipped, and ``low`` and ``high`` do not count.

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
        like = xp.asarray(float(exponent), dtype=x.dtype, device=kernels.device(x))
        e = xp.where(finite, like, math.nan)
        power = xp.where(finite, xp.asarray(2.0**exponent, dtype=x.dtype, device=kernels.device(x)), math.nan)
        q = kernels.rounded(x, 2.0**bits / power, bits, clip=True)
        return Grid(q, power * 2.0**-bits, xp.where(xp.all(q == 0.0), -math.inf, e))
    e, power = _least(kernels, largest, 1 - low, high, 1.0 - 2.0**-bits, strict=True)
    e, power = xp.where(finite, e, math.nan), xp.where(finite, power, math.nan)
    zero = largest < 2.0**-low
    q = kernels.rounded(x, xp.where(zero, 0.0, 2.0**bits / power), bits)
    return Grid(q, power * 2.0**-bits, xp.where(zero, -math.inf, e))


def exponent_above(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return e with ``2**(e-1) <= x < 2**e``, for a scalar with ``low < e <= high``."""
    return _least(kernels, x, low + 1, high, 1.0, strict=False)[0]


def exponent_bound(kernels: Kernels, x: Array, low: int, high: int) -> Array:
    """Return the least e with ``2**e >= x``, for a scalar of at most ``2**high``; minus infinity for 0."""
    return kernels.xp.where(x == 0.0, -math.inf, _least(kernels, x, low, high, 1.0, strict=True)[0])


def ceil_log2(k: int) -> int:
    """Return the least c with ``2**c >= k``, for ``k >= 1``."""
    return (k - 1).bit_length()


def _least(kernels: Kernels, x: Array, low: int, high: int, share: float, strict: bool) -> tuple[Array, Array]:
    """Return the least e, from ``low`` to ``high``, whose ``2**e`` x is not above, and ``2**e``; NaN if there is none.

    A power counts as ``share`` of it. With ``strict`` x may be equal to it.
    """
    xp, powers = kernels.xp, [*_POWERS[low - _FIRST : high + 1 - _FIRST], math.nan]
    powers = xp.asarray(powers, dtype=x.dtype, device=kernels.device(x))
    count = xp.sum(xp.astype(x > powers * share if strict else x >= powers * share, x.dtype))
    power = xp.reshape(xp.take(powers, xp.reshape(xp.astype(count, xp.int32), (1,))), ())
    return xp.where(xp.isnan(power), math.nan, count + low), power
