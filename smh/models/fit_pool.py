"""Fitting a pool: variables whose virtual weights are close to given ones, unrounded and rounded to integers.

A single pool reaches the optimum before rounding. The parts of a sum are fitted in turns, each to what the others
leave. Which virtual weights count is an array of booleans; the others are free, and are overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core.grid import Grid, grid
from smh.core.initial import standard
from smh.core.plan import Plan
from smh.core.pools import Hash, Kronecker, Matmul, Pool
from smh.core.pools.base import Leaf
from smh.models.patience import Tick, largest_eigenvectors, track
from smh.models.rounding import BLOCK, ROWS, Steps, distance, dot, round_factors

KERNELS = NumpyKernels()
SMOOTH = NumpyKernels(smooth=True)
_ROUNDS = 8  # of filling in unused virtual weights, and of refitting the parts of a sum, at most
_STALL = 1e-3  # what one more round must take off the error, relatively
_SPARE = 2.0**-19  # singular values this small, relative to the largest, are rounding errors
_FEW = 1 << 16  # entries of a table that is fitted in float64
_STEPS = 400  # of conjugate gradients, at most

Grids = dict[str, Grid]
_Fitted = tuple[list[np.ndarray], list[np.ndarray]]
"""The arrays of a leaf, float32: without gain, and rounded; no rounded ones where the others will do."""


def fit_pool(plan: Plan, rest: np.ndarray, used: np.ndarray, free: bool, tick: Tick) -> Iterator[Grids]:
    """Yield the arrays of a pool for the wanted virtual weights, which are overwritten: unrounded, then rounded.

    Leaf by leaf, each is fitted to the rest that the others leave, first without integers, then with them.
    """
    leaves = list(plan.pool.leaves(plan.seed))

    def fit(number: int, integers: bool) -> list[Grids]:
        part = f", part {number + 1} of {len(leaves)}" if len(leaves) > 1 else ""
        return fit_leaf(
            leaves[number],
            rest,
            used,
            free,
            integers,
            lambda what, share: tick(f"fitting the pool{part}: {what}", share),
        )

    if len(leaves) == 1:
        both = fit(0, integers=True)
        del rest, used
        return (yield from both)
    parts: list[Grids] = [{} for _ in leaves]
    for integers in (False, True):
        best, least = parts, math.inf
        for turn in range(_ROUNDS):
            for number, leaf in enumerate(leaves):
                if integers or turn:
                    _add(leaf, parts[number], 1.0, rest)
                parts[number] = {}
                parts[number] = fit(number, integers)[integers]
                _add(leaf, parts[number], -1.0, rest)
                rest[~used] = 0.0
            error, before = math.sqrt(dot(rest, rest)), least
            if integers and error < least:  # without integers no turn is worse than the one before
                best = list(parts)
            least = min(error, least)
            if error >= (1.0 - _STALL) * before:
                break
        yield {name: one for part in best for name, one in part.items()}


def _add(leaf: Leaf, grids: Grids, factor: float, out: np.ndarray) -> None:
    """Add the virtual weights of a leaf, times a factor."""
    for start in range(0, leaf.pool.capacity, BLOCK):
        stop = min(start + BLOCK, leaf.pool.capacity)
        v = leaf.pool.virtual_weights(SMOOTH, grids, start, stop, leaf.seed, leaf.path)
        out[start:stop] += np.float32(factor) * np.asarray(v)


def fit_leaf(leaf: Leaf, wanted: np.ndarray, used: np.ndarray, free: bool, integers: bool, tick: Tick) -> list[Grids]:
    """Return the arrays of a leaf: unrounded, and on their grids, as integers only if they are asked for.

    Where ``used`` is false, ``wanted`` holds a first guess and is overwritten. ``free`` is that of :class:`Steps`.
    """
    pool, shapes = leaf.pool, leaf.pool.local_shapes()
    steps, here = Steps(pool, free) if integers else None, slice(pool.capacity)
    plain, rounded = FITTERS[type(pool)](leaf, wanted[here], used[here], steps, tick)
    for x in plain:
        x *= np.float32(2.0 ** -(pool.gain or 0))
    smooth = [grid(SMOOTH, np.ascontiguousarray(x), 0, 0, 0) for x in plain]
    whole = [grid(KERNELS, x, pool.grid_bits, 30, 30, pool.exponent(k)) for k, x in enumerate(rounded or plain)]
    return [
        {leaf.path + name: x._replace(integers=x.integers.reshape(shape)) for (name, shape), x in named}
        for named in (zip(shapes.items(), found, strict=True) for found in (smooth, whole))
    ]


def _fit_hash(leaf: Leaf, wanted: np.ndarray, used: np.ndarray, steps: Steps | None, tick: Tick) -> _Fitted:
    """Fit the table of least squares; with one hash function its entries are the means of buckets."""
    pool: Any = leaf.pool
    size, length = pool.hashes * pool.size, BLOCK // 4 // pool.hashes
    exact = pool.hashes == 1 or size <= _FEW
    starts = [k for k in range(0, len(wanted), length) if used[k : k + length].any()]

    def terms(start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the index and the sign of every term of some virtual weights."""
        i = start + np.flatnonzero(used[start : start + length])
        return pool.indices(KERNELS, i, leaf.seed)["table"], pool.signs(KERNELS, i, leaf.seed).astype(np.int8)

    def add(out: np.ndarray, columns: np.ndarray, signs: np.ndarray, x: np.ndarray) -> None:
        """Add values to the entries of their terms; NumPy is fast if all are flat and of one type."""
        np.add.at(out, columns.reshape(-1), (signs * x[:, None]).astype(out.dtype).reshape(-1))

    def product(table: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the Gram matrix of the table times a vector, and the square that it makes with the vector."""
        image, square = np.zeros_like(table), 0.0
        for columns, signs in map(terms, starts):
            x = np.einsum("kh,kh->k", table[columns], signs, dtype=np.float64)
            square += float(x @ x)
            add(image, columns, signs, x)
        return image, square

    total, energy = np.zeros(size, dtype=np.float64 if exact else np.float32), 0.0
    counts = np.zeros(size if pool.hashes == 1 else 0, dtype=np.int32)
    for start in track(tick, "hash indices", starts):
        x, (columns, signs) = wanted[start : start + length][used[start : start + length]], terms(start)
        energy += dot(x, x)
        add(total, columns, signs, x)
        if pool.hashes == 1:
            np.add.at(counts, columns.reshape(-1), np.int32(1))
    if pool.hashes == 1:
        table = np.divide(total, counts, out=total, where=counts > 0).astype(np.float32)
    else:
        table = _conjugate_gradients(product, total, (1e-13 if exact else 1e-9) * energy, tick).astype(np.float32)
    del total, counts
    if steps is None:
        return [table], []
    step = steps.best(table[None], np.ones(1), 1.0)
    return [table], steps.variables([steps.round(table / np.float32(step))], [step])


def _conjugate_gradients(
    product: Callable[[np.ndarray], tuple[np.ndarray, float]], gradient: np.ndarray, least: float, tick: Tick
) -> np.ndarray:
    """Return the solution of least norm of normal equations, whose right side is given and overwritten.

    The last step is the first that takes less than ``least`` off the squared error.
    """
    table, direction = np.zeros_like(gradient), gradient.copy()
    square, share, first = float(gradient @ gradient), 0.0, 0.0
    for _ in range(_STEPS):
        tick("least squares", share)
        image, curvature = product(direction)
        gained = square * square / curvature if curvature > 0.0 else 0.0
        if gained <= least:
            break
        first = first or gained
        share = max(share, 1.0 - math.log(gained / least) / math.log(first / least))
        step = gradient.dtype.type(square / curvature)
        gradient -= np.multiply(image, step, out=image)
        table += np.multiply(direction, step, out=image)
        del image
        square, before = float(gradient @ gradient), square
        direction *= gradient.dtype.type(square / before)
        direction += gradient
    return table


def _fit_factors(leaf: Leaf, wanted: np.ndarray, used: np.ndarray, steps: Steps | None, tick: Tick) -> _Fitted:
    """Fit the nearest matrix of some rank (Eckart and Young), which rearranged is a sum of Kronecker products.

    Terms that it does not need become 0 on the left, and on the right like initial ones, but as large as the others,
    whose grid they share.
    """
    pool: Any = leaf.pool
    n, terms = pool.side, pool.terms
    matrix, mask = wanted.reshape(n, n), used.reshape(n, n)
    _rearrange(pool, wanted, used)
    left, right = _low_rank(matrix, mask, min(n, terms), tick)
    spare = standard(leaf.seed, 1, len(left) * n, terms * n, "normal").reshape(-1, n)
    spare *= math.sqrt(dot(right.reshape(-1), right.reshape(-1)) / right.size) if len(right) else pool.sigma(leaf.tau)

    def with_spare(factors: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        return [np.vstack(pair, dtype=np.float32) for pair in zip(factors, (np.zeros_like(rows), rows), strict=True)]

    rounded = []
    if len(left):
        _mix(left)
        _mix(right)
        if steps is not None:
            q, chosen = round_factors(matrix, mask, left, right, steps, tick)
            rounded = steps.variables(with_spare(q, steps.round(spare / chosen[1])), chosen)
    plain = with_spare([left, right], spare)
    if isinstance(pool, Matmul):
        plain[0], rounded[:1] = plain[0].T, [x.T for x in rounded[:1]]
    _rearrange(pool, wanted, used)
    return plain, rounded


FITTERS: dict[type[Pool], Callable[..., _Fitted]] = {Matmul: _fit_factors, Kronecker: _fit_factors, Hash: _fit_hash}


def _rearrange(pool: Pool, *arrays: np.ndarray) -> None:
    """Swap the axes i2 and j1 of a Kronecker pool's virtual weights, in place and back (Van Loan and Pitsianis)."""
    if isinstance(pool, Kronecker):
        for x in arrays:
            for block in x.reshape([math.isqrt(pool.side)] * 4):
                block[...] = block.transpose(1, 0, 2).copy()


def _low_rank(matrix: np.ndarray, used: np.ndarray, rank: int, tick: Tick) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right, (terms, n), whose ``left.T @ right`` is close to a matrix where it is used.

    Each round fills in the present product elsewhere, and finds the nearest matrix; the error cannot grow.
    """
    error, left, right = math.inf, matrix[:0], matrix[:0]
    for number in range(_ROUNDS):
        del left, right
        left, right, norm = _nearest(matrix, rank, tick, f", round {number + 1}" if number else "")
        error, before = distance(matrix, used, left, right), error
        # Elements that are not used cost no more than their share of the whole.
        negligible = (1.0 - float(used.mean())) * norm**2 <= _STALL * error**2
        if error >= (1.0 - _STALL) * before or rank == len(matrix) or negligible:
            break
    return left, right


def _nearest(matrix: np.ndarray, rank: int, tick: Tick, suffix: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return left and right, (terms, n), of the nearest matrix of at most a rank, equally large, and the matrix's norm.

    Right singular vectors are the eigenvectors of ``matrix.T @ matrix``, and left ones follow by projection: at a
    fraction of the cost of a whole decomposition, the distance is above the least by 1e-8 of the matrix.
    """
    from scipy.linalg.blas import dsyrk

    n = len(matrix)
    gram = np.zeros((n, n), order="F")
    for row in track(tick, f"products of columns{suffix}", range(0, n, ROWS // 4)):
        block = matrix[row : row + ROWS // 4].astype(np.float64)
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=True)  # its upper triangle
        del block
    norm = math.sqrt(float(np.trace(gram)))
    basis = largest_eigenvectors(gram, rank, tick, f"eigenvectors{suffix}")
    del gram
    right = np.ascontiguousarray(basis, dtype=np.float32)
    del basis
    left = np.empty_like(right)
    for row in track(tick, f"projecting{suffix}", range(0, n, ROWS)):
        left[:, row : row + ROWS] = right @ matrix[row : row + ROWS].T
    singular = np.sqrt(np.einsum("kn,kn->k", left, left, dtype=np.float64))
    needed = singular > _SPARE * singular.max()
    root = np.sqrt(singular[needed]).astype(np.float32)[:, None]
    return left[needed] / root, right[needed] * root, norm


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
