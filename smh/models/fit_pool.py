"""How the leaves of a pool are fitted together, each to what the others leave."""

from __future__ import annotations

import functools
import math

import numpy as np
from rich.progress import Progress, TaskID

from smh.backends.numpy_kernels import NumpyKernels
from smh.core.grid import grid
from smh.core.plan import Plan
from smh.core.pools.base import Leaf
from smh.models.fitters import ROUNDS, STALL, Used, Variables, fit_leaf

SMOOTH = NumpyKernels(smooth=True)
BLOCK = 1 << 16  # elements that are held in float64 at a time


def fit_pool(plan: Plan, rest: np.ndarray, used: Used, free: bool, bars: Progress) -> tuple[Variables, Variables]:
    """Return pool variables for the wanted virtual weights, unrounded and rounded to integers.

    Leaf by leaf, each is fitted to what the others leave, first without integers, then with them. ``rest`` is
    overwritten: it holds the wanted virtual weights less those of all leaves, and 0 where nothing is wanted.
    """
    leaves = list(plan.pool.leaves(plan.seed))
    if len(leaves) == 1:
        return _fit_part(leaves, 0, rest, used, free, True, bars)
    parts: list[Variables] = []
    found: list[list[Variables]] = []
    for integers in (False, True):
        best, least = parts, math.inf
        for _ in range(ROUNDS):
            parts = list(parts)
            for p, leaf in enumerate(leaves):
                here = rest[: leaf.pool.capacity]
                if p < len(parts):
                    _add(leaf, parts[p], here, 1.0)
                parts[p : p + 1] = [_fit_part(leaves, p, here, used, free, integers, bars)[integers]]
                _add(leaf, parts[p], here, -1.0)
                _clear(rest, used)
            error = math.sqrt(dot(rest, rest))
            stalled = error >= (1.0 - STALL) * least
            if error < least:
                best, least = parts, error
            if stalled:
                break
        found.append(best)
    unrounded, rounded = ({name: x for part in each for name, x in part.items()} for each in found)
    return unrounded, rounded


def _fit_part(
    leaves: list[Leaf], number: int, wanted: np.ndarray, used: Used, free: bool, integers: bool, bars: Progress
) -> tuple[Variables, Variables]:
    """Return the variables of a leaf by their names in the plan, unrounded and, if wanted, rounded to integers."""
    leaf = leaves[number]
    task = bars.add_task(f"fitting the pool, part {number + 1} of {len(leaves)}", total=1.0)
    found = fit_leaf(leaf, wanted, used, free, integers, functools.partial(_tick, bars, task))
    bars.update(task, completed=1.0)
    unrounded, rounded = ({f"pool/{leaf.path}{name}": x for name, x in each.items()} for each in found)
    return unrounded, rounded


def _tick(bars: Progress, task: TaskID, what: str, share: float) -> None:
    description = bars.tasks[task].description.partition(":")[0]
    bars.update(task, description=f"{description}: {what}", completed=min(share, 1.0))


def _add(leaf: Leaf, part: Variables, x: np.ndarray, factor: float) -> None:
    """Add the virtual weights of a leaf, times a factor."""
    pool = leaf.pool
    grids = {
        name: grid(SMOOTH, part[f"pool/{leaf.path}{name}"], pool.grid_bits, 30, 30) for name in pool.local_shapes()
    }
    for start in range(0, len(x), BLOCK):
        stop = min(start + BLOCK, len(x))
        x[start:stop] += np.float32(factor) * np.asarray(pool.virtual_weights(SMOOTH, grids, start, stop, leaf.seed))


def _clear(x: np.ndarray, used: Used) -> None:
    """Set what does not count to 0."""
    for start in range(0, len(x), BLOCK):
        counts = used.mask(start, min(start + BLOCK, len(x)))
        if counts is not None:
            x[start : start + BLOCK][~counts] = 0.0


def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product of two vectors, added in float64."""
    blocks = range(0, x.size, BLOCK)
    return sum(float(x[k : k + BLOCK].astype(np.float64) @ y[k : k + BLOCK]) for k in blocks)
