"""How a single pool is fitted: variables whose virtual weights are close to given ones, at last as integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core.grid import grid
from smh.core.pools import Hash, Kronecker, Matmul, Pool
from smh.core.pools.base import Leaf, LeafPool
from smh.models.patience import interruptible

KERNELS = NumpyKernels()
ROUNDS = 8  # of filling unused virtual weights, and of refitting the parts of a sum, at most
STALL = 1e-3  # what one more round must take off the error, relatively
_REFITS = 3  # of one rounded factor to the other
_SPARE = 2.0**-30  # singular values this small, relative to the largest, are rounding errors
_ROWS = 256  # of a matrix that are held in float64 at a time

Variables = dict[str, np.ndarray]
Tick = Callable[[str, float], None]
"""Is told what is done, and which share of it."""
_Snap = Callable[[int, np.ndarray], np.ndarray]
"""From the number of an array of a pool, and its values, to the values of its integers."""


def fit_leaf(
    leaf: Leaf, wanted: np.ndarray, used: np.ndarray, present: np.ndarray, initial: Variables, tick: Tick
) -> tuple[Variables, Variables]:
    """Return the variables of a leaf, float32, with its gain: unrounded, and rounded to integers.

    Parameters
    ----------
    leaf : Leaf
        The pool and its seed.
    wanted : numpy.ndarray, shape (k,), float32
        Virtual weights; the pool may have more.
    used : numpy.ndarray, shape (k,), bool
        Which of them count.
    present : numpy.ndarray, shape (capacity,), float32
        What unused virtual weights start from.
    initial : dict of str to numpy.ndarray, float32
        Initial variables, for terms that are not needed.
    tick : callable
        Is told of progress.
    """
    pool, shrink = leaf.pool, 2.0 ** -(leaf.pool.gain or 0)
    target, fixed = wanted, used
    if present.size > used.size or not used.all():
        target, fixed = present.astype(np.float32), np.zeros(present.shape, dtype=bool)
        fixed[: used.size] = used
        np.copyto(target[: used.size], wanted, where=used)

    def snap(number: int, x: np.ndarray) -> np.ndarray:
        one = grid(KERNELS, (x * shrink).astype(np.float32), pool.grid_bits, 30, 30, pool.exponent(number))
        return np.asarray(one.integers, dtype=np.float64) * (float(one.unit) / shrink) + 0.0

    plain = {name: x / np.float32(shrink) for name, x in initial.items()}
    found = FITTERS[type(pool)](pool, leaf.seed, target, fixed, plain, snap, tick)
    unrounded, rounded = (
        {name: np.ascontiguousarray(x * shrink, dtype=np.float32) for name, x in each.items()} for each in found
    )
    return unrounded, rounded


def _fit_matmul(
    pool: Matmul, seed: int, target: np.ndarray, used: np.ndarray, initial: Variables, snap: _Snap, tick: Tick
) -> tuple[Variables, Variables]:
    """Return the factors of the nearest matrix of rank m (Eckart and Young; equation 4 of the paper), then rounded."""
    wanted, shown = target.reshape(pool.side, -1), used.reshape(pool.side, -1)
    unrounded, rounded = _low_rank(wanted, shown, initial["right"], snap, tick)
    return dict(zip(("left", "right"), unrounded, strict=True)), dict(zip(("left", "right"), rounded, strict=True))


def _fit_kronecker(
    pool: Kronecker, seed: int, target: np.ndarray, used: np.ndarray, initial: Variables, snap: _Snap, tick: Tick
) -> tuple[Variables, Variables]:
    """Return the nearest sum of t Kronecker products (Van Loan and Pitsianis), then rounded.

    With virtual weight (i1, i2, j1, j2) in row (i1, j1) and column (i2, j2) of a matrix, a product is a term of rank 1.
    """
    d, side, shape = math.isqrt(pool.side), pool.side, initial["right"].shape

    def rearranged(x: np.ndarray) -> np.ndarray:
        return x.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(side, side)

    first = initial["right"].reshape(-1, side)
    both = _low_rank(rearranged(target), rearranged(used), first, snap, tick)
    unrounded, rounded = ({"left": left.T.reshape(shape), "right": right.reshape(shape)} for left, right in both)
    return unrounded, rounded


def _fit_hash(
    pool: Hash, seed: int, target: np.ndarray, used: np.ndarray, initial: Variables, snap: _Snap, tick: Tick
) -> tuple[Variables, Variables]:
    """Return the table with the least squared error; with one hash function its entries are the means of buckets."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import lsqr

    tick("hash indices", 0.0)
    i = np.flatnonzero(used)
    (columns,) = pool.indices(KERNELS, i, seed).values()
    signs = pool.signs(KERNELS, i, seed).astype(np.float64)
    shape = initial["table"].shape
    size = math.prod(shape)
    tick("least squares", 0.5)
    if pool.hashes == 1:
        total = np.bincount(columns[:, 0], weights=signs[:, 0] * target[i], minlength=size)
        table = total / np.maximum(np.bincount(columns[:, 0], minlength=size), 1)
    else:
        rows = np.arange(0, signs.size + 1, pool.hashes)
        design = csr_array((signs.reshape(-1), columns.reshape(-1), rows), shape=(i.size, size))
        # The solution of least norm; the tolerances are relative, and below the resolution of float32.
        wide = target[i].astype(np.float64)
        table = interruptible(functools.partial(lsqr, design, wide, atol=1e-10, btol=1e-10, iter_lim=2000))[0]
    return {"table": table.reshape(shape)}, {"table": snap(0, table).reshape(shape)}


FITTERS: dict[type[Pool], Callable[..., tuple[Variables, Variables]]] = {
    Matmul: _fit_matmul,
    Kronecker: _fit_kronecker,
    Hash: _fit_hash,
}

_Factors = tuple[np.ndarray, np.ndarray]


def _low_rank(
    wanted: np.ndarray, used: np.ndarray, initial: np.ndarray, snap: _Snap, tick: Tick
) -> tuple[_Factors, _Factors]:
    """Return factors close to a matrix where it is used, filling in what is not: unrounded, and rounded.

    Each round takes the present product for the unused elements, and the nearest matrix to that; the error of the
    used ones cannot grow. ``wanted`` holds first guesses where it is not used.
    """
    filled, once = wanted, len(initial) >= len(wanted) or bool(used.all())
    best: _Factors = np.zeros_like(initial).T, initial
    least = math.inf
    for _ in range(ROUNDS):
        left, right = _nearest(filled, initial, tick)
        error = _distance(left, right, wanted, used)
        stalled = error >= (1.0 - STALL) * least
        if error < least:
            best, least = (left, right), error
        if stalled or once:
            break
        filled = np.where(used, wanted, (left @ right).astype(np.float32))
    return best, _rounded(wanted, used, *best, snap, tick)


def _nearest(matrix: np.ndarray, initial: np.ndarray, tick: Tick) -> _Factors:
    """Return left, (n, terms), and right, (terms, n), whose product is the nearest of its rank; both equally large.

    Right singular vectors are the eigenvectors of ``matrix.T @ matrix``, and left ones follow by projection: a fraction
    of the cost of a whole decomposition, for a distance above the least by 1e-8 of the matrix, which float32 hides.
    Terms that are not needed get the right factor of ``initial``, and zeros.
    """
    from scipy.linalg import eigh
    from scipy.linalg.blas import dsyrk

    n, terms = len(matrix), len(initial)
    rank = min(n, terms)
    gram = np.zeros((n, n), order="F")
    for row in range(0, n, _ROWS):
        block = matrix[row : row + _ROWS].astype(np.float64)
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=True)  # its upper triangle
        del block
        tick("products of columns", (row + _ROWS) / n)
    norm = math.sqrt(float(np.trace(gram)))
    waits = [0]

    def waiting() -> None:
        waits[0] += 1
        tick("eigenvectors", 1.0 - 1.0 / (1.0 + waits[0] / 50.0))

    some: dict[str, Any] = {"subset_by_index": (n - rank, n - 1), "overwrite_a": True, "check_finite": False}
    basis = interruptible(functools.partial(eigh, gram, lower=False, **some), waiting=waiting)[1][:, ::-1]
    del gram
    image = np.concatenate([matrix[row : row + _ROWS].astype(np.float64) @ basis for row in range(0, n, _ROWS)])
    singular = np.linalg.norm(image, axis=0)
    needed = np.flatnonzero(singular > _SPARE * singular.max())
    root = np.sqrt(singular[needed])
    size = math.sqrt(norm / n) or 1.0  # as large as the others, whose grid they share
    left, right = np.zeros((n, terms)), size * initial
    left[:, needed] = image[:, needed] / root
    right[needed, :] = (basis[:, needed] * root).T
    return left, right


def _rounded(
    wanted: np.ndarray, used: np.ndarray, left: np.ndarray, right: np.ndarray, snap: _Snap, tick: Tick
) -> _Factors:
    """Return factors on their grids whose product is close to a matrix where it is used.

    Terms are turned into one another first, so that all are about equally large: a grid has one unit for all. Then one
    factor is rounded, the other fitted to it by least squares and rounded in its turn, and so on. Terms that are not
    needed stay as they are.
    """
    needed = np.flatnonzero(np.any(left != 0.0, axis=0))
    if not needed.size:
        return snap(0, left), snap(1, right)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((needed.size, needed.size)))[0]
    left, right = left.copy(), right.copy()
    left[:, needed], right[needed] = left[:, needed] @ turn, turn.T @ right[needed]
    matrix = wanted if used.all() else np.where(used, wanted, (left @ right).astype(np.float32))
    best = snap(0, left), snap(1, right)
    least = _distance(*best, wanted, used)
    left = best[0]
    for turn_number in range(_REFITS):
        tick("rounding", turn_number / _REFITS)
        right = right.copy()
        right[needed] = _least_squares(left[:, needed], _times(matrix.T, left[:, needed])).T
        right = snap(1, right)
        error = _distance(left, right, wanted, used)
        if error < least:
            best, least = (left, right), error
        left = left.copy()
        left[:, needed] = _least_squares(right[needed].T, _times(matrix, right[needed].T))
        left = snap(0, left)
        error = _distance(left, right, wanted, used)
        if error < least:
            best, least = (left, right), error
    return best


def _least_squares(factor: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return x, (n, m), with the least ``||factor @ x.T - matrix||``, given ``image = matrix.T @ factor``, (n, m)."""
    gram = factor.T @ factor
    gram += (1e-12 * max(float(np.trace(gram)), 1e-300) / len(gram)) * np.eye(len(gram))
    return np.linalg.solve(gram, image.T).T


def _times(matrix: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return ``matrix @ factor`` in float64, of a matrix in float32."""
    rows = range(0, len(matrix), _ROWS)
    return np.concatenate([matrix[row : row + _ROWS].astype(np.float64) @ factor for row in rows])


def _distance(left: np.ndarray, right: np.ndarray, wanted: np.ndarray, used: np.ndarray) -> float:
    """Return the Frobenius norm of ``left @ right - wanted`` where it is used."""
    total = 0.0
    for row in range(0, len(wanted), _ROWS):
        rows = slice(row, row + _ROWS)
        off = np.where(used[rows], left[rows] @ right - wanted[rows], 0.0).reshape(-1)
        total += float(off @ off)
    return math.sqrt(total)


def can_fit(pool: Any) -> bool:
    """Say whether a pool is a leaf that can be fitted."""
    return isinstance(pool, LeafPool) and type(pool) in FITTERS
