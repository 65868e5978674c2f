"""The core as differentiable functions of JAX: first derivatives exact or fast, second ones smooth (section 7).

The core needs float64 and int64. They are enabled around the core only, or disabled for kernels without them, and the
user's setting does not change. JAX must not trace the core under another setting, because it would then batch and
differentiate in other types. Every function therefore defines its derivative, and runs batches one element at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from smh.backends.jax.kernels import JaxKernels
from smh.backends.jax.narrow import KERNELS, SINGLE, has_float64, kernels
from smh.backends.protocol import Function
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan

Arrays = dict[str, Array]


def build(plan: Plan, names: tuple[str, ...], variables: Arrays, *, fast: bool = False) -> Any:
    """Return the named weights as one compiled program, with exact or fast gradients."""
    return _compiled(plan, names, has_float64(), fast, variables)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compiled(plan: Plan, names: tuple[str, ...], _: bool, fast: bool, variables: Arrays) -> Any:
    return (_materialize_fast if fast else _materialize)(plan, names, jax.tree.map(gathered, variables))


def without_cotangents(plan: Plan, variables: Arrays) -> Any:
    """Return the gradients if no weight has a cotangent: zeros, also for variables that are not finite."""
    return closed(functools.partial(generate.vjp, kernels(), plan))(jax.tree.map(gathered, variables), {})


@functools.partial(jax.jit, static_argnums=(0, 1))
def indices(plan: Plan, count: int, start: Array) -> Arrays:
    """Return the hash index of ``count`` virtual weights, int64."""
    with jax.enable_x64(True):
        return generate.indices(KERNELS, plan, start + jnp.arange(count, dtype=jnp.int64))


def as_cotangent(x: Array, weight: Array) -> Array:
    """Return a cotangent placed like its weight: whole, and in ``jax.shard_map`` varying over the same devices."""
    # The compiler removes the choice, which until then gives both the same type.
    return jnp.where(jnp.ones_like(weight, dtype=bool), gathered(x), weight)


def gathered(x: Array) -> Array:
    """Return an array whole on every device if its type is sharded, because the core works on whole arrays."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def with_pullback(build: Function, pullback: Callable[[Plan, Arrays, Arrays], Arrays]) -> Any:
    """Return ``build(plan, names, variables)`` with gradients ``pullback(plan, variables, cotangents)``.

    Unused outputs have no cotangent.
    """
    run = jax.custom_vjp(build, nondiff_argnums=(0, 1))

    def keep(plan: Plan, names: tuple[str, ...], variables: Any) -> tuple[Arrays, Arrays]:
        values = {name: x.value for name, x in variables.items()}
        return run(plan, names, values), values

    def pull(plan: Plan, names: tuple[str, ...], variables: Arrays, cotangents: Arrays) -> tuple[Arrays]:
        return (pullback(plan, variables, {n: g for n, g in cotangents.items() if not isinstance(g, SymbolicZero)}),)

    run.defvjp(keep, pull, symbolic_zeros=True)
    return run


def _build(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Any:
    return closed(lambda variables: generate.materialize(kernels(), plan, variables, names))(variables)


def _pullback(plan: Plan, variables: Arrays, cotangents: Arrays) -> Any:
    smooth = functools.partial(_smooth_vjp, kernels(smooth=True), plan)
    return _differentiable(functools.partial(generate.vjp, kernels(), plan), smooth)(variables, cotangents)


def fast_pullback(plan: Plan, variables: Arrays, cotangents: Arrays) -> Any:
    """Return fast gradients, in float32."""
    smooth = functools.partial(_smooth_vjp, SINGLE, plan)
    return _differentiable(smooth, smooth)(variables, cotangents)


def _smooth_vjp(smooth: JaxKernels, plan: Plan, variables: Arrays, cotangents: Arrays) -> Arrays:
    """Return gradients without grids, at the values on the grid. Rounding has derivative 1."""
    rounded = generate.on_grid(kernels(), plan, jax.lax.stop_gradient(variables))
    on_grid = {name: rounded[name] + (x - jax.lax.stop_gradient(x)) for name, x in variables.items()}
    with np.errstate(over="ignore"):  # float32 has no 2**128, a bound that only exact gradients need
        return generate.vjp(smooth, plan, on_grid, cotangents)


_materialize = with_pullback(_build, _pullback)
_materialize_fast = with_pullback(_build, fast_pullback)


def _differentiable(fn: Function, smooth: Function) -> Any:
    """Return ``fn`` with the derivatives of ``smooth``, of every order."""
    run = jax.custom_vjp(closed(fn))

    def pullback(args: Any, cotangents: Any) -> Any:
        return jax.vjp(smooth, *args)[1](cotangents)

    # Made differentiable only when called, because there is no highest order.
    run.defvjp(lambda *args: (run(*args), args), lambda *pulled: _differentiable(pullback, pullback)(*pulled))
    return run


def closed(fn: Function) -> Any:
    """Return ``fn`` with 64-bit types enabled or disabled, running the elements of a batch one after another."""

    def run(*args: Any) -> Any:
        with jax.enable_x64(has_float64()):
            return fn(*args)

    return sequential_vmap(run)
