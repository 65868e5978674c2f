"""The core as differentiable functions of JAX: first derivatives exact, second ones smooth (section 7).

Arrays of a plan are tuples here, in the plan's order. The core needs float64 and int64, which are switched on around it
and nowhere else: the user's own setting stays as it is. JAX must then not look into the core with 64 bits off, or it
would batch and differentiate in 32: so every function brings its derivative, and is closed to batching.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from smh.backends.jax.kernels import JaxKernels
from smh.backends.protocol import Function
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan

KERNELS = JaxKernels()
_SMOOTH = JaxKernels(smooth=True)
Arrays = tuple[Array, ...]


@functools.partial(jax.jit, static_argnums=(0, 1))
def build(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Arrays:
    """Return the named weights, as one compiled program."""
    weights: Arrays = _materialize(plan, names, tuple(map(gathered, variables)))
    return weights


@functools.partial(jax.jit, static_argnums=0)
def without_cotangents(plan: Plan, variables: Arrays) -> Arrays:
    """Return the gradients where no weight has a cotangent: zeros times variables that need not be finite."""
    gradients: Arrays = _closed(functools.partial(_core_vjp, plan, ()))(tuple(map(gathered, variables)), ())
    return gradients


@functools.partial(jax.jit, static_argnums=(0, 1))
def indices(plan: Plan, count: int, start: Array) -> dict[str, Array]:
    """Return the hash index of ``count`` virtual weights, int64."""
    with jax.enable_x64(True):
        return generate.indices(KERNELS, plan, start + jnp.arange(count, dtype=jnp.int64))


def gathered(x: Array) -> Array:
    """Return an array whole on every device, where its type says how it is spread: the core works on whole ones."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def as_cotangent(x: Array, weight: Array) -> Array:
    """Return a cotangent placed as its weight is: whole, and in ``jax.shard_map`` varying with the same devices."""
    # The compiler takes the choice away; until then it gives both the same type.
    return jnp.where(jnp.ones_like(weight, dtype=bool), gathered(x), weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _materialize(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Arrays:
    weights: Arrays = _closed(functools.partial(_core_weights, plan, names))(variables)
    return weights


def _keep_variables(plan: Plan, names: tuple[str, ...], variables: Any) -> tuple[Arrays, Arrays]:
    values = tuple(x.value for x in variables)
    return _materialize(plan, names, values), values


def _pull(plan: Plan, names: tuple[str, ...], variables: Arrays, cotangents: Any) -> tuple[Arrays]:
    """Return the gradients of all variables; an output that was not used has a symbolic zero."""
    given = {name: g for name, g in zip(names, cotangents, strict=True) if not isinstance(g, SymbolicZero)}
    exact = functools.partial(_core_vjp, plan, tuple(given))
    smooth = functools.partial(_smooth_vjp, plan, tuple(given))
    return (_differentiable(exact, smooth)(variables, tuple(given.values())),)


_materialize.defvjp(_keep_variables, _pull, symbolic_zeros=True)


def _core_weights(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Arrays:
    weights = generate.materialize(KERNELS, plan, dict(zip(plan.variable_shapes, variables, strict=True)), names)
    return tuple(weights.values())


def _core_vjp(plan: Plan, names: tuple[str, ...], variables: Arrays, cotangents: Arrays) -> Arrays:
    named = dict(zip(plan.variable_shapes, variables, strict=True))
    return tuple(generate.vjp(KERNELS, plan, named, dict(zip(names, cotangents, strict=True))).values())


def _smooth_vjp(plan: Plan, names: tuple[str, ...], variables: Arrays, cotangents: Arrays) -> Arrays:
    """Return the same without grids, at the values on the grid, where rounding has the derivative 1."""
    named = dict(zip(plan.variable_shapes, variables, strict=True))
    rounded = generate.on_grid(KERNELS, plan, jax.lax.stop_gradient(named))
    named = {name: x + jax.lax.stop_gradient(rounded[name] - x) for name, x in named.items()}
    return tuple(generate.vjp(_SMOOTH, plan, named, dict(zip(names, cotangents, strict=True))).values())


def _differentiable(fn: Function, smooth: Function) -> Function:
    """Return ``fn`` with the derivatives of ``smooth``, of every order."""
    run = jax.custom_vjp(_closed(fn))

    def keep(*args: Any) -> tuple[Any, Any]:
        return run(*args), args

    def pullback(args: Any, cotangents: Any) -> Any:
        return jax.vjp(smooth, *args)[1](cotangents)

    # Made differentiable only when it is called: there is no highest order.
    run.defvjp(keep, lambda args, cotangents: _differentiable(pullback, pullback)(args, cotangents))
    return cast(Function, run)


def _closed(fn: Function) -> Function:
    """Return ``fn`` in 64 bits, and closed to batching: the elements of a batch run one after another."""

    def run(*args: Any) -> Any:
        with jax.enable_x64(True):
            return fn(*args)

    return cast(Function, sequential_vmap(run))
