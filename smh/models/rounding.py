"""Rounding to integers so that the generated weights stay close to the wanted ones.

An array becomes integers times a step. Steps and integers are chosen for the product, not for the array: a step may be
so small that a few outliers are clipped, and integers are rounded one row after another, each to make up for the errors
of those before it (Babai's nearest plane). One factor is held while the other is fitted to its integers, in turns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smh.core.grid import LARGEST, LEAST
from smh.core.pools.base import LeafPool
from smh.models.patience import interruptible

Tick = Callable[[str, float], None]
"""Is told what is being done, and which share of it is."""
Mask = Callable[[int, int], np.ndarray | None]
"""From a range of rows to which of their elements count, or None for all."""

ROWS = 256  # of a matrix that are held in float64 at a time
_COLUMNS = 128  # of a factor that are rounded at a time
_TURNS = 3  # in which each factor is fitted to the integers of the other
_STALL = 1e-4  # what one more turn must take off the error, relatively
_SHARES = np.geomspace(1.0, 0.1, 13)  # of the step that clips nothing
_PANEL = 32  # rows whose errors are passed on together
_TINY = 2.0**-100  # values this small are 0 on every grid
_RIDGE = 1e-10  # keeps Gram matrices of integers regular, relative to their mean eigenvalue


@dataclass(frozen=True)
class Steps:
    """Which steps the integers of a pool may have.

    Parameters
    ----------
    pool : LeafPool
        Has bits, gain and perhaps fixed exponents.
    free : bool
        Whether the virtual weights may come out with another factor, which learnable scales make up for.
    """

    pool: LeafPool
    free: bool

    @property
    def top(self) -> float:
        """The largest integer."""
        return 2.0**self.pool.grid_bits - 1.0

    @property
    def product(self) -> float | None:
        """What the steps of all arrays multiply to, if the plan says that."""
        if self.free or self.pool.exponents is None:
            return None
        return self.pool.factor * math.prod(2.0 ** (e - self.pool.grid_bits) for e in self.pool.exponents)

    def best(self, x: np.ndarray, weights: np.ndarray, others: float) -> float:
        """Return the allowed step with the least weighted squared error of rounding.

        Parameters
        ----------
        x : numpy.ndarray, shape (terms, k)
            The values to round.
        weights : numpy.ndarray, shape (terms,)
            How much each row counts.
        others : float
            The product of the steps of the other arrays.
        """
        largest = max(float(np.max(x)), -float(np.min(x))) / self.top
        if self.product is not None:
            return self.product / others
        if largest < _TINY:
            return 1.0 / others
        if self.free:
            steps = largest * _SHARES
        else:
            steps = 2.0 ** (math.ceil(math.log2(largest * others)) - np.arange(5.0)) / others
        errors = np.zeros(len(steps))
        for row in range(len(x)):
            for s, step in enumerate(steps):
                off = np.clip(np.rint(x[row] / step), -self.top, self.top) * step - x[row]
                errors[s] += weights[row] * float(off @ off)
        return float(steps[np.argmin(errors)])

    def units(self, steps: tuple[float, ...]) -> list[float]:
        """Return the units of variables, powers of two that multiply to about the same, with the gain, as the steps."""
        bits = self.pool.grid_bits
        if self.pool.exponents is not None:
            return [2.0 ** (e - bits) for e in self.pool.exponents]
        total = math.log2(math.prod(steps) / self.pool.factor)
        each = round(total / len(steps)) if self.free else math.floor(round(total) / len(steps))
        powers = [each] * len(steps)
        if not self.free:
            powers[-1] = round(total) - sum(powers[:-1])
        return [2.0 ** min(max(p, LEAST - bits), LARGEST - bits) for p in powers]


def off(matrix: np.ndarray, mask: Mask, left: np.ndarray, right: np.ndarray, factor: float = 1.0) -> float:
    """Return the Frobenius norm of ``factor * left.T @ right - matrix``; elements that do not count are overwritten.

    They become those of the product, so that the next fit is free to leave them as they are.
    """
    total, right = 0.0, right.astype(np.float32, copy=False)
    for row in range(0, len(matrix), ROWS):
        block = matrix[row : row + ROWS]
        found = left[:, row : row + ROWS].T.astype(np.float32) @ right
        found *= np.float32(factor)
        counts = mask(row, row + len(block))
        if counts is not None:
            np.copyto(block, found, where=~counts)
        found -= block
        total += sum(float(x.astype(np.float64) @ x) for x in found)
    return math.sqrt(total)


def round_factors(
    matrix: np.ndarray, mask: Mask, left: np.ndarray, right: np.ndarray, steps: Steps, tick: Tick
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Return integers, in a short type, and steps of two factors whose product is close to a matrix.

    Parameters
    ----------
    matrix : numpy.ndarray, shape (n, n), float32
        What is wanted. Elements that do not count are overwritten.
    mask : callable
        Which elements count.
    left, right : numpy.ndarray, shapes (terms, n), float32
        The factors: ``left.T @ right`` is close to the matrix, and no row is 0.
    steps : Steps
        Which steps are allowed.
    tick : callable
        Is told of progress.
    """
    root = _root(_gram(right))
    first = steps.best(left, np.diag(root) ** 2, 1.0 if steps.free else _unit_for(left, right, steps))
    q, d = [_nearest_plane(left, root, first, steps.top, lambda _: None), np.empty(0)], [first, 1.0]
    best: tuple[list[np.ndarray], tuple[float, float]] = [], (1.0, 1.0)
    least = math.inf
    for turn in range(2 * _TURNS):
        this, other = (1, 0) if turn % 2 == 0 else (0, 1)
        told = functools.partial(_told, tick, turn)
        gram = _gram(q[other])
        root = _root(gram)
        x = _least_squares(q[other], d[other], root, matrix if this else matrix.T, told)
        d[this] = steps.best(x, np.diag(root) ** 2, d[other])
        q[this] = _nearest_plane(x, root, d[this], steps.top, functools.partial(_later, told))
        del x
        error = off(matrix, mask, q[0], q[1], d[0] * d[1])
        if error < least:
            best = list(q), (d[0], d[1])
        if error >= (1.0 - _STALL) * least and turn % 2:
            break
        least = min(least, error)
    return best


def round_table(table: np.ndarray, steps: Steps) -> tuple[np.ndarray, float]:
    """Return the integers and the step of an array that stands alone."""
    x = table.reshape(1, -1)
    step = steps.best(x, np.ones(1), 1.0)
    return _clipped(x / np.float32(step), steps.top).astype(_dtype(steps.top)).reshape(table.shape), step


def _told(tick: Tick, turn: int, share: float) -> None:
    tick("rounding", (turn + share) / (2 * _TURNS))


def _dtype(top: float) -> type[np.signedinteger[Any]]:
    """Return the smallest type that holds the integers."""
    return np.int8 if top < 2.0**7 else np.int16


def _later(told: Callable[[float], None], share: float) -> None:
    told(0.5 + 0.4 * share)


def _clipped(x: np.ndarray, top: float) -> np.ndarray:
    clipped: np.ndarray = np.clip(np.rint(x), -top, top) + 0.0
    return clipped


def _unit_for(left: np.ndarray, right: np.ndarray, steps: Steps) -> float:
    """Return a step of the right factor for which the best steps of the left one are allowed."""
    free, ones = Steps(steps.pool, free=True), np.ones(len(left))
    ideal = [free.best(x, ones, 1.0) for x in (left, right)]
    if steps.product is None:
        return 1.0 / ideal[0]
    return math.sqrt(steps.product * ideal[1] / ideal[0])


def _gram(x: np.ndarray) -> np.ndarray:
    """Return ``x @ x.T`` in float64."""
    total = np.zeros((len(x), len(x)), order="F")
    for k in range(0, x.shape[1], ROWS):
        block = x[:, k : k + ROWS].astype(np.float64)
        total += block @ block.T
    return total


def _root(gram: np.ndarray) -> np.ndarray:
    """Return the upper triangular root of a Gram matrix, whose diagonal is overwritten."""
    mean = max(float(np.trace(gram)), 1e-300) / len(gram)
    gram[np.diag_indices(len(gram))] += _RIDGE * mean
    lower: np.ndarray = interruptible(functools.partial(np.linalg.cholesky, gram))  # SciPy's holds the global lock
    return lower.T


def _least_squares(
    q: np.ndarray, step: float, root: np.ndarray, matrix: np.ndarray, told: Callable[[float], None]
) -> np.ndarray:
    """Return x, (terms, n), float32, with the least ``||step * q.T @ x - matrix||``."""
    from scipy.linalg import cho_solve

    x = np.empty((len(q), matrix.shape[1]), dtype=np.float32)
    for c in range(0, x.shape[1], _COLUMNS):
        columns = slice(c, c + _COLUMNS)
        image = np.zeros((len(q), len(x[0, columns])), order="F")
        for row in range(0, len(matrix), ROWS):
            part = slice(row, row + ROWS)
            image += q[:, part].astype(np.float64) @ matrix[part, columns].astype(np.float64)
        x[:, columns] = cho_solve((root, False), image, overwrite_b=True, check_finite=False) / step
        told(0.5 * c / x.shape[1])
    return x


def _nearest_plane(
    x: np.ndarray, root: np.ndarray, step: float, top: float, told: Callable[[float], None]
) -> np.ndarray:
    """Return integers q for which ``root @ (step * q - x)`` is small, in a short type."""
    q, lead = np.empty(x.shape, dtype=_dtype(top)), np.diag(root)[:, None]
    for c in range(0, x.shape[1], _COLUMNS):
        exact = x[:, c : c + _COLUMNS] / np.float64(step)
        y = exact.copy()
        for stop in range(len(x), 0, -_PANEL):
            start = max(0, stop - _PANEL)
            errors = np.empty((stop - start, y.shape[1]))
            for k in range(stop - 1, start - 1, -1):
                wanted = y[k] + root[k, k + 1 : stop] @ errors[k + 1 - start :] / lead[k]
                q[k, c : c + _COLUMNS] = here = _clipped(wanted, top)
                errors[k - start] = exact[k] - here
            y[:start] += root[:start, start:stop] @ errors / lead[:start]
        told(c / x.shape[1])
    return q
