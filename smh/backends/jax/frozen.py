"""Frozen parameters: the pool as integers and exponents, for inference only."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from smh.backends.jax.derivatives import Arrays, closed, gathered, with_pullback
from smh.backends.jax.kernels import JaxKernels
from smh.backends.jax.narrow import has_float64, kernels
from smh.core import generate
from smh.core.grid import LARGEST, LEAST, Grid
from smh.core.integers import stored_arrays, unpacked
from smh.core.plan import Plan
from smh.errors import PlanError, VariableError
from smh.files.integers import Integers

_EXPONENT = "exponent/"
_POWERS = np.ldexp(np.float32(1), np.arange(LEAST, LARGEST + 1))


def arrays_of(integers: Integers, variables: Mapping[str, Any]) -> Arrays:
    """Return what frozen parameters have instead of a pool, integers and exponents, where variables are.

    Exponents are arrays, int8, so that models with several exponents can be stacked. Zeros have the exponent 0.
    """
    found: Arrays = {}
    for name, q in integers.arrays.items():
        exponent, like = _EXPONENT + name.removeprefix("pool/"), variables.get(name)
        e = integers.exponents[name.removeprefix("pool/")] or 0
        found |= {name: _placed(q, like), exponent: _placed(np.asarray(e, dtype=np.int8), like)}
    return found


def _placed(x: np.ndarray, like: Any) -> Any:
    """Return an array where another one is. One of another shape is whole on all devices of a mesh."""
    if isinstance(like, (np.ndarray, np.generic)):
        return x
    if like is None:
        return jax.device_put(x)
    place = like.sharding if getattr(like, "committed", True) else None
    if isinstance(place, NamedSharding) and x.shape != tuple(like.shape):
        place = NamedSharding(place.mesh, PartitionSpec())
    return jax.device_put(x, place)


def check(plan: Plan, arrays: Mapping[str, Any]) -> None:
    """Raise :class:`~smh.VariableError` unless the arrays of frozen parameters have the types and shapes of a plan."""
    for name, (dtype, shape) in _types(plan).items():
        want = f"{name!r} of frozen parameters must have the type {dtype} and the shape {shape}"
        if name not in arrays:
            raise VariableError(f"{want}; it is missing")
        x = arrays[name]
        if not isinstance(x, jax.Array) or str(x.dtype) != dtype or tuple(x.shape) != shape:
            raise VariableError(f"{want}; got {jax.typeof(x) if isinstance(x, jax.Array) else type(x).__name__}")


def build(plan: Plan, names: tuple[str, ...], arrays: Arrays) -> Any:
    """Return the named weights as one compiled program, without gradients."""
    return _compiled(plan, names, has_float64(), arrays)


def values(plan: Plan, arrays: Arrays) -> Arrays:
    """Return the variables, float32, that have these integers."""
    check(plan, arrays)
    return dict(_values(plan, arrays))


@functools.partial(jax.jit, static_argnums=0)
def _values(plan: Plan, arrays: Arrays) -> Any:
    grids = _grids(kernels(), plan, arrays)
    pool = {f"pool/{name}": one.integers * one.unit + 0.0 for name, one in grids.items()}
    return {name: pool[name] if name in pool else arrays[name] for name in plan.variable_shapes}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(plan: Plan, names: tuple[str, ...], _: bool, arrays: Arrays) -> Any:
    return _materialize(plan, names, jax.tree.map(gathered, arrays))


def _build(plan: Plan, names: tuple[str, ...], arrays: Arrays) -> Any:
    def weights(arrays: Arrays) -> Arrays:
        grids = _grids(kernels(), plan, arrays)
        return generate.build(kernels(), plan, grids, arrays, plan.select(names))

    return closed(weights)(arrays)


def _grids(kernels: JaxKernels, plan: Plan, arrays: Arrays) -> dict[str, Grid]:
    integers, grids = unpacked(kernels, plan, arrays), {}
    for leaf in plan.pool.leaves(plan.seed):
        for name in leaf.pool.local_shapes():
            e, q = arrays[_EXPONENT + leaf.path + name], integers[leaf.path + name]
            power = jnp.asarray(_POWERS)[e.astype(jnp.int32) - LEAST]
            grids[leaf.path + name] = Grid(q.astype(jnp.float32), power * 2.0**-leaf.pool.grid_bits, power)
    return grids


def _types(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    pool = stored_arrays(plan)
    exponents = {_EXPONENT + name.removeprefix("pool/"): ("int8", ()) for name in pool}
    scales = {name: ("float32", shape) for name, shape in plan.variable_shapes.items() if name not in pool}
    return {**pool, **exponents, **scales}


def _refuse(plan: Plan, arrays: Arrays, cotangents: Arrays) -> NoReturn:
    raise PlanError(
        "frozen parameters have no gradients: they hold the integers of their pool, for inference only. Differentiate "
        "with respect to other arguments, or train the parameters that were frozen"
    )


_materialize = with_pullback(_build, _refuse)
