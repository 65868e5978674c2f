"""Rounding to integers so that the generated weights stay close to the wanted ones.

An array becomes integers times a step. Steps and integers are chosen for the product, not for the array: a step may be
so small that a few outliers are clipped, and integers are rounded one row after another, each to make up for the errors
of those before it (Babai's nearest plane). One factor is held while the other is fitted to its integers, in turns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from smh.core.grid import LARGEST, LEAST
from smh.core.pools.base import LeafPool
from smh.models.patience import Tick, track

BLOCK = 1 << 16  # elements that are held in float64 at a time
ROWS = 256  # of a matrix that are held in float64 at a time
_COLUMNS = 128  # of a factor that are rounded at a time
_TURNS = 6  # in which one factor is fitted to the integers of the other
_STALL = 1e-4  # what both factors' turns must take off the error, relatively
_SHARES = np.geomspace(1.0, 0.1, 13)  # of the step that clips nothing
_PANEL = 32  # rows whose errors are passed on together
_TINY = 2.0**-100  # values this small are 0 on every grid
_RIDGE = 1e-10  # keeps Gram matrices of integers regular, relative to their mean eigenvalue


@dataclass(frozen=True)
class Steps:
    """Which steps the integers of a pool may have.

    If ``free``, virtual weights may come out with another factor, which learnable scales make up for.
    """

    pool: LeafPool
    free: bool

    @property
    def top(self) -> float:
        """The largest integer."""
        return 2.0**self.pool.grid_bits - 1.0

    @property
    def product(self) -> float | None:
        """What the steps of all arrays multiply to, if fixed exponents say that."""
        if self.free or self.pool.exponents is None:
            return None
        return self.pool.factor * 2.0 ** sum(e - self.pool.grid_bits for e in self.pool.exponents)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Return the nearest integers that the bits allow, as floats."""
        rounded: np.ndarray = np.rint(x)
        return np.clip(rounded, -self.top, self.top, out=rounded)

    def best(self, x: np.ndarray, weights: np.ndarray, others: float) -> float:
        """Return the allowed step with the least weighted squared error of rounding x, shape (terms, k).

        There is a weight for each row; ``others`` is the product of the steps of the other arrays.
        """
        largest = max(float(np.max(x)), -float(np.min(x))) / self.top
        if self.product is not None:
            return self.product / others
        if largest < _TINY:
            return 1.0 / others
        steps = largest * _SHARES
        if not self.free:
            steps = 2.0 ** (math.ceil(math.log2(largest * others)) - np.arange(5.0)) / others
        errors = np.zeros(len(steps))
        for row, weight in zip(x, weights, strict=True):
            for block in np.split(row, range(BLOCK, len(row), BLOCK)):
                for s, step in enumerate(steps):
                    off = self.round(block / step) * step - block
                    errors[s] += weight * float(off @ off)
        return float(steps[np.argmin(errors)])

    def variables(self, integers: list[np.ndarray], steps: list[float]) -> list[np.ndarray]:
        """Return integers in units: powers of two that multiply, with the gain, to about the same as the steps.

        If it must be the same, and powers of two on grids cannot do that, the first unit makes up for it.
        """
        bits, count, size = self.pool.grid_bits, len(steps), math.prod(steps) / self.pool.factor
        power = round(math.log2(size) / count) if self.free else -(-round(math.log2(size)) // count)
        power = min(max(power, LEAST - bits), LARGEST - bits)
        units = [2.0 ** (power if e is None else e - bits) for e in map(self.pool.exponent, range(count))]
        if not self.free:
            units[0] = size / math.prod(units[1:])
        return [q * np.float32(unit) for q, unit in zip(integers, units, strict=True)]


def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product of two vectors, added in float64."""
    blocks = range(0, x.size, BLOCK)
    return sum(float(x[k : k + BLOCK].astype(np.float64) @ y[k : k + BLOCK]) for k in blocks)


def distance(matrix: np.ndarray, used: np.ndarray, left: np.ndarray, right: np.ndarray, factor: float = 1.0) -> float:
    """Return the Frobenius norm of ``factor * left.T @ right - matrix``; elements that are not used are overwritten.

    They become those of the product, so that the next fit is free to leave them as they are.
    """
    total = 0.0
    for row in range(0, len(matrix), ROWS):
        rows = slice(row, row + ROWS)
        product = left[:, rows].T @ right
        product *= np.float32(factor)
        np.copyto(matrix[rows], product, where=~used[rows])
        product -= matrix[rows]
        total += dot(product.reshape(-1), product.reshape(-1))
    return math.sqrt(total)


def round_factors(
    matrix: np.ndarray, used: np.ndarray, left: np.ndarray, right: np.ndarray, steps: Steps, tick: Tick
) -> tuple[list[np.ndarray], list[float]]:
    """Return integers, float32, and steps of two factors whose ``left.T @ right`` is close to a matrix.

    The given factors have no row of 0. Elements of the matrix that are not used are overwritten.
    """
    columns, told = range(0, len(matrix), _COLUMNS), functools.partial(track, tick, "rounding")
    root = _root(right)
    ideal = [Steps(steps.pool, free=True).best(x, np.ones(len(x)), 1.0) for x in (left, right)]
    of_right = 1.0 / ideal[0] if steps.product is None else math.sqrt(steps.product * ideal[1] / ideal[0])
    step = steps.best(left, np.diag(root) ** 2, of_right)
    q, d = [_nearest_plane(left, root, step, steps, columns), right], [step, 1.0]  # the right one is fitted first
    best, least = (q, d), math.inf
    for turn in range(_TURNS):
        this, other = (turn + 1) % 2, turn % 2
        root = _root(q[other])
        begin, middle, end = ((turn + share) / _TURNS for share in (0.0, 0.5, 0.9))
        x = _least_squares(q[other], d[other], root, matrix if this else matrix.T, told(columns, begin, middle))
        d[this] = steps.best(x, np.diag(root) ** 2, d[other])
        q[this] = _nearest_plane(x, root, d[this], steps, told(columns, middle, end))
        del x
        error, before = distance(matrix, used, q[0], q[1], d[0] * d[1]), least
        if error < least:
            best, least = (list(q), list(d)), error
        if error >= (1.0 - _STALL) * before and turn % 2:
            break
    return best


def _root(x: np.ndarray) -> np.ndarray:
    """Return the upper triangular root of the Gram matrix ``x @ x.T``, in float64."""
    gram = np.zeros((len(x), len(x)), order="F")
    for k in range(0, x.shape[1], ROWS):
        block = x[:, k : k + ROWS].astype(np.float64)
        gram += block @ block.T
    gram[np.diag_indices(len(gram))] += _RIDGE * max(float(np.trace(gram)), 1e-300) / len(gram)
    lower: np.ndarray = np.linalg.cholesky(gram)  # SciPy's holds the global lock
    return lower.T


def _least_squares(
    q: np.ndarray, step: float, root: np.ndarray, matrix: np.ndarray, starts: Iterable[int]
) -> np.ndarray:
    """Return x, (terms, n), float32, with the least ``||step * q.T @ x - matrix||``.

    ``root`` is that of the Gram matrix of q; ``starts`` gives the first column of every block.
    """
    from scipy.linalg import cho_solve

    x = np.empty((len(q), matrix.shape[1]), dtype=np.float32)
    for start in starts:
        columns = slice(start, start + _COLUMNS)
        image = np.zeros((len(q), len(x[0, columns])), order="F")
        for row in range(0, len(matrix), ROWS):
            rows = slice(row, row + ROWS)
            image += q[:, rows].astype(np.float64) @ matrix[rows, columns].astype(np.float64)
        x[:, columns] = cho_solve((root, False), image, overwrite_b=True, check_finite=False) / step
    return x


def _nearest_plane(x: np.ndarray, root: np.ndarray, step: float, steps: Steps, starts: Iterable[int]) -> np.ndarray:
    """Return integers q, float32, for which ``root @ (step * q - x)`` is small."""
    q, lead = np.empty_like(x), np.diag(root)[:, None]
    for first in starts:
        exact = x[:, first : first + _COLUMNS] / np.float64(step)
        y = exact.copy()
        for stop in range(len(x), 0, -_PANEL):
            start = max(0, stop - _PANEL)
            errors = np.empty((stop - start, y.shape[1]))
            for k in range(stop - 1, start - 1, -1):
                rounded = steps.round(y[k] + root[k, k + 1 : stop] @ errors[k + 1 - start :] / lead[k])
                q[k, first : first + _COLUMNS] = rounded
                errors[k - start] = exact[k] - rounded
            y[:start] += root[:start, start:stop] @ errors / lead[:start]
    return q
