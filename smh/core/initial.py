"""Initial variables, equal on every machine (specification, section 8).

All values are computed on the host in NumPy, in float64, with + - * / and square roots only. IEEE 754 rounds these
correctly; the last bit of other functions depends on the library.
"""

from __future__ import annotations

import math

import numpy as np

from smh.core.checks import check_one_of, whole_number
from smh.core.hashing import HASH_STREAMS, key, words
from smh.core.plan import Plan

_DRAWS = {"normal": 12, "uniform": 1}
_BLOCK = 1 << 18


def initial_variables(plan: Plan, distribution: str = "normal", init_seed: int | None = None) -> dict[str, np.ndarray]:
    """Return initial values, float32, of all variables of a plan, in order.

    Parameters
    ----------
    plan : Plan
        The plan.
    distribution : str
        ``"normal"`` (a sum of twelve uniform words) or ``"uniform"``. Both give virtual weights unit variance.
    init_seed : int, optional
        The values are those of a plan with this seed, by default the plan's own. Hash functions do not change.

    Raises
    ------
    PlanError
        For an unknown distribution, or a seed that is not in ``[0, 2**32)``.

    Examples
    --------
    >>> from smh.core.plan import Plan
    >>> plan = Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> {name: x.shape for name, x in initial_variables(plan).items()}
    {'pool/left': (10, 2), 'pool/right': (2, 10), 'scale/fc': ()}
    """
    check_one_of("distribution", distribution, _DRAWS)
    seed = plan.seed if init_seed is None else whole_number("init_seed", init_seed, 0, 2**32 - 1)
    variables = {}
    for leaf in plan.pool.leaves(seed):
        sigma, shrink = leaf.pool.sigma(leaf.tau), np.float32(2.0 ** -(leaf.pool.gain or 0))
        for stream, (name, shape) in enumerate(leaf.pool.local_shapes().items()):
            flat = np.empty(math.prod(shape), dtype=np.float32)
            for start in range(0, flat.size, _BLOCK):
                z = standard(leaf.seed, stream, start, min(start + _BLOCK, flat.size), distribution)
                flat[start : start + z.size] = (z * sigma).astype(np.float32) * shrink
            variables[f"pool/{leaf.path}{name}"] = flat.reshape(shape)
    for tensor in plan.tensors:
        if tensor.learn_scale:
            variables[tensor.scale_variable] = np.asarray(tensor.initial_scale * 2.0**tensor.kappa, dtype=np.float32)
    return variables


def standard(seed: int, stream: int, start: int, stop: int, distribution: str) -> np.ndarray:
    """Return values of mean 0 and variance 1 for elements ``start`` to ``stop`` of a stream, in float64."""
    i = np.arange(start, stop, dtype=np.uint32)
    total = np.zeros(stop - start)
    for j in range(_DRAWS[distribution]):
        word = words(np, key(seed, HASH_STREAMS + 16 * stream + j), i)
        total += ((word >> 8).astype(np.float64) + 0.5) * 2.0**-24
    return total - 6.0 if distribution == "normal" else (2.0 * total - 1.0) * math.sqrt(3.0)
