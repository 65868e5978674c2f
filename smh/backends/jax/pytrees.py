"""Compressed pytrees: the parameters of a model, with variables in the place of the weights that these generate."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import Compression, ModelTensor, check_residency

Arrays = dict[str, Array]


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


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """Parameters of a model, compressed: a pytree of what is trained.

    Its leaves are the variables and the kept arrays, so optimisers, ``jax.jit``, ``jax.grad``, ``jax.lax.scan`` and
    the rest of JAX take it as they take any parameters. :func:`smh.backends.jax.compress` makes one;
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
        """When they are built; see :func:`smh.backends.jax.compress`."""
        return self.structure.compression.residency

    def with_residency(self, residency: str) -> Compressed:
        """Return a copy whose weights are built at another time, ``"full"``, ``"cached"`` or ``"layer"``."""
        compression = dataclasses.replace(self.structure.compression, residency=check_residency(residency))
        return dataclasses.replace(self, structure=dataclasses.replace(self.structure, compression=compression))

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"Compressed({plan.num_weights:,} weights from {plan.num_variables:,} variables, "
            f"{len(self.kept)} kept arrays, residency {self.residency!r})"
        )


def flatten(params: Any) -> tuple[Any, dict[str, Any]]:
    """Return what kind of pytree parameters are, and their leaves by name, in order."""
    if any(isinstance(x, Compressed) for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Compressed))):
        raise PlanError(f"the parameters are compressed already: smh.materialize them first; got {params!r:.200}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    crowds = Counter(path[:i] for path, _ in leaves for i in range(len(path)))
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        name = _name(path, crowds)
        if name in named:
            where = jax.tree_util.keystr(path)
            raise PlanError(f"two leaves of the parameters have the name {name!r}: rename a key; got one at {where}")
        named[name] = leaf
    return treedef, named


def describe(named: Mapping[str, Any]) -> list[ModelTensor]:
    """Return all leaves that are arrays, once each."""
    places: dict[int, list[str]] = {}
    for name, leaf in named.items():
        if _is_array(leaf):
            places.setdefault(id(leaf), []).append(name)
    tensors = []
    for first, *others in places.values():
        x = named[first]
        why = "" if x.dtype == np.float32 else f"its type is {x.dtype}, not float32"
        tensors.append(
            ModelTensor(
                name=first,
                shape=tuple(x.shape),
                nbytes=math.prod(x.shape) * x.dtype.itemsize,
                aliases=tuple(others),
                kept=why or ("" if math.prod(x.shape) else "it is empty"),
            )
        )
    return tensors


def _name(path: Sequence[Any], crowds: Mapping[Any, int]) -> str:
    """Return the name of a leaf, without the ``value`` of a wrapper that holds nothing else, such as Flax's."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value") and crowds[path[:-1]] == 1:
        path = path[:-1]
    return join(path)


def join(path: Sequence[Any]) -> str:
    """Return the name of what is at a path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/") or "params"


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))
