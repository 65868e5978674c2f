"""Integers of up to 60 bits as pairs of int32, for devices without 64-bit types. Every step is exact.

Functions take an array-API namespace first. Shifts are functions, not operators: TensorFlow's tensors have no operators
for them. Magnitudes are nonnegative pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from smh.core.kernels import Array

BITS = 30
_MASK = 2**BITS - 1
_LIMB = 15
"""int32 adds up to ``2**15`` integers of this many bits."""


class Pair(NamedTuple):
    """The integers ``high * 2**30 + low``, both int32, with ``0 <= low < 2**30``."""

    high: Array
    low: Array


def carried(xp: Any, high: Array, low: Array) -> Pair:
    """Return a pair of any two int32 numbers."""
    return Pair(high + xp.bitwise_right_shift(low, BITS), xp.bitwise_and(low, _MASK))


def plus(xp: Any, x: Pair, y: Pair) -> Pair:
    """Return the sum."""
    return carried(xp, x.high + y.high, x.low + y.low)


def signed(xp: Any, x: Pair, sign: Array) -> Pair:
    """Return the product with signs, 1 or -1."""
    return carried(xp, x.high * sign, x.low * sign)


def placed(xp: Any, x: Array, n: int) -> Pair:
    """Return ``x * 2**n`` of int32 numbers, for n from 0 to 29."""
    low = xp.bitwise_and(x, 2 ** (BITS - n) - 1)
    return Pair(xp.bitwise_right_shift(x, BITS - n), xp.bitwise_left_shift(low, n))


def product(xp: Any, x: Array, y: Array) -> Pair:
    """Return the product of magnitudes of 24 bits, int32."""
    (x1, x0), (y1, y0) = ((xp.bitwise_right_shift(z, 12), xp.bitwise_and(z, 2**12 - 1)) for z in (x, y))
    outer = plus(xp, placed(xp, x0 * y0, 0), placed(xp, x1 * y1, 24))
    return plus(xp, outer, placed(xp, x0 * y1 + x1 * y0, 12))


def left(xp: Any, x: Pair, n: Array) -> Pair:
    """Return ``x * 2**n`` of magnitudes, for int32 numbers n from 0 to 59."""
    far = n >= BITS
    high, low = xp.where(far, x.low, x.high), xp.where(far, 0, x.low)
    n = xp.where(far, n - BITS, n)
    rest = xp.bitwise_left_shift(xp.bitwise_and(low, _ones(xp, BITS - n)), n)
    return Pair(xp.bitwise_left_shift(high, n) + xp.bitwise_right_shift(low, BITS - n), rest)


def right(xp: Any, x: Pair, n: Array) -> Pair:
    """Return ``x / 2**n`` of magnitudes, for int32 numbers n from 0 to 59, without the fraction.

    The last bit is 1 where a fraction was dropped.
    """
    far = n >= BITS
    high, low, lost = xp.where(far, 0, x.high), xp.where(far, x.high, x.low), xp.where(far, x.low, 0)
    n = xp.where(far, n - BITS, n)
    ones = _ones(xp, n)
    lost = xp.bitwise_or(lost, xp.bitwise_and(low, ones))
    low = xp.bitwise_right_shift(low, n) + xp.bitwise_left_shift(xp.bitwise_and(high, ones), BITS - n)
    return Pair(xp.bitwise_right_shift(high, n), xp.bitwise_or(low, xp.astype(lost != 0, xp.int32)))


def to_even(xp: Any, x: Pair, n: int) -> Pair:
    """Return magnitudes rounded to multiples of ``2**n``, 1 < n < 30, ties to even multiples."""
    odd = xp.bitwise_and(xp.bitwise_right_shift(x.low, n), 1)
    x = carried(xp, x.high, x.low + odd + (2 ** (n - 1) - 1))
    return Pair(x.high, x.low - xp.bitwise_and(x.low, 2**n - 1))


def total(xp: Any, x: Pair) -> Pair:
    """Return the sum of all elements, shape (). No partial sum may exceed 60 bits."""
    while True:
        limbs = x.high, xp.bitwise_right_shift(x.low, _LIMB), xp.bitwise_and(x.low, 2**_LIMB - 1)
        high, first, second = (_row_sums(xp, limb) for limb in limbs)  # high is exact modulo 2**32
        x = plus(xp, placed(xp, first, _LIMB), placed(xp, second, 0))
        x = Pair(x.high + high, x.low)
        if x.low.shape[0] == 1:
            return Pair(xp.reshape(x.high, ()), xp.reshape(x.low, ()))


def _row_sums(xp: Any, x: Array) -> Array:
    """Return the sums of every ``2**15`` elements."""
    rows = -(-x.shape[0] // 2**_LIMB)
    width = x.shape[0] if rows == 1 else 2**_LIMB
    x = xp.concat([x, xp.astype(x[: rows * width - x.shape[0]] * 0, xp.int32)]) if rows * width > x.shape[0] else x
    return xp.astype(xp.sum(xp.reshape(x, (rows, width)), axis=1), xp.int32)


def _ones(xp: Any, n: Array) -> Array:
    """Return integers of n bits, all 1."""
    return xp.bitwise_left_shift(n * 0 + 1, n) - 1
