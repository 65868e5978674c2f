"""Compressing pytrees of parameters, and building their weights by residency."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from smh.backends.jax import frozen, libraries
from smh.backends.jax.adapter import backend
from smh.backends.jax.derivatives import Arrays, fast_pullback, with_pullback
from smh.backends.jax.layers import with_roles
from smh.backends.jax.narrow import kernels
from smh.backends.jax.pytrees import (
    ARRAYS,
    Compressed,
    Structure,
    check_framework,
    describe,
    flatten,
    place_of_compressed,
)
from smh.backends.jax.trained import is_a
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.core.rate import kept_rate, rate
from smh.errors import PlanError
from smh.files.checkpoint import Checkpoint
from smh.files.integers import Integers
from smh.models.adapter import ModelAdapter, Values
from smh.models.compression import Compression, ModelTensor

_MOST_CACHED = 4
_cache: dict[Any, tuple[tuple[weakref.ref[Any], ...], Arrays]] = {}


class JaxModels(ModelAdapter):
    """Pytrees of arrays, which never change."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how parameters were compressed."""
        if isinstance(model, Compressed):
            return model.structure.compression
        check_framework(model)
        if (place := place_of_compressed(model)) is not None:
            raise PlanError(f"the parameters at {place!r} are compressed, the pytree around them is not: pass those")
        return None

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all leaves that are arrays, once each."""
        return with_roles(model, describe(model))

    def values(self, model: Any, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return the values of all arrays that can be generated."""
        named = flatten(model)[1]
        tensors = plan.tensors if plan is not None else [tensor for tensor in describe(model) if not tensor.kept]
        free = {tensor.name: named[tensor.name] for tensor in tensors if tensor.name in named}
        return Values(free, _read, _is_readable)

    def layers(self, model: Any) -> Mapping[str, Collection[type]]:
        """Return the classes of modules of Flax NNX and Equinox, by the names of arrays in them."""
        classes: dict[int, set[type]] = defaultdict(set)
        nodes = [model]
        while nodes:
            node = nodes.pop()
            below = jax.tree.leaves(node, is_leaf=lambda x, node=node: x is not node)
            nodes += [x for x in below if x is not node and not isinstance(x, ARRAYS)]
            if is_a(node, "flax", "Module") or is_a(node, "equinox", "Module"):
                for x in jax.tree.leaves(node):
                    classes[id(x)].add(type(node))
        return {name: classes[id(x)] for name, x in flatten(model)[1].items() if isinstance(x, ARRAYS)}

    def install(self, model: Any, compression: Compression) -> Compressed:
        """Return a pytree of the kept arrays, without variables."""
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
        libraries.register()
        kept = {tensor.name: named[tensor.name] for tensor in tensors if tensor.name not in generated}
        names = tuple(owner.get(name, name) for name in named)
        compression = dataclasses.replace(compression, tensors=tensors)
        types = ((name, str(named[name].dtype)) for name in sorted(generated))
        narrow = tuple((name, dtype) for name, dtype in types if dtype != "float32")
        return Compressed({}, kept, Structure(compression, treedef, names, constants, narrow))

    def variables(self, model: Compressed) -> dict[str, Array]:
        """Return the variables, those on the host as arrays of JAX, and for frozen parameters values of integers."""
        arrays = _on_device(model.variables)
        return frozen.values(model.plan, arrays) if model.structure.frozen else arrays

    def rate(self, model: Compressed, kept_bits: int | None) -> Array:
        """Return the rate, with gradients of the variables and of kept arrays."""
        total = rate(kernels(), model.plan, self.variables(model), jax.lax.stop_gradient)
        if kept_bits is None:
            return total
        return total + kept_rate(kernels(), _on_device(model.kept).values(), kept_bits, jax.lax.stop_gradient)

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

    def freeze(self, model: Compressed, integers: Integers) -> Compressed:
        """Return parameters with integers in the place of the pool, on the same devices."""
        scales = {name: x for name, x in model.variables.items() if name not in integers.arrays}
        compression = dataclasses.replace(model.structure.compression, frozen=True)
        return dataclasses.replace(
            model,
            variables={**frozen.arrays_of(integers, model.variables), **scales},
            structure=dataclasses.replace(model.structure, compression=compression),
        )

    def fill_frozen(self, model: Compressed, checkpoint: Checkpoint) -> Compressed:
        """Return frozen parameters with the integers, scales and kept arrays of a file."""
        filled = self.assign(model, checkpoint.variables, checkpoint.dense)
        if checkpoint.integers is None:
            return filled
        pool = frozen.arrays_of(checkpoint.integers, model.variables)
        return dataclasses.replace(filled, variables={**pool, **filled.variables})

    def materialize(self, model: Compressed) -> Any:
        """Return the pytree that was compressed, with generated weights in their places."""
        return with_weights(model, weights_of(model))

    def built(self, model: Compressed) -> AbstractContextManager[None]:
        """Refuse: nobody can see when such a model is used."""
        raise PlanError(
            "smh.built is for models that build weights themselves; a compressed pytree builds them where you call "
            f"smh.materialize(params): call it once and use the result; got {model!r}"
        )


adapter = JaxModels()


def weights_of(model: Compressed) -> Arrays:
    """Return the generated weights of parameters by name, float32, built by their residency."""
    plan, fast, arrays = model.plan, model.structure.compression.fast, _on_device(model.variables)
    names = tuple(tensor.name for tensor in plan.tensors)
    if model.structure.frozen:
        frozen.check(plan, arrays)
        if model.residency == "layer":
            return {name: frozen.build(plan, (name,), arrays)[name] for name in names}
        build: Callable[[Arrays], Arrays] = functools.partial(frozen.build, plan, names)
    else:
        if model.residency == "layer":
            weights: Arrays = (_apart_fast if fast else _apart)(plan, names, arrays)
            return weights
        build = functools.partial(backend.materialize, plan, fast=fast)
    return _cached(plan, arrays, build) if model.residency == "cached" else build(arrays)


def _untied(tensors: tuple[ModelTensor, ...], generated: set[str]) -> Iterator[ModelTensor]:
    """List a kept array once for each place that holds it: JAX does not tie such places."""
    for tensor in tensors:
        if tensor.name in generated:
            yield tensor
        else:
            for name in (tensor.name, *tensor.aliases):
                yield dataclasses.replace(tensor, name=name, aliases=())


def with_weights(model: Compressed, weights: Arrays) -> Any:
    """Return the pytree that was compressed, with weights in their places and types."""
    narrow = {name: weights[name].astype(dtype) for name, dtype in model.structure.narrow}
    return model.structure.restored({**model.kept, **weights, **narrow})


def _on_device(arrays: Arrays) -> Arrays:
    """Return arrays, those on the host as arrays of JAX."""
    return {name: backend.asarray(x) if _on_host(x) else x for name, x in arrays.items()}


def _on_host(x: Any) -> bool:
    return type(x) is np.ndarray or isinstance(x, np.generic)


def _read(x: Any) -> np.ndarray:
    if not _is_readable(x):
        raise PlanError(f"a weight has no values to start from; got the abstract array {x}")
    return np.asarray(x, dtype=np.float32)


def _is_readable(x: Any) -> bool:
    abstract = isinstance(x, (jax.ShapeDtypeStruct, jax.core.Tracer))
    return not abstract and not (isinstance(x, jax.Array) and x.is_deleted())


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _words(key: jax.Array) -> Any:
    """Return the data of a random key, as files hold it; of an abstract or donated key, only the shape."""
    abstract = isinstance(key, jax.ShapeDtypeStruct) or key.is_deleted()
    return jax.eval_shape(jax.random.key_data, key) if abstract else jax.random.key_data(key)


def _placed(x: np.ndarray, like: Any) -> Any:
    """Return values as an array of the type, kind and place of another, or where JAX places arrays."""
    if like is None:
        return backend.asarray(x)
    if isinstance(like, (np.ndarray, np.generic)):
        return np.asarray(x, dtype=like.dtype)
    place = like.sharding if getattr(like, "committed", True) else None  # an abstract array may say where it is to go
    if _is_key(like):
        impl: list[Any] = []
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)  # which abstract keys tell there only
        return jax.device_put(jax.random.wrap_key_data(x, impl=impl[0]), place)
    return backend.asarray(x.astype(like.dtype, copy=False), place)


def _cached(plan: Plan, variables: Arrays, build: Callable[[Arrays], Arrays]) -> Arrays:
    """Return the weights of the same arrays as before, which cannot have changed, or build them.

    Weights are forgotten with the arrays that they were built from. Weights built inside a transformation are not kept.
    """
    if any(isinstance(x, jax.core.Tracer) for x in variables.values()):
        return build(variables)
    key = plan, frozenset((name, id(x)) for name, x in variables.items())
    _, weights = _cache.get(key, ((), {}))
    if not weights or any(x.is_deleted() for x in (*variables.values(), *weights.values())):
        weights = build(variables)
        if not any(isinstance(x, jax.core.Tracer) for x in weights.values()):
            # An array that dies takes the entry along before another one can get its id.
            refs = tuple(weakref.ref(x, lambda _: _cache.pop(key, None)) for x in variables.values())
            _cache.pop(key, None)
            _cache[key] = refs, weights
            for oldest in list(_cache)[:-_MOST_CACHED]:
                _cache.pop(oldest, None)
    return dict(weights)


def _build_apart(plan: Plan, names: tuple[str, ...], variables: Arrays) -> Arrays:
    """Return weights, each built by a separate call; their gradients are built together."""
    return {name: backend.materialize(plan, variables, [name])[name] for name in names}


_apart = with_pullback(_build_apart, backend.vjp)
_apart_fast = with_pullback(_build_apart, fast_pullback)
