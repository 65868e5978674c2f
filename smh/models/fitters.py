"""How a single pool is fitted: variables whose virtual weights are close to given ones, in the end as integers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core.grid import grid
from smh.core.initial import standard
from smh.core.pools import Hash, Kronecker, Matmul, Pool
from smh.core.pools.base import Leaf, LeafPool
from smh.models.eigenvectors import largest_eigenvectors
from smh.models.patience import interruptible
from smh.models.rounding import ROWS, Mask, Steps, Tick, off, round_factors, round_table

KERNELS = NumpyKernels()
ROUNDS = 8  # of filling in unused virtual weights, and of refitting the parts of a sum, at most
STALL = 1e-3  # what one more round must take off the error, relatively
_SPARE = 2.0**-19  # singular values this small, relative to the largest, are rounding errors
_EIGH = 10.0  # about how many times as long as the Gram matrix the eigenvectors take
_BLOCK = 1 << 16  # virtual weights whose hash indices are computed at a time
_FEW = 1 << 16  # entries of a table that is fitted in float64
_STEPS = 400  # of conjugate gradients, at most

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


def fit_leaf(
    leaf: Leaf, wanted: np.ndarray, used: Used, free: bool, integers: bool, tick: Tick
) -> tuple[Variables, Variables]:
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
    integers : bool
        Whether to round; if not, the second result is empty.
    tick : callable
        Is told of progress.
    """
    pool = leaf.pool
    shrink, shapes = np.float32(2.0 ** -(pool.gain or 0)), pool.local_shapes()
    plain, whole, steps = FITTERS[type(pool)](leaf, wanted, used, Steps(pool, free) if integers else None, tick)
    unrounded = {
        name: np.reshape(np.multiply(x, shrink, out=x), shapes[name]) for name, x in zip(shapes, plain, strict=True)
    }
    rounded: Variables = {}
    if not integers:
        return unrounded, rounded
    units = Steps(pool, free).units(steps)
    # Not 1 where the units would be below those that there are: grids then make values 0.
    factor = 1.0 if free else math.prod(steps) / (math.prod(units) * pool.factor)
    for k, (name, shape) in enumerate(shapes.items()):
        x = np.multiply(whole.pop(0), np.float32(units[k] * (factor if k == 0 else 1.0)), dtype=np.float32)
        one = grid(KERNELS, x, pool.grid_bits, 30, 30, pool.exponent(k))
        rounded[name] = np.reshape(np.multiply(one.integers, one.unit, out=x), shape)
        rounded[name] += np.float32(0.0)  # -0 becomes +0
    return unrounded, rounded


def can_fit(pool: Any) -> bool:
    """Say whether a pool is a leaf that can be fitted."""
    return isinstance(pool, LeafPool) and type(pool) in FITTERS


_Fitted = tuple[list[np.ndarray], list[np.ndarray], tuple[float, ...]]
"""Values without gain, float32; integers, and their steps, which are empty without rounding."""


def _fit_matmul(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps | None, tick: Tick) -> _Fitted:
    """Fit the nearest matrix of rank m (Eckart and Young; equation 4 of the paper)."""
    side = leaf.pool.side  # type: ignore[attr-defined]

    def mask(first: int, last: int) -> np.ndarray | None:
        counts = used.mask(first * side, last * side)
        return None if counts is None else counts.reshape(-1, side)

    plain, integers, chosen = _low_rank(leaf, wanted.reshape(side, side), mask, used.count, steps, tick)
    for pair in (plain, integers):
        pair[:1] = [np.ascontiguousarray(x.T) for x in pair[:1]]
    return plain, integers, chosen


def _fit_kronecker(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps | None, tick: Tick) -> _Fitted:
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


def _fit_hash(leaf: Leaf, wanted: np.ndarray, used: Used, steps: Steps | None, tick: Tick) -> _Fitted:
    """Fit the table of least squares; with one hash function its entries are the means of buckets."""
    pool: Hash = leaf.pool  # type: ignore[assignment]
    size = pool.hashes * (pool.size or 0)
    length = max(1, _BLOCK // pool.hashes)
    ranges = [(k, min(k + length, last)) for first, last in used.ranges for k in range(first, last, length)]
    keep = 1 < pool.hashes and (size <= _FEW or 4 * pool.hashes * used.count + 16 * size <= 10 * used.count)
    stored: dict[int, np.ndarray] = {}

    def terms(start: int, stop: int) -> np.ndarray:
        """Return the index of every term of a range, counted from 1, and negative where the sign is."""
        if start in stored:
            return stored[start]
        i = np.arange(start, stop)
        (columns,) = pool.indices(KERNELS, i, leaf.seed).values()
        signed: np.ndarray = ((columns + 1) * pool.signs(KERNELS, i, leaf.seed)).astype(np.int32)
        if keep:
            stored[start] = signed
        return signed

    def pull(signed: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """Add what the table gets back from virtual weights."""
        np.add.at(out, np.abs(signed) - 1, (np.sign(signed) * x[:, None]).astype(out.dtype))

    def product(table: np.ndarray, told: Callable[[float], None]) -> tuple[np.ndarray, float]:
        """Return the Gram matrix of the table times a vector, and the square that it makes with the vector."""
        image, square = np.zeros_like(table), 0.0
        for k, (start, stop) in enumerate(ranges):
            signed = terms(start, stop)
            x = np.einsum("kh,kh->k", table[np.abs(signed) - 1], np.sign(signed), dtype=np.float64)
            square += float(x @ x)
            pull(signed, x, image)
            told(k / len(ranges))
        return image, square

    exact = pool.hashes == 1 or size <= _FEW
    total, energy = np.zeros(size, dtype=np.float64 if exact else np.float32), 0.0
    counts = np.zeros(size if pool.hashes == 1 else 0, dtype=np.int32)
    for k, (start, stop) in enumerate(ranges):
        x, signed = wanted[start:stop].astype(np.float64), terms(start, stop)
        energy += float(x @ x)
        pull(signed, x, total)
        if pool.hashes == 1:
            np.add.at(counts, np.abs(signed) - 1, 1)
        tick("hash indices", k / len(ranges))
    if pool.hashes == 1:
        table = np.divide(total, counts, out=total, where=counts > 0)
    else:
        table = _conjugate_gradients(product, total, (1e-13 if exact else 1e-9) * energy, tick)
    unrounded = table.astype(np.float32)
    if steps is None:
        return [unrounded], [], ()
    integers, step = round_table(unrounded, steps)
    return [unrounded], [integers], (step,)


FITTERS: dict[type[Pool], Callable[..., _Fitted]] = {
    Matmul: _fit_matmul,
    Kronecker: _fit_kronecker,
    Hash: _fit_hash,
}


def _conjugate_gradients(
    product: Callable[..., tuple[np.ndarray, float]], gradient: np.ndarray, least: float, tick: Tick
) -> np.ndarray:
    """Return the solution of least norm of normal equations, whose right side is given and overwritten.

    The last step is the first that takes less than ``least`` off the squared error.
    """
    table, direction = np.zeros_like(gradient), gradient.copy()
    square, share, first = float(gradient @ gradient), 0.0, math.inf
    for _ in range(_STEPS):
        image, curvature = product(direction, lambda _, share=share: tick("least squares", share))
        gained = square * square / curvature if curvature > 0.0 else 0.0
        if gained <= least:
            break
        first = gained if math.isinf(first) else first
        share = max(share, math.log(first / gained) / math.log(first / least) if gained < first else 0.0)
        step = gradient.dtype.type(square / curvature)
        image *= step
        gradient -= image
        table += np.multiply(direction, step, out=image)
        square, before = float(gradient @ gradient), square
        direction *= gradient.dtype.type(square / before)
        direction += gradient
    return table


def _low_rank(leaf: Leaf, wanted: np.ndarray, mask: Mask, used: int, steps: Steps | None, tick: Tick) -> _Fitted:
    """Fit two factors, (terms, n) each, whose product ``left.T @ right`` is close to a matrix where it counts.

    Each round takes the present product for the elements that do not count, and the nearest matrix to that; the error
    of the others cannot grow.
    """
    terms: int = leaf.pool.terms  # type: ignore[attr-defined]
    n, least = len(wanted), math.inf
    left = right = np.empty((0, n), dtype=np.float32)
    for k in range(ROUNDS):
        del left, right
        left, right, norm = _nearest(
            wanted, min(n, terms), tick if k == 0 else functools.partial(_in_round, tick, k + 1)
        )
        error = off(wanted, mask, left, right)
        stalled = error >= (1.0 - STALL) * least
        least = error
        # Elements that do not count cost no more than their share of the whole.
        if stalled or terms >= n or (1.0 - used / n**2) * norm**2 <= STALL * error**2:
            break
    spare = terms - len(left)
    drawn = np.empty((0, n))
    if spare:
        drawn = standard(leaf.seed, 1, len(left) * n, terms * n, "normal").reshape(spare, n)
        # As large as the others, whose grid they share.
        drawn *= (
            math.sqrt(float(np.mean(np.square(right, dtype=np.float64)))) if len(right) else leaf.pool.sigma(leaf.tau)
        )
    _mix(left)
    _mix(right)
    whole: list[np.ndarray] = []
    chosen: tuple[float, ...] = ()
    if steps is not None and len(left):
        whole, chosen = round_factors(wanted, mask, left, right, steps, tick)
    elif steps is not None:
        step = _step_of_initial(leaf, drawn, steps)
        whole, chosen = [np.empty((0, n), dtype=np.int16)] * 2, (step, step)
    if not spare:
        return [left, right], whole, chosen
    left = np.concatenate([left, np.zeros((spare, n), dtype=np.float32)])
    right = np.concatenate([right, drawn.astype(np.float32)])
    if steps is not None:
        of_drawn = np.clip(np.rint(drawn / chosen[1]), -steps.top, steps.top).astype(np.int16)
        whole = [np.concatenate([whole[0], np.zeros_like(of_drawn)]), np.concatenate([whole[1], of_drawn])]
    return [left, right], whole, chosen


def _step_of_initial(leaf: Leaf, drawn: np.ndarray, steps: Steps) -> float:
    """Return a step for initial values of a right factor, whose left one is 0."""
    if leaf.pool.exponents is not None:
        return 2.0 ** (leaf.pool.exponents[1] - leaf.pool.grid_bits + (leaf.pool.gain or 0))
    return 2.0 ** math.ceil(math.log2(float(np.max(np.abs(drawn))) / steps.top))


def _in_round(tick: Tick, number: int, what: str, share: float) -> None:
    tick(f"{what}, round {number}", share)


def _mix(x: np.ndarray) -> None:
    """Turn the terms of a factor into one another, in place, so that all are about equally large.

    They share one grid. The same turn of the other factor leaves the product as it is.
    """
    from scipy.fft import dct

    if not len(x):
        return
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

    basis = interruptible(functools.partial(largest_eigenvectors, gram, rank), waiting=waiting)
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
