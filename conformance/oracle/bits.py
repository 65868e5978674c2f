"""Float32 in integers: taking numbers apart, and the one rounding that puts them together."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]

NAN = 0x7FC00000
INFINITY = 0x7F800000
SIGN = 0x80000000

ROUND_7 = -120  # where round_7 floors (section 2)
VIRTUAL = -88  # where sums and products of pools floor (section 4.4)


def bits_of(x: npt.ArrayLike) -> I64:
    """Bits of a float32 array, as int64 (section 2)."""
    return np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)


def from_bits(bits: npt.ArrayLike) -> F32:
    """Float32 array with the given bits (section 2)."""
    return np.asarray(bits, dtype=np.int64).astype(np.uint32).view(np.float32)


def split(x: F32 | F64) -> tuple[I64, I64]:
    """Integers m and k with x = m * 2**k, for finite float32 or float64 (section 2).

    |m| is below 2**24 or 2**53.
    """
    kind = np.finfo(x.dtype)
    bits = x.view(f"i{x.dtype.itemsize}").astype(np.int64)
    field = (bits >> kind.nmant) & (2 * kind.maxexp - 1)
    m = (bits & ((1 << kind.nmant) - 1)) | np.where(field > 0, 1 << kind.nmant, 0)
    return np.where(bits < 0, -m, m), np.maximum(field, 1) - (kind.maxexp - 1 + kind.nmant)


def rint(m: I64, shift: npt.ArrayLike) -> I64:
    """Nearest integer to m / 2**shift, ties to even (section 2), for |m| <= 2**53 and a result that int64 holds."""
    right, left = np.clip(shift, 0, 60), np.clip(np.negative(shift), 0, None)
    quotient = m >> right
    twice, unit = (m - (quotient << right)) << 1, np.int64(1) << right
    up = (twice > unit) | ((twice == unit) & (quotient & 1 == 1))
    return np.asarray((quotient + up) << left)


def bit_length(m: I64) -> I64:
    """Least c with |m| < 2**c; float64 holds every |m| <= 2**53, so nothing is rounded."""
    return np.frexp(m.astype(np.float64))[1].astype(np.int64)


def rounded(m: npt.ArrayLike, k: npt.ArrayLike, low: float = -math.inf) -> F32:
    """The real number m * 2**k, |m| <= 2**53, rounded to float32 once: float32(floor(m * 2**k, low)) (section 2).

    The comparison with 2**low is made before the rounding. Zero is +0.
    """
    m, k = np.asarray(m, dtype=np.int64), np.asarray(k, dtype=np.int64)
    assert (np.abs(m) <= 1 << 53).all(), "an integer that float64 does not hold (section 3.3)"
    length = bit_length(m)
    place = np.maximum(length + k - 24, -149)  # of the last bit, also of subnormals
    magnitude = ((place + 149) << 23) + rint(np.abs(m), place - k)  # a carry moves into the exponent by itself
    magnitude = np.minimum(magnitude, INFINITY)
    zero = (m == 0) | (length + k <= low) | (magnitude == 0)
    return from_bits(np.where(zero, 0, np.where(m < 0, SIGN, 0) | magnitude))


def round32(x: npt.ArrayLike, low: float = -math.inf) -> F32:
    """Float32(floor(x, low)) of a float64 or float32 array (section 2); every NaN becomes 0x7fc00000."""
    x = np.asarray(x)
    x = x if x.dtype == np.float32 else x.astype(np.float64)
    special = np.where(np.isnan(x), NAN, np.where(x < 0, SIGN, 0) | INFINITY)
    finite = np.isfinite(x)
    return np.where(finite, rounded(*split(np.where(finite, x, 0.0)), low), from_bits(special))


def floor(x: npt.ArrayLike, low: float) -> F32:
    """Magnitudes below 2**low become +0, NaN 0x7fc00000 (section 2)."""
    return round32(np.asarray(x, dtype=np.float32), low)


def multiply(a: npt.ArrayLike, b: npt.ArrayLike, low: float = -math.inf) -> F32:
    """Float32(floor(a * b, low)), elementwise (section 2); IEEE 754 decides where a factor is not finite."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32))
    finite = np.isfinite(a) & np.isfinite(b)
    (ma, ka), (mb, kb) = split(np.where(finite, a, np.float32(0))), split(np.where(finite, b, np.float32(0)))
    with np.errstate(all="ignore"):
        special = round32(a * b)
    return np.where(finite, rounded(ma * mb, ka + kb, low), special)
