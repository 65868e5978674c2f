"""Grids, and the products of integers on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conformance.oracle.bits import F32, I64, NAN, ROUND_7, from_bits, rint, rounded, split


class Grid(NamedTuple):
    """An array on its grid: the integers q and log2 of the unit u, which is None where it is poisoned (section 3.1)."""

    integers: I64
    unit: int | None
    bits: int

    @property
    def exponent(self) -> int | None:
        """The exponent e; None where the array is poisoned or its integers are all 0 (section 3.1)."""
        return self.unit + self.bits if self.unit is not None and self.integers.any() else None

    @property
    def value(self) -> F32:
        """What the integers stand for, q * u (section 3.1)."""
        return scaled(self.integers, [self])


def ceil_log2(k: int) -> int:
    """Least integer c with 2**c >= k, for k >= 1 (section 2)."""
    return (k - 1).bit_length()


def largest(x: F32) -> tuple[int, int]:
    """Integers m and k with max |x| = m * 2**k, for finite x (section 3.1)."""
    m, k = split(np.abs(x).max())
    return int(m), int(k)


def grid(x: npt.ArrayLike, bits: int, low: int, high: int, exponent: int | None = None) -> Grid:
    """grid(x, B, low, high), or the grid of a given exponent (sections 3.1 and 3.2)."""
    x = np.asarray(x, dtype=np.float32)
    nothing, limit = np.zeros(x.shape, dtype=np.int64), 2**bits - 1
    if not np.isfinite(x).all():
        return Grid(nothing, None, bits)
    e = exponent
    if e is None:
        m, k = largest(x)
        length = m.bit_length()
        if length + k <= -low:  # max |x| < 2**-low
            return Grid(nothing, 0, bits)
        e = length + k + (m << bits > limit << length)  # m <= (1 - 2**-B) * 2**length, or one more
        if e > high:
            return Grid(nothing, None, bits)
    m, k = split(x)
    shift = np.maximum(e - bits - k, 0)  # where it is negative, m is clipped anyway
    return Grid(np.clip(rint(m, shift), -limit, limit), e - bits, bits)


def check_budget(terms: int, *factors: I64) -> None:
    """Assert that float64 holds every sum of so many products of these integers (section 3.3)."""
    bound = terms * math.prod(int(np.abs(factor).max()) for factor in factors)
    assert bound <= 2**53, f"sums of {terms} products reach {bound}, more than 2**53: the plan breaks section 3.3"


def scaled(sums: I64, grids: list[Grid], shift: int = 0, low: float = -math.inf) -> F32:
    """Sums of products of integers, times their units and 2**shift, rounded once; NaN if poisoned (section 3.3)."""
    units = [one.unit for one in grids if one.unit is not None]
    if len(units) < len(grids):
        return from_bits(np.full(sums.shape, NAN))
    return rounded(sums, sum(units) + shift, low)


def product(a: Grid, b: Grid, shift: int = 0, low: float = -math.inf) -> F32:
    """Matrix product of two grids, times 2**shift, rounded once (section 3.3)."""
    check_budget(a.integers.shape[1], a.integers, b.integers)
    return scaled(a.integers @ b.integers, [a, b], shift, low)


def scale_gradient(G: F32, v: F32, E: float, kappa: int) -> F32:
    """Gradient of rho, for the cotangent G of a tensor whose cells show v (section 3.5).

    E is the bound of section 4.6, |v| <= 2**E; NaN if an array of the pool is poisoned or v is not finite.
    """
    if math.isnan(E) or not np.isfinite(G).all():
        return from_bits(NAN)
    m, k = largest(G)
    e = m.bit_length() + k
    if e > 90:
        return from_bits(NAN)
    if e <= -70 or E == -math.inf:
        return from_bits(0)
    assert float(np.abs(v).max()) <= 2.0**E, f"a virtual weight beyond its bound 2**{E} (section 4.6)"
    unit = e + int(E) - (53 - ceil_log2(G.size))
    (mg, kg), (mv, kv) = split(G), split(v)
    integers = rint(mg * mv, unit - kg - kv)
    check_budget(G.size, integers)
    return rounded(integers.sum(), unit - kappa, ROUND_7)
