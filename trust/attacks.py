"""Arrays that are made to break a product of integers: on ties, at the limits of grids, and such that sums cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
BITS = (2, 4, 8, 9, 16)
"""Widths of integers: those of nibbles, of bytes, of two bytes, and where float32 sums end."""
TERMS = (1, 2, 33, 1023, 1024, 1025, 4097)
"""Lengths of sums: around those that float32 holds exactly with 8 bits."""


def grid_ties(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """Odd multiples of half a unit of the grid and their neighbours, beside one that fixes the exponent."""
    e = int(rng.integers(-8, 9))
    odd = 2 * rng.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), shape) - 1
    x = _neighbours(rng, np.ldexp(odd.astype(np.float32), e - bits))
    x.flat[rng.integers(x.size)] = np.ldexp(rng.choice([0.5, 0.75, 1 - 2.0 ** -(bits - 1)]), e)
    return x.astype(np.float32)


def limits(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """Magnitudes at the limit where the exponent changes, or a neighbour of it, and smaller ones."""
    e = int(rng.choice([-29, -28, 0, 15, 29, 30]))
    top = np.float32((1 - 2.0 ** -(bits - 1)) * 2.0**e)
    top = np.nextafter(top, np.float32(rng.choice([-np.inf, 0, np.inf]))) if rng.integers(2) else top
    return (top * rng.choice(np.float32([1, -1, 1 - 2.0**-7, 0.5, 2.0**-20]), shape)).astype(np.float32)


def extremes(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """All exponents within one array, or all near one end: what no grid has, zeros, subnormal numbers."""
    centre = int(rng.choice([-149, -126, -60, -31, -30, -29, 0, 27, 29, 60, 126]))
    spread = int(rng.choice([1, 4, 300]))
    exponents = np.clip(centre + rng.integers(-spread, spread + 1, shape), -149, 127)
    mantissas = rng.choice([1.0, 1.0 + 2.0**-23, 1.5, 2.0 - 2.0**-23], shape)
    return (np.ldexp(mantissas, exponents) * rng.choice([-1.0, 1.0], shape)).astype(np.float32)


def full_grid(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """Integers at the top of the grid: sums reach their bound."""
    top = np.float32(1 - 2.0 ** -(bits - 1))
    return (top * rng.choice(np.float32([1, 1, 1, -1]), shape)).astype(np.float32)


def cancelling(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """Pairs that cancel, along both axes, and what little is left of one of them."""
    half = rng.uniform(-1, 1, tuple((size + 1) // 2 for size in shape)).astype(np.float32)
    x = np.block([[half, -half], [-half, half]])[: shape[0], : shape[1]].copy()
    x.flat[rng.integers(x.size)] *= np.float32(0.5)
    return x


def not_finite(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> F32:
    """One element that is not finite, in most arrays: it poisons all that its array generates."""
    x = rng.standard_normal(shape).astype(np.float32)
    x.flat[rng.integers(x.size)] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3.4028235e38, -0.0]))
    return x


Attack = Callable[[np.random.Generator, tuple[int, int], int], F32]
ATTACKS: dict[str, tuple[Attack, Attack]] = {
    "ties of the grid": (grid_ties, grid_ties),
    "limits of exponents": (limits, limits),
    "ends of the range": (extremes, extremes),
    "range against ties": (extremes, grid_ties),
    "full grid": (full_grid, full_grid),
    "cancelling": (cancelling, cancelling),
    "not finite": (not_finite, grid_ties),
}
"""Attacks by name: what makes the left array, and the right one."""


def operands(name: str, rng: np.random.Generator, rows: int, terms: int, bits: int) -> tuple[F32, F32]:
    """Return both arrays of an attack, of shapes (rows, terms) and (terms, rows)."""
    left, right = ATTACKS[name]
    return left(rng, (rows, terms), bits), right(rng, (terms, rows), bits)


def _neighbours(rng: np.random.Generator, x: F32) -> F32:
    """Move a third of all elements up by one unit in the last place, and a third down."""
    which = rng.integers(0, 3, x.shape)
    up, down = (np.nextafter(x, np.float32(end)) for end in (np.inf, -np.inf))
    return np.where(which == 0, x, np.where(which == 1, up, down)).astype(np.float32)
