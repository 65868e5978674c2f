"""Compressed pytrees: the parameters of a model, with variables in the place of the weights that these generate."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smh.backends.jax.derivatives import Arrays
from smh.core.plan import Plan
from smh.errors import CheckpointError, PlanError
from smh.models.compression import (
    Compression,
    ModelTensor,
    check_fingerprint,
    check_gradients,
    check_residency,
    fingerprint,
)

Path = tuple[Any, ...]
"""Keys of JAX that lead to a leaf."""


@dataclass(frozen=True)
class Structure:
    """What a compressed pytree is besides its arrays: hashable, and equal to what has the same content."""

    compression: Compression
    treedef: Any
    names: tuple[str, ...]  # for each leaf of the pytree, the name of what goes there
    constants: tuple[tuple[str, type, Any], ...]  # the other leaves, with types: a number and a bool can be equal

    def __hash__(self) -> int:
        """Return a hash of what has a fast one: JAX asks for it at every call of a compiled function."""
        return hash((self.names, self.compression.residency))

    def restored(self, arrays: Mapping[str, Any]) -> Any:
        """Return the pytree that was compressed, with arrays by their names."""
        found = {**{name: value for name, _, value in self.constants}, **arrays}
        return jax.tree.unflatten(self.treedef, [found[name] for name in self.names])


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """Parameters of a model, compressed: a pytree of what is trained.

    Its leaves are the variables and the kept arrays, so optimisers, ``jax.jit``, ``jax.grad``, ``jax.lax.scan`` and
    the rest of JAX take it as they take any parameters. :func:`smh.compress` makes one;
    ``dataclasses.replace(compressed, variables=...)`` is a copy with other variables.

    The paths of variables have the fingerprint of the plan in them, and so has what ``flax.serialization`` saves:
    neither that nor what Orbax saves is restored into parameters with another plan. A pickle brings its plan. What is
    saved leaf by leaf, as by ``equinox.tree_serialise_leaves``, names no plan.

    Attributes
    ----------
    variables : dict of str to jax.Array, float32
        The variables of the plan, by name.
    kept : dict of str to jax.Array
        All other arrays of the pytree, by name, as they were.
    structure : Structure
        The rest, which JAX takes as static.
    """

    variables: Arrays
    kept: Arrays
    structure: Structure

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Arrays], ...], Structure]:
        """Return what JAX takes as the children of the pytree, with their keys, and what is static."""
        variables = jax.tree_util.GetAttrKey(f"variables_{self.plan.fingerprint[:16]}")
        return ((variables, self.variables), (jax.tree_util.GetAttrKey("kept"), self.kept)), self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, children: Sequence[Any]) -> Compressed:
        """Return the pytree with other children."""
        variables, kept = children
        return cls(variables, kept, structure)

    @property
    def plan(self) -> Plan:
        """How the weights are generated."""
        return self.structure.compression.plan

    @property
    def residency(self) -> str:
        """When they are built; see :func:`smh.compress`."""
        return self.structure.compression.residency

    def with_residency(self, residency: str) -> Compressed:
        """Return a copy whose weights are built at another time, ``"full"``, ``"cached"`` or ``"layer"``."""
        return self._with(residency=check_residency(residency))

    @property
    def gradients(self) -> str:
        """How gradients are computed; see :func:`smh.compress`."""
        return self.structure.compression.gradients

    def with_gradients(self, gradients: str) -> Compressed:
        """Return a copy whose gradients are computed in another way, ``"exact"`` or ``"fast"``."""
        return self._with(gradients=check_gradients(gradients))

    def _with(self, **changes: Any) -> Compressed:
        compression = dataclasses.replace(self.structure.compression, **changes)
        return dataclasses.replace(self, structure=dataclasses.replace(self.structure, compression=compression))

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"Compressed({plan.num_weights:,} weights from {plan.num_variables:,} variables, "
            f"{len(self.kept)} kept arrays, residency {self.residency!r}, gradients {self.gradients!r})"
        )


def flatten(params: Any) -> tuple[Any, dict[str, Any]]:
    """Return what kind of pytree parameters are, and their leaves by name, in order.

    A wrapper that holds nothing but a ``value``, such as Flax's, does not show in names.
    """
    if any(isinstance(x, Compressed) for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Compressed))):
        raise PlanError(f"the parameters are compressed already: smh.materialize them first; got {params!r:.200}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    named = {name: leaf for name, (_, leaf) in _by_name(leaves).items()}
    return treedef, named


def paths(params: Any) -> dict[str, Path]:
    """Return where the leaves of parameters are, by the names that :func:`flatten` gives them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {name: path for name, (path, _) in _by_name(leaves).items()}


def _by_name(leaves: Sequence[tuple[Path, Any]]) -> dict[str, tuple[Path, Any]]:
    crowds = Counter(path[:i] for path, _ in leaves for i in range(len(path)))
    named: dict[str, tuple[Path, Any]] = {}
    for path, leaf in leaves:
        wrapped = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value") and crowds[path[:-1]] == 1
        name = join(path[:-1] if wrapped else path)
        if name in named:
            what = f"two leaves of the parameters have the name {name!r}: rename a key"
            raise PlanError(f"{what}; got one at {jax.tree_util.keystr(path)}")
        named[name] = path, leaf
    return named


def describe(named: Mapping[str, Any]) -> tuple[ModelTensor, ...]:
    """Return all leaves that are arrays, once each."""
    places: dict[int, list[str]] = {}
    for name, leaf in named.items():
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            places.setdefault(id(leaf), []).append(name)
    tensors = []
    for first, *others in places.values():
        x = named[first]
        size = math.prod(x.shape)
        why = f"its type is {x.dtype}, not float32" if x.dtype != np.float32 else "" if size else "it is empty"
        tensors.append(ModelTensor(first, tuple(x.shape), size * x.dtype.itemsize, aliases=tuple(others), kept=why))
    return tuple(tensors)


def join(path: Sequence[Any]) -> str:
    """Return the name of what is at a path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/") or "params"


def register_with_flax() -> None:
    """Tell ``flax.serialization`` how to save compressed parameters, if whoever saves by it has imported it."""
    if (flax := sys.modules.get("flax.serialization")) is not None:
        flax.register_serialization_state(Compressed, _to_state, _from_state, override=True)


def _to_state(compressed: Compressed) -> dict[str, Any]:
    variables, kept = dict(compressed.variables), dict(compressed.kept)
    return {"plan_fingerprint": fingerprint(compressed.plan), "variables": variables, "kept": kept}


def _from_state(compressed: Compressed, state: Mapping[str, Any]) -> Compressed:
    """Return compressed parameters with the arrays of a state dict, or raise :class:`~smh.CheckpointError`."""
    if not isinstance(state, Mapping) or set(state) != {"plan_fingerprint", "variables", "kept"}:
        what = "the state is not that of compressed parameters, which has plan_fingerprint, variables and kept"
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(f"{what}; got {given}")
    advice = "compress the parameters by the plan of that state, smh.compress(params, plan=...), and restore into these"
    check_fingerprint(compressed.plan, np.asarray(state["plan_fingerprint"]).astype(np.uint8).tobytes(), advice)
    return dataclasses.replace(
        compressed,
        variables=_like(compressed.variables, state["variables"], "variables"),
        kept=_like(compressed.kept, state["kept"], "kept arrays"),
    )


def _like(arrays: Arrays, state: Mapping[str, Any], what: str) -> Arrays:
    """Return the arrays of a state: NumPy's where these are, else those of JAX."""
    if set(arrays) != set(state):
        raise CheckpointError(f"the {what} of the parameters are {sorted(arrays)}; got {sorted(state)}")
    found = {}
    for name, like in arrays.items():
        x = state[name]
        if tuple(x.shape) != tuple(like.shape):
            raise CheckpointError(f"{name!r} has the shape {tuple(x.shape)} in the state, {tuple(like.shape)} here")
        found[name] = x if isinstance(x, jax.Array) or isinstance(like, np.ndarray) else jnp.asarray(x)
    return found
