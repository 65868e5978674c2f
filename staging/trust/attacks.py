"""Operands that are made to break a product: on ties, at the ends of the range, and such that sums cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from smh.grid import grid_bits

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
TERMS = (1, 2, 31, 32, 33, 511, 512, 513, 2047, 2048, 2049, 4095, 4096, 4097)
"""Lengths of sums: around those where the bits of the grid change, and around whole chunks."""


def grid_ties(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """Odd multiples of half a unit of the grid and their neighbours, beside a maximum at either end of its binade."""
    bits = grid_bits(terms)
    exponents = rng.integers(-20, 20, (rows, 1))
    odd = 2 * rng.integers(0, 2 ** np.minimum(rng.integers(1, 24, (rows, terms)), bits)) + 1
    x = np.ldexp(odd.astype(np.float64), exponents - bits - 1) * rng.choice([-1.0, 1.0], (rows, terms))
    x = _neighbours(rng, np.clip(x, -np.ldexp(1, exponents), np.ldexp(1, exponents)).astype(np.float32))
    tops = np.asarray(
        [np.ldexp(1.0, exponents), np.ldexp(2.0 - 2.0**-23, exponents), np.ldexp(1 - 2.0**-24, exponents)]
    )
    x[np.arange(rows), rng.integers(0, terms, rows)] = tops[rng.integers(0, 3, rows), np.arange(rows), 0]
    return x


def result_ties(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """Small odd integers: products and short sums of 25 bits and a little more, in the middle of two float32."""
    x = np.zeros((rows, terms), dtype=np.float32)
    count = rng.integers(1, min(terms, 6) + 1, rows)
    for row, hits in enumerate(count):
        at = rng.choice(terms, hits, replace=False)
        x[row, at] = (2 * rng.integers(2**11, 2**12, hits) + 1) * rng.choice([-1, 1], hits)
    little = rng.random((rows, terms)) < 4 / terms
    return np.where(little & (x == 0), rng.choice(np.float32([2.0**-8, -(2.0**-8), 2.0**-7]), (rows, terms)), x)


def extremes(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """All exponents within one row, or all near one end: overflow, the threshold of the flush, subnormal numbers."""
    centres = rng.choice([-149, -126, -121, -120, -119, -60, 0, 60, 63, 64, 126], (rows, 1))
    spread = rng.choice([1, 4, 300], (rows, 1))
    exponents = np.clip(centres + rng.integers(-spread, spread + 1, (rows, terms)), -149, 127)
    mantissas = rng.choice([1.0, 1.0 + 2.0**-23, 1.5, 2.0 - 2.0**-23], (rows, terms))
    return (np.ldexp(mantissas, exponents) * rng.choice([-1.0, 1.0], (rows, terms))).astype(np.float32)


def cancelling(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """Pairs that cancel, shuffled, and what little is left of one of them."""
    half = (terms + 1) // 2
    x = np.ldexp(rng.uniform(0.5, 1, (rows, half)), rng.integers(-30, 30, (rows, half))).astype(np.float32)
    x = np.concatenate([x, -x], axis=1)[:, :terms]
    at = np.arange(rows), rng.integers(0, terms, rows)
    x[at] = np.nextafter(x[at], np.float32(np.inf))
    return x[:, rng.permutation(terms)]  # the same order for all rows, so that products cancel as well


def pairs(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """Equal numbers in each row: the other side of sums that cancel."""
    return np.broadcast_to(rng.choice(np.float32([1.0, 3.0, -1.0]), (rows, 1)), (rows, terms)).copy()


def small_beside_large(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """One large number, and all others about half a unit of the grid that it sets: ties that go to 0 or 1."""
    unit = 2.0 ** -grid_bits(terms)
    x = rng.choice([0.5, 0.5 - 2.0**-20, 0.5 + 2.0**-20, 1.5, -0.5, -1.5, 0.25], (rows, terms)) * unit
    x[np.arange(rows), rng.integers(0, terms, rows)] = rng.choice([0.5, 0.75, 1 - 2.0**-24], rows)
    return x.astype(np.float32)


def full_grid(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """All terms at the top of the grid, of one sign: sums reach the bound of 2**53."""
    top = np.float32(1 - 2.0**-24)
    return np.where(rng.random((rows, terms)) < 0.9, top, np.nextafter(top, np.float32(0))) * rng.choice(
        np.float32([-1, 1]), (rows, 1)
    )


def not_finite(rng: np.random.Generator, rows: int, terms: int) -> F32:
    """NaN and infinities in some rows; the others must not notice."""
    x = rng.standard_normal((rows, terms)).astype(np.float32)
    hits = rng.random(rows) < 0.4
    specials = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3.4028235e38, -0.0]), rows)
    x[np.arange(rows), rng.integers(0, terms, rows)] = np.where(hits, specials, np.float32(1))
    return x


Attack = Callable[[np.random.Generator, int, int], F32]
ATTACKS: dict[str, tuple[Attack, Attack]] = {
    "ties of the grid": (grid_ties, grid_ties),
    "ties of the result": (result_ties, result_ties),
    "ends of the range": (extremes, extremes),
    "range against ties": (extremes, grid_ties),
    "cancelling": (cancelling, pairs),
    "small beside large": (small_beside_large, small_beside_large),
    "full grid": (full_grid, full_grid),
    "not finite": (not_finite, extremes),
}
"""Attacks by name: what makes the rows of the left operand, and the columns of the right one."""


def operands(name: str, rng: np.random.Generator, rows: int, terms: int) -> tuple[F32, F32]:
    """Return both operands of an attack, of shapes (rows, terms) and (terms, rows)."""
    left, right = ATTACKS[name]
    return left(rng, rows, terms), np.ascontiguousarray(right(rng, rows, terms).T)


def _neighbours(rng: np.random.Generator, x: F32) -> F32:
    """Move a third of all elements up by one unit in the last place, and a third down."""
    which = rng.integers(0, 3, x.shape)
    up, down = (np.nextafter(x, np.float32(end)) for end in (np.inf, -np.inf))
    return np.where(which == 0, x, np.where(which == 1, up, down))
