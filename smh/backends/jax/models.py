"""Compressing pytrees of parameters: what is generated gets a name, all else is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from smh.backends.jax import flax_state, residency
from smh.backends.jax.adapter import backend
from smh.backends.jax.pytrees import Compressed, Structure, describe, flatten
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.adapter import ModelAdapter
from smh.models.compression import Compression, ModelTensor


class JaxModels(ModelAdapter):
    """Pytrees of arrays, which never change."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how parameters were compressed."""
        return model.structure.compression if isinstance(model, Compressed) else None

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all leaves that are arrays, once each."""
        return tuple(describe(flatten(model)[1]))

    def values(self, model: Any, plan: Plan | None = None) -> dict[str, np.ndarray]:
        """Return the values of all float32 arrays."""
        named = flatten(model)[1]
        return {tensor.name: np.asarray(named[tensor.name]) for tensor in describe(named) if not tensor.kept}

    def install(self, model: Any, compression: Compression) -> Compressed:
        """Return a pytree of what is kept, without variables."""
        treedef, named = flatten(model)
        tensors = tuple(_untied(compression.tensors, compression.plan))
        owner = {name: tensor.name for tensor in tensors for name in (tensor.name, *tensor.aliases)}
        structure = Structure(
            compression=dataclasses.replace(compression, tensors=tensors),
            treedef=treedef,
            names=tuple(owner.get(name, name) for name in named),
            constants=tuple((name, type(x), _hashable(name, x)) for name, x in named.items() if name not in owner),
        )
        flax_state.register(Compressed)
        return Compressed(variables={}, kept=_kept(named, tensors, compression.plan), structure=structure)

    def variables(self, model: Compressed) -> dict[str, Array]:
        """Return the variables."""
        return model.variables

    def kept(self, model: Any, plan: Plan) -> dict[str, Array]:
        """Return all arrays that are not generated, random keys by their words."""
        if isinstance(model, Compressed):
            kept = model.kept
        else:
            named = flatten(model)[1]
            kept = _kept(named, _untied(describe(named), plan), plan)
        return {name: _words(x) if _is_key(x) else x for name, x in kept.items()}

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
        structure = model.structure
        constants = {name: value for name, _, value in structure.constants}
        found = {**constants, **model.kept, **residency.weights(structure.compression, model.variables)}
        return jax.tree.unflatten(structure.treedef, [found[name] for name in structure.names])


adapter = JaxModels()


def _untied(tensors: Iterable[ModelTensor], plan: Plan) -> Iterator[ModelTensor]:
    """Give each place of an array that is kept a tensor of its own: to JAX, such places are not tied."""
    generated = {tensor.name for tensor in plan.tensors}
    for tensor in tensors:
        if tensor.name in generated:
            yield tensor
        else:
            for name in (tensor.name, *tensor.aliases):
                yield dataclasses.replace(tensor, name=name, aliases=())


def _kept(named: Mapping[str, Any], untied: Iterable[ModelTensor], plan: Plan) -> dict[str, Any]:
    generated = {tensor.name for tensor in plan.tensors}
    return {tensor.name: named[tensor.name] for tensor in untied if tensor.name not in generated}


def _hashable(name: str, leaf: Any) -> Any:
    try:
        hash(leaf)
    except TypeError as error:
        what = f"the leaf {name!r} must be an array, or hashable, so that JAX can take it as static"
        raise PlanError(f"{what}; got {type(leaf).__name__}") from error
    return leaf


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
