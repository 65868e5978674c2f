"""Compressing pytrees of parameters, and building their weights by residency."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from smh.backends.jax.adapter import backend
from smh.backends.jax.derivatives import Arrays, fast_pullback, with_pullback
from smh.backends.jax.layers import with_roles
from smh.backends.jax.pytrees import Compressed, Structure, describe, flatten, register_with_flax
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.adapter import ModelAdapter, Values
from smh.models.compression import Compression, ModelTensor

_MOST_CACHED = 4
_cache: dict[Any, tuple[tuple[weakref.ref[Any], ...], Arrays]] = {}


class JaxModels(ModelAdapter):
    """Pytrees of arrays, which never change."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how parameters were compressed."""
        return model.structure.compression if isinstance(model, Compressed) else None

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all leaves that are arrays, once each."""
        return with_roles(model, describe(flatten(model)[1]))

    def values(self, model: Any, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return the values of all float32 arrays, but of those that are traced or were donated."""
        named = flatten(model)[1]
        free = {tensor.name: named[tensor.name] for tensor in describe(named) if not tensor.kept}
        return Values({name: x for name, x in free.items() if _is_readable(x)}, np.asarray)

    def install(self, model: Any, compression: Compression) -> Compressed:
        """Return a pytree of what is kept, without variables."""
        treedef, named = flatten(model)
        generated = {tensor.name for tensor in compression.plan.tensors}
        tensors = tuple(_untied(compression.tensors, generated))
        owner = {name: tensor.name for tensor in tensors for name in (tensor.name, *tensor.aliases)}
        constants = tuple((name, type(x), x) for name, x in named.items() if name not in owner)
        for name, kind, x in constants:
            try:
                hash(x)
            except TypeError as error:
                what = f"the leaf {name!r} must be an array, or hashable, so that JAX can take it as static"
                raise PlanError(f"{what}; got {kind.__name__}") from error
        register_with_flax()
        kept = {tensor.name: named[tensor.name] for tensor in tensors if tensor.name not in generated}
        names = tuple(owner.get(name, name) for name in named)
        compression = dataclasses.replace(compression, tensors=tensors)
        return Compressed({}, kept, Structure(compression, treedef, names, constants))

    def variables(self, model: Compressed) -> dict[str, Array]:
        """Return the variables."""
        return model.variables

    def kept(self, model: Any, plan: Plan) -> dict[str, Array]:
        """Return all arrays that are not generated, random keys by their words."""
        if not isinstance(model, Compressed):
            model = self.install(model, Compression(plan, self.tensors(model)))
        return {name: _words(x) if _is_key(x) else x for name, x in model.kept.items()}

    def assign(
        self, model: Compressed, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
    ) -> Compressed:
        """Return parameters with the types and devices of these, and other values."""
        return dataclasses.replace(
            model,
            variables={name: _placed(x, model.variables.get(name)) for name, x in variables.items()},
            kept={name: _placed(kept[name], x) if name in kept else x for name, x in model.kept.items()},
        )

    def materialize(self, model: Compressed) -> Any:
        """Return the pytree that was compressed, with generated weights in their places."""
        plan, variables, fast = model.plan, model.variables, model.structure.compression.fast
        if model.residency == "layer":
            apart = _apart_fast if fast else _apart
            weights = apart(plan, tuple(tensor.name for tensor in plan.tensors), variables)
        else:
            weights = (_cached if model.residency == "cached" else backend.materialize)(plan, variables, fast=fast)
        return model.structure.restored({**model.kept, **weights})

    def built(self, model: Compressed) -> AbstractContextManager[None]:
        """Refuse: nobody can see when such a model is used."""
        raise PlanError(
            "smh.built is for models that build weights themselves; a compressed pytree builds them where you call "
            f"smh.materialize(params): call it once, and use what it returns; got {model!r}"
        )


adapter = JaxModels()


def _untied(tensors: tuple[ModelTensor, ...], generated: set[str]) -> Iterator[ModelTensor]:
    """List a kept array once for each place that holds it: JAX does not tie such places."""
    for tensor in tensors:
        if tensor.name in generated:
            yield tensor
        else:
            for name in (tensor.name, *tensor.aliases):
                yield dataclasses.replace(tensor, name=name, aliases=())


def _is_readable(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and not (isinstance(x, jax.Array) and x.is_deleted())


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _words(key: jax.Array) -> Any:
    """Return what files hold of a random key; of one that was donated, there is only the shape."""
    return jax.eval_shape(jax.random.key_data, key) if key.is_deleted() else jax.random.key_data(key)


def _placed(x: np.ndarray, like: Any) -> Any:
    """Return values as an array of the type, kind and place of another, or where JAX places arrays."""
    if like is None:
        return backend.asarray(x)
    if isinstance(like, (np.ndarray, np.generic)):
        return np.asarray(x, dtype=like.dtype)
    place = like.sharding if like.committed else None
    if _is_key(like):
        return jax.device_put(jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)), place)
    return backend.asarray(x.astype(like.dtype, copy=False), place)


def _cached(plan: Plan, variables: Arrays, *, fast: bool) -> Arrays:
    """Return the weights of the same arrays as before, which cannot have changed, or build them.

    Nothing is kept longer than the arrays that it was built from, nor what was built by a transformation.
    """
    if any(isinstance(x, jax.core.Tracer) for x in variables.values()):
        return backend.materialize(plan, variables, fast=fast)
    key = plan, frozenset((name, id(x)) for name, x in variables.items())
    _, weights = _cache.get(key, ((), {}))
    if not weights or any(x.is_deleted() for x in (*variables.values(), *weights.values())):
        weights = backend.materialize(plan, variables, fast=fast)
        if not any(isinstance(x, jax.core.Tracer) for x in weights.values()):
            # An array that dies takes the entry along before another one can get its id.
            refs = tuple(weakref.ref(x, lambda _: _cache.pop(key, None)) for x in variables.values())
            _cache.pop(key, None)
            _cache[key] = refs, weights
            for oldest in list(_cache)[:-_MOST_CACHED]:
                _cache.pop(oldest, None)
    return dict(weights)


def _build_apart(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Arrays:
    """Return weights, each built by a call of its own; their gradients are built together."""
    return {name: backend.materialize(plan, variables, [name])[name] for name in names}


_apart = with_pullback(_build_apart, backend.vjp)
_apart_fast = with_pullback(_build_apart, fast_pullback)
