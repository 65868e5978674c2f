"""Float32 in integers: flushing, rounding and multiplying on the bits themselves."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]

NAN = 0x7FC00000
INFINITY = 0x7F800000
TINY = 7 << 23  # the bits of 2^-120
SIGN = 0x80000000


def bits_of(x: npt.ArrayLike) -> I64:
    """Bits of a float32 array, as int64 (the format of SMH-1; section 2)."""
    return np.ascontiguousarray(x, dtype=np.float32).reshape(np.shape(x)).view(np.uint32).astype(np.int64)


def from_bits(bits: npt.ArrayLike) -> F32:
    """Float32 array with the given bits (section 2)."""
    return np.asarray(bits, dtype=np.int64).astype(np.uint32).view(np.float32)


def flush(x: npt.ArrayLike) -> F32:
    """Magnitudes below 2^-120, and -0, become +0; every NaN becomes 0x7fc00000 (section 3.1, rule 1)."""
    bits = bits_of(x)
    magnitude = bits & ~SIGN
    bits = np.where(magnitude < TINY, 0, bits)
    return from_bits(np.where(magnitude > INFINITY, NAN, bits))


def is_finite(x: F32) -> npt.NDArray[np.bool_]:
    """True where the exponent field is not all ones (section 3.1, rule 6)."""
    return np.asarray((bits_of(x) & INFINITY) != INFINITY)


def shift_half_even(m: I64, shift: npt.ArrayLike) -> I64:
    """Nearest integer to m / 2^shift, ties to even, for 0 <= shift <= 61 (section 3.1, rule 4)."""
    s = np.asarray(shift, dtype=np.int64)
    quotient = m >> s
    twice = (m - (quotient << s)) << 1
    unit = np.int64(1) << s
    up = (twice > unit) | ((twice == unit) & ((quotient & 1) == 1))
    return np.asarray(quotient + up)


def round32(x: npt.ArrayLike) -> F32:
    """Float64 to float32, half to even; below 2^-120 gives +0, overflow ±inf (section 3.1, rule 7)."""
    wide = np.ascontiguousarray(x, dtype=np.float64).reshape(np.shape(x)).view(np.int64)
    sign = np.where(wide < 0, SIGN, 0)
    exponent = (wide >> 52) & 0x7FF
    fraction = wide & ((1 << 52) - 1)
    mantissa = shift_half_even(fraction | (1 << 52), 29)  # 24 bits, or exactly 2^24
    bits = ((exponent - 896) << 23) + (mantissa - (1 << 23))  # a carry moves into the exponent by itself
    bits = sign | np.minimum(bits, INFINITY)
    bits = np.where(exponent < 1023 - 120, 0, bits)
    return from_bits(np.where((exponent == 0x7FF) & (fraction != 0), NAN, bits))


def decompose(x: F32) -> tuple[I64, I64]:
    """Signed 24-bit mantissas and exponents with x = mantissa * 2^exponent, x flushed and finite (section 3).

    A zero has mantissa 0 and exponent -1000, below every other.
    """
    bits = bits_of(x)
    zero = (bits & ~SIGN) == 0
    mantissa = np.where(zero, 0, (bits & 0x7FFFFF) | 0x800000)
    exponent = np.where(zero, -1000, ((bits >> 23) & 0xFF) - 150)
    return np.where(bits & SIGN, -mantissa, mantissa), exponent


def multiply(a: npt.ArrayLike, b: npt.ArrayLike) -> F32:
    """flush(flush(a) * flush(b)): one float32 rounding, half to even, then rule 1 (section 3.3).

    The product is rounded first and compared with 2^-120 afterwards, as a float32 multiplication does.
    """
    left, right = np.broadcast_arrays(bits_of(flush(a)), bits_of(flush(b)))
    sign = (left ^ right) & SIGN
    left, right = left & ~SIGN, right & ~SIGN
    product = ((left & 0x7FFFFF) | 0x800000) * ((right & 0x7FFFFF) | 0x800000)  # in [2^46, 2^48)
    shift = np.where(product >= 1 << 47, 24, 23)
    mantissa = shift_half_even(product, shift)
    exponent = (left >> 23) + (right >> 23) + shift - 150
    magnitude = np.minimum((exponent << 23) + (mantissa - (1 << 23)), INFINITY)
    zero = (left == 0) | (right == 0)
    infinite = (left == INFINITY) | (right == INFINITY)
    magnitude = np.where(zero | (magnitude < TINY), 0, magnitude)
    bits = np.where(magnitude == 0, 0, sign | magnitude)
    bits = np.where(infinite, sign | INFINITY, bits)
    nan = (left > INFINITY) | (right > INFINITY) | (infinite & zero)
    return from_bits(np.where(nan, NAN, bits))
