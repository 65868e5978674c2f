"""How a single pool is fitted: variables whose virtual weights are close to given ones, in the end as integers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smh.v2.backends.numpy_kernels import NumpyKernels
from smh.v2.core.initial import standard
from smh.v2.core.pools import Hash, Kronecker, Matmul, Pool
from smh.v2.core.pools.base import Leaf, LeafPool
from smh.v2.models.patience import interruptible
from smh.v2.models.rounding import ROWS, Mask, Steps, Tick, off, round_factors, round_table

KERNELS = NumpyKernels()
ROUNDS = 8  # of filling in unused virtual weights, and of refitting the parts of a sum, at most
STALL = 1e-3  # what one more round must take off the error, relatively
_SPARE = 2.0**-30  # singular values this small, relative to the largest, are rounding errors
_EIGH = 6.0  # about how many times as long as the Gram matrix the eigenvectors take
_BLOCK = 1 << 17  # virtual weights whose hash indices are computed at a time
_STORED = 2  # hash functions up to which the indices of all virtual weights are kept
_STEPS = 400  # of conjugate gradients, at most
_SMALL = 1e-13  # a step of these that takes off less, relatively, is the last

Variables = dict[str, np.ndarray]


class Used:
    """Which virtual weights count: those in some ranges.

    Examples
    --------
    >>> used = Used([slice(0, 2), slice(2, 3), slice(5, 6)])
    >>> used.count, used.mask(1, 7).tolist(), used.mask(0, 3)
    (4, [True, True, False, False, True, False], None)
    """

    def __init__(self, ranges: Sequence[slice]) -> None:
        self.ranges: list[tuple[int, int]] = []
        for start, stop in sorted((part.start, part.stop) for part in ranges):
            if self.ranges and start <= self.ranges[-1][1]:
                self.ranges[-1] = self.ranges[-1][0], max(stop, self.ranges[-1][1])
            else:
                self.ranges.append((start, stop))

    @property
    def count(self) -> int:
        """How many count."""
        return sum(stop - start for start, stop in self.ranges)

    def mask(self, start: int, stop: int) -> np.ndarray | None:
        """Return which of a range count, or None for all."""
        if any(first <= start and stop <= last for first, last in self.ranges):
            return None
        mask = np.zeros(stop - start, dtype=bool)
        for first, last in self.ranges:
            mask[max(first - start, 0) : max(last - start, 0)] = True
        return mask


def fit_leaf(leaf: Leaf, wanted: np.ndarray, used: Used, free: bool, tick: Tick) -> tuple[Variables, Variables]:
    """Return the variables of a leaf, float32, with its gain: unrounded, and rounded to integers.

    Parameters
    ----------
    leaf : Leaf
        The pool and its seed.
    wanted : numpy.ndarray, shape (capacity,), float32
        Virtual weights. Those that do not count are overwritten; on entry they hold a first guess.
    used : Used
        Which of them count.
    free : bool
        Whether all virtual weights may come out with another factor, which scales make up for.
    tick : callable
        Is told of progress.
    """
    pool = leaf.pool
    shrink, steps = np.float32(2.0 ** -(pool.gain or 0)), Steps(pool, free)
    plain, integers, chosen = FITTERS[type(pool)](leaf, wanted, used, steps, tick)
    shapes, units = pool.local_shapes(), steps.units(chosen)
    unrounded = {name: np.reshape(x, shapes[name]) for name, x in zip(shapes, plain, strict=True)}
    rounded = {
        name: np.reshape(np.multiply(x, np.float32(unit), out=x), shapes[name])
        for (name, x), unit in zip(zip(shapes, integers, strict=True), units, strict=True)
    }
    for x in unrounded.values():
        np.multiply(x, shrink, out=x)
    return unrounded, rounded


def can_fit(pool: Any) -> bool:
    """Say whether a pool is a leaf that can be fitted."""
    return isinstance(pool, LeafPool) and type(pool) in FITTERS


_Fitted = tuple[list[np.ndarray], list[np.ndarray], tuple[float, ...]]
"""Values without gain, integers, and their steps; arrays are float32."""


def _fit_matmul(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps, tick: Tick) -> _Fitted:
    """Fit the nearest matrix of rank m (Eckart and Young; equation 4 of the paper)."""
    side = leaf.pool.side  # type: ignore[attr-defined]

    def mask(first: int, last: int) -> np.ndarray | None:
        counts = used.mask(first * side, last * side)
        return None if counts is None else counts.reshape(-1, side)

    plain, integers, chosen = _low_rank(leaf, wanted.reshape(side, side), mask, used.count, steps, tick)
    for pair in (plain, integers):
        pair[0] = np.ascontiguousarray(pair[0].T)
    return plain, integers, chosen


def _fit_kronecker(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps, tick: Tick) -> _Fitted:
    """Fit the nearest sum of t Kronecker products (Van Loan and Pitsianis).

    With virtual weight (i1, i2, j1, j2) in row (i1, j1) and column (i2, j2) of a matrix, a product is a term of rank 1.
    """
    side = leaf.pool.side  # type: ignore[attr-defined]
    d = math.isqrt(side)
    blocks = wanted.reshape(d, d, d, d)

    def rearrange() -> None:
        for block in blocks:  # there and back
            block[...] = block.transpose(1, 0, 2).copy()

    def mask(first: int, last: int) -> np.ndarray | None:
        low, high = first // d, -(-last // d)
        counts = used.mask(low * d**3, high * d**3)
        if counts is None:
            return None
        return counts.reshape(-1, d, d, d).transpose(0, 2, 1, 3).reshape(-1, side)[first - low * d : last - low * d]

    rearrange()
    fitted = _low_rank(leaf, wanted.reshape(side, side), mask, used.count, steps, tick)
    rearrange()
    return fitted


def _fit_hash(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps, tick: Tick) -> _Fitted:
    """Fit the table of least squares; with one hash function its entries are the means of buckets."""
    pool, seed = leaf.pool, leaf.seed
    assert isinstance(pool, Hash)
    size = pool.hashes * (pool.size or 0)
    ranges = [(k, min(k + _BLOCK, last)) for first, last in used.ranges for k in range(first, last, _BLOCK)]
    stored: dict[int, np.ndarray] = {}

    def terms(start: int, stop: int) -> np.ndarray:
        """Return the index of every term of a range, from 1, negative where its sign is; (stop - start, hashes)."""
        if start in stored:
            return stored[start]
        i = np.arange(start, stop)
        (columns,) = pool.indices(KERNELS, i, seed).values()
        signed = ((columns + 1) * pool.signs(KERNELS, i, seed)).astype(np.int32)
        if 1 < pool.hashes <= _STORED:
            stored[start] = signed
        return signed

    def pulled(start: int, stop: int, x: np.ndarray) -> np.ndarray:
        signed = terms(start, stop)
        return np.bincount(
            np.abs(signed).reshape(-1) - 1, weights=(np.sign(signed) * x[:, None]).reshape(-1), minlength=size
        )

    def shown(start: int, stop: int, table: np.ndarray) -> np.ndarray:
        signed = terms(start, stop)
        return np.sum(table[np.abs(signed) - 1] * np.sign(signed), axis=1)

    total, counts, energy = np.zeros(size), np.zeros(size if pool.hashes == 1 else 0), 0.0
    for k, (start, stop) in enumerate(ranges):
        x = wanted[start:stop].astype(np.float64)
        energy += float(x @ x)
        total += pulled(start, stop, x)
        if pool.hashes == 1:
            counts += np.bincount(np.abs(terms(start, stop)).reshape(-1) - 1, minlength=size)
        tick("hash indices", k / len(ranges))
    if pool.hashes == 1:
        table = np.divide(total, counts, out=total, where=counts > 0)
    else:
        table = _conjugate_gradients(ranges, pulled, shown, total, energy, tick)
    unrounded = table.astype(np.float32)
    for start, stop in _unused(used.ranges, len(wanted)):
        wanted[start:stop] = 0.0
    integers, step = round_table(unrounded, steps)
    return [unrounded], [integers], (step,)


FITTERS: dict[type[Pool], Callable[..., _Fitted]] = {
    Matmul: _fit_matmul,
    Kronecker: _fit_kronecker,
    Hash: _fit_hash,
}


def _unused(ranges: list[tuple[int, int]], stop: int) -> list[tuple[int, int]]:
    """Return the ranges between ranges."""
    edges = [0, *(edge for part in ranges for edge in part), stop]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _conjugate_gradients(
    ranges: list[tuple[int, int]],
    pulled: Callable[[int, int, np.ndarray], np.ndarray],
    shown: Callable[[int, int, np.ndarray], np.ndarray],
    gradient: np.ndarray,
    energy: float,
    tick: Tick,
) -> np.ndarray:
    """Return the solution of least norm of the normal equations, whose right side is given and overwritten."""
    table, direction = np.zeros_like(gradient), gradient.copy()
    square = float(gradient @ gradient)
    for step in range(_STEPS):
        image, curvature = np.zeros_like(table), 0.0
        for k, (start, stop) in enumerate(ranges):
            x = shown(start, stop, direction)
            curvature += float(x @ x)
            image += pulled(start, stop, x)
            tick("least squares", (step + k / len(ranges)) / (step + 10.0))
        if curvature <= 0.0 or square * square <= _SMALL * energy * curvature:
            break
        table += (square / curvature) * direction
        gradient -= (square / curvature) * image
        square, before = float(gradient @ gradient), square
        direction *= square / before
        direction += gradient
    return table


def _low_rank(leaf: Leaf, wanted: np.ndarray, mask: Mask, used: int, steps: Steps, tick: Tick) -> _Fitted:
    """Fit two factors, (terms, n) each, whose product ``left.T @ right`` is close to a matrix where it counts.

    Each round takes the present product for the elements that do not count, and the nearest matrix to that; the error
    of the others cannot grow.
    """
    terms: int = leaf.pool.terms  # type: ignore[attr-defined]
    n, least = len(wanted), math.inf
    best = left = right = np.empty((0, n), dtype=np.float32)
    for k in range(ROUNDS):
        told = tick if k == 0 else functools.partial(_in_round, tick, k + 1)
        left, right, norm = _nearest(wanted, min(n, terms), told)
        error = off(wanted, mask, left, right)
        unused = (n * n - used) / (n * n)
        stalled = error >= (1.0 - STALL) * least
        if error < least:
            best, least = left, error
            kept = right
        # Elements that do not count cost no more than their share of the whole.
        if stalled or terms >= n or unused * norm**2 <= STALL * error**2:
            break
    left, right = best, kept
    if not len(left):
        return _of_nothing(leaf, n, terms, steps)
    _mix(left)
    _mix(right)
    (of_left, of_right), chosen = round_factors(wanted, mask, left, right, steps, tick)
    spare = terms - len(left)
    if not spare:
        return [left, right], [of_left, of_right], chosen
    zeros = np.zeros((spare, n), dtype=np.float32)
    drawn = standard(leaf.seed, 1, len(left) * n, terms * n, "normal").reshape(spare, n)
    size = math.sqrt(float(np.mean(np.square(of_right, dtype=np.float64))))  # as large as the others
    integers = np.clip(np.rint(drawn * size), -steps.top, steps.top).astype(np.float32)
    return (
        [np.concatenate([left, zeros]), np.concatenate([right, integers * np.float32(chosen[1])])],
        [np.concatenate([of_left, zeros]), np.concatenate([of_right, integers])],
        chosen,
    )


def _of_nothing(leaf: Leaf, n: int, terms: int, steps: Steps) -> _Fitted:
    """Return factors of a matrix of zeros that can still be trained: the right one has its initial values."""
    sigma = leaf.pool.sigma(leaf.tau)
    right = (standard(leaf.seed, 1, 0, terms * n, "normal") * sigma).astype(np.float32).reshape(terms, n)
    largest = float(np.max(np.abs(right)))
    step = 2.0 ** math.ceil(math.log2(largest / steps.top))
    if leaf.pool.exponents is not None:
        step = 2.0 ** (leaf.pool.exponents[1] - leaf.pool.grid_bits + (leaf.pool.gain or 0))
    integers = np.clip(np.rint(right / np.float32(step)), -steps.top, steps.top).astype(np.float32)
    zeros = np.zeros((terms, n), dtype=np.float32)
    return [zeros, right], [zeros.copy(), integers], (step, step)


def _in_round(tick: Tick, number: int, what: str, share: float) -> None:
    tick(f"{what}, round {number}", share)


def _mix(x: np.ndarray) -> None:
    """Turn the terms of a factor into one another, in place, so that all are about equally large.

    They share one grid. The same turn of the other factor leaves the product as it is.
    """
    from scipy.fft import dct

    signs = np.where(np.random.default_rng(0).integers(0, 2, (2, len(x), 1)), np.float32(1.0), np.float32(-1.0))
    for c in range(0, x.shape[1], ROWS):
        block = x[:, c : c + ROWS]
        for some in signs:
            block = dct(block * some, axis=0, norm="ortho")
        x[:, c : c + ROWS] = block


def _nearest(matrix: np.ndarray, rank: int, tick: Tick) -> tuple[np.ndarray, np.ndarray, float]:
    """Return left and right, (terms, n), of the nearest matrix of a rank, equally large, and the norm of the matrix.

    Right singular vectors are the eigenvectors of ``matrix.T @ matrix``, and left ones follow by projection: a fraction
    of the cost of a whole decomposition, for a distance above the least by 1e-8 of the matrix, which float32 hides.
    There are fewer terms if the matrix does not need more.
    """
    from scipy.linalg import eigh
    from scipy.linalg.blas import dsyrk

    n, began = len(matrix), time.monotonic()
    gram = np.zeros((n, n), order="F")
    for row in range(0, n, ROWS):
        block = matrix[row : row + ROWS].astype(np.float64)
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=True)  # its upper triangle
        del block
        tick("products of columns", row / n)
    norm = math.sqrt(float(np.trace(gram)))
    middle = time.monotonic()

    def waiting() -> None:
        share = (time.monotonic() - middle) / (_EIGH * (middle - began))
        tick("eigenvectors", share if share < 0.9 else 1.0 - 0.09 / share)

    some: dict[str, Any] = {"subset_by_index": (n - rank, n - 1), "overwrite_a": True, "check_finite": False}
    basis = interruptible(functools.partial(eigh, gram, lower=False, **some), waiting=waiting)[1].T[::-1]
    del gram
    right = np.ascontiguousarray(basis, dtype=np.float32)
    del basis
    left = np.empty_like(right)
    for row in range(0, n, ROWS):
        left[:, row : row + ROWS] = right @ matrix[row : row + ROWS].T
        tick("projecting", row / n)
    singular = np.sqrt(np.einsum("kn,kn->k", left, left, dtype=np.float64))
    needed = singular > _SPARE * singular.max()
    if not needed.all():
        left, right, singular = left[needed], right[needed], singular[needed]
    root = np.sqrt(singular).astype(np.float32)[:, None]
    left /= root
    right *= root
    return left, right, norm
