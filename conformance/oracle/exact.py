"""The exact product and the exact sums, in int64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from conformance.oracle.bits import (
    F32,
    F64,
    I64,
    NAN,
    decompose,
    flush,
    from_bits,
    is_finite,
    round32,
    shift_half_even,
)

CHUNK = 2048


def ceil_log2(k: int) -> int:
    """Smallest c with 2^c >= k, for k >= 1 (section 3.1, rule 2)."""
    return (k - 1).bit_length()


def grid_bits(k: int) -> int:
    """Bits b of the grid of a product over k terms (section 3.1, rule 2)."""
    return min(24, (53 - ceil_log2(min(k, CHUNK))) // 2)


def _grid(x: F32, b: int) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    """Integers, their exponent and whether all is finite, for each row of x (section 3.1, rules 3, 4 and 6)."""
    finite = is_finite(x)
    mantissa, exponent = decompose(np.where(finite, x, np.float32(0)))
    # 2^23 <= |mantissa| < 2^24, so the row's e is the largest exponent plus 24.
    e = exponent.max(axis=1, initial=-1000) + 24
    shift = np.minimum((e - b)[:, None] - exponent, 31)  # at least 24 - b >= 0; at 31 all is rounded to zero
    return shift_half_even(mantissa, shift), np.asarray(e - b), np.asarray(finite.all(axis=1))


def product(a: npt.ArrayLike, b: npt.ArrayLike) -> F32:
    """Exact product of a (p, K) and b (K, q), float32 (section 3.1, rules 1 to 7)."""
    rows, columns = flush(a), flush(b).T
    k = rows.shape[1]
    bits = grid_bits(k)
    left, left_exponent, left_finite = _grid(rows, bits)
    right, right_exponent, right_finite = _grid(columns, bits)
    total: F64 | None = None
    for start in range(0, k, CHUNK):
        # |integer sum| <= 2048 * 2^(2b) <= 2^53, so float64 holds it.
        chunk = left[:, start : start + CHUNK] @ right[:, start : start + CHUNK].T
        total = chunk.astype(np.float64) if total is None else total + chunk.astype(np.float64)
    if total is None:
        total = np.zeros((rows.shape[0], columns.shape[0]))
    # The power of two goes on last: no float64 comes near the ends of the range (zero rows have total 0).
    result = round32(np.ldexp(total, left_exponent[:, None] + right_exponent[None, :]))
    return np.where(left_finite[:, None] & right_finite[None, :], result, from_bits(NAN))


def _common_grid(mantissa: I64, exponent: I64) -> tuple[I64, int]:
    """All mantissa * 2^exponent as integers on one grid, and its exponent e - b (section 3.2, exact_sum).

    |mantissa| <= 2^53. The integers add up to at most 2^53.
    """
    length = np.frexp(mantissa.astype(np.float64))[1].astype(np.int64)
    nonzero = mantissa != 0
    if not nonzero.any():
        return np.zeros_like(mantissa), 0
    e = int((length + exponent)[nonzero].max())
    unit = e - (53 - ceil_log2(mantissa.size))
    # With 53-bit mantissas every shift is to the right.
    mantissa, exponent = mantissa << (53 - length), exponent - (53 - length)
    shift = np.where(nonzero, np.minimum(unit - exponent, 60), 0)
    return shift_half_even(mantissa, shift), unit


def _scaled(total: npt.ArrayLike, unit: int) -> F32:
    """Round total * 2^unit, |total| <= 2^53, once (section 3.1, rule 7)."""
    with np.errstate(over="ignore", under="ignore"):
        return round32(np.ldexp(np.asarray(total).astype(np.float64), unit))


def _split64(x: F64) -> tuple[I64, I64]:
    """Integers and exponents with x = integer * 2^exponent, for finite float64 (section 3.2, exact_sum)."""
    fraction, exponent = np.frexp(x)
    return (fraction * 2.0**53).astype(np.int64), exponent.astype(np.int64) - 53


def exact_sum(x: npt.ArrayLike) -> F32:
    """Exact sum of all values of a float64 array (section 3.2, exact_sum); non-finite input gives NaN."""
    values = np.asarray(x, dtype=np.float64).reshape(-1)
    if not np.isfinite(values).all():
        return from_bits(NAN)
    integers, unit = _common_grid(*_split64(values))
    return _scaled(integers.sum(), unit)


def exact_segment_sum(x: npt.ArrayLike, segment: npt.ArrayLike, size: int) -> F32:
    """Exact sums per segment, K and e those of all of x (section 3.2, exact_segment_sum).

    Any non-finite value makes every segment NaN.
    """
    values = np.asarray(x, dtype=np.float64).reshape(-1)
    if not np.isfinite(values).all():
        return from_bits(np.full(size, NAN))
    integers, unit = _common_grid(*_split64(values))
    total = np.zeros(size, dtype=np.int64)
    np.add.at(total, np.asarray(segment, dtype=np.int64).reshape(-1), integers)
    return _scaled(total, unit)


def exact_dot(a: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """exact_sum(flush(a) * flush(c)) with exact products (section 3.2, exact_dot)."""
    left, right = flush(a).reshape(-1), flush(c).reshape(-1)
    if not (is_finite(left).all() and is_finite(right).all()):
        return from_bits(NAN)
    left_mantissa, left_exponent = decompose(left)
    right_mantissa, right_exponent = decompose(right)
    integers, unit = _common_grid(left_mantissa * right_mantissa, left_exponent + right_exponent)
    return _scaled(integers.sum(), unit)
