"""When the weights of a compressed pytree are built: all at once, once for the same arrays, or each by itself."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from smh.backends.jax.adapter import backend
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.models.compression import Compression

Arrays = dict[str, Array]
MOST_CACHED = 4
cache: dict[Any, tuple[tuple[weakref.ref[Any], ...], Arrays]] = {}


def weights(compression: Compression, variables: Arrays) -> Arrays:
    """Return the weights of compressed parameters; their bits are those of every other residency."""
    build = {"full": backend.materialize, "cached": _cached, "layer": _one_by_one}[compression.residency]
    found: Arrays = build(compression.plan, variables)
    return found


def _cached(plan: Plan, variables: Arrays) -> Arrays:
    """Return the weights of the same arrays as before, which cannot have changed, or build them.

    Nothing is kept longer than the arrays that it was built from, nor what was built by a transformation.
    """
    if any(isinstance(x, jax.core.Tracer) for x in variables.values()):
        return backend.materialize(plan, variables)
    key = plan, frozenset((name, id(x)) for name, x in variables.items())
    _, found = cache.get(key, ((), {}))
    if not found or any(x.is_deleted() for x in (*variables.values(), *found.values())):
        found = backend.materialize(plan, variables)
        if not any(isinstance(x, jax.core.Tracer) for x in found.values()):
            # An array that dies takes the entry along before another one can get its id.
            refs = tuple(weakref.ref(x, lambda _: cache.pop(key, None)) for x in variables.values())
            cache.pop(key, None)
            cache[key] = refs, found
            for oldest in list(cache)[:-MOST_CACHED]:
                cache.pop(oldest, None)
    return dict(found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_by_one(plan: Plan, variables: Arrays) -> Arrays:
    """Return all weights, each built by a call of its own, with the gradients of those that are built together."""
    return {tensor.name: backend.materialize(plan, variables, [tensor.name])[tensor.name] for tensor in plan.tensors}


def _keep_variables(plan: Plan, variables: Any) -> tuple[Arrays, Arrays]:
    values = {name: x.value for name, x in variables.items()}
    return _one_by_one(plan, values), values


def _pull(plan: Plan, variables: Arrays, cotangents: Arrays) -> tuple[Arrays]:
    given = {name: g for name, g in cotangents.items() if not isinstance(g, SymbolicZero)}
    return (backend.vjp(plan, variables, given),)


_one_by_one.defvjp(_keep_variables, _pull, symbolic_zeros=True)
