"""Compressed pytrees: the parameters of a model, with variables in the place of the weights that these generate."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero

from smh.backends.jax import flax_state
from smh.backends.protocol import Backend
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import ModelTensor, check_residency

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Structure:
    """What a compressed pytree is besides its arrays: hashable, and equal to what has the same content."""

    plan: Plan
    treedef: Any
    names: tuple[str, ...]
    """For each leaf of the pytree, the name of what goes there."""
    constants: tuple[tuple[str, type, Any], ...]
    """The leaves that are no arrays, such as functions and Python numbers: a number and a bool can be equal."""
    tensors: tuple[ModelTensor, ...]
    """The leaves that are arrays, as they were before."""
    residency: str
    ratio_asked: float | None

    def __hash__(self) -> int:
        """Return a hash of what has a fast one: JAX asks for it at every call of a compiled function."""
        return hash((self.names, self.residency))


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
        return self.structure.plan

    @property
    def residency(self) -> str:
        """When they are built; see :func:`smh.backends.jax.compress`."""
        return self.structure.residency

    def with_residency(self, residency: str) -> Compressed:
        """Return a copy whose weights are built at another time, ``"full"``, ``"cached"`` or ``"layer"``."""
        structure = dataclasses.replace(self.structure, residency=check_residency(residency))
        return dataclasses.replace(self, structure=structure)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"Compressed({plan.num_weights:,} weights from {plan.num_variables:,} variables, "
            f"{len(self.kept)} kept arrays, residency {self.residency!r})"
        )


def checked(compressed: Any) -> Compressed:
    """Return compressed parameters, or raise :class:`~smh.PlanError` for anything else."""
    if not isinstance(compressed, Compressed):
        what = "the parameters are not compressed: smh.compress(params, ratio=0.1) makes them so"
        raise PlanError(f"{what}; got {type(compressed).__name__}")
    return compressed


def materialize(backend: Backend, compressed: Compressed) -> Any:
    """Return the pytree that was compressed, with generated weights in their places."""
    structure = compressed.structure
    if structure.residency == "cached":
        weights = _cached(backend, structure.plan, compressed.variables)
    elif structure.residency == "layer":
        weights = _one_by_one(backend, structure.plan, compressed.variables)
    else:
        weights = backend.materialize(structure.plan, compressed.variables)
    constants = {name: value for name, _, value in structure.constants}
    found = {**constants, **compressed.kept, **weights}
    return jax.tree.unflatten(structure.treedef, [found[name] for name in structure.names])


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


def assemble(
    treedef: Any, named: Mapping[str, Any], plan: Plan, variables: Arrays, residency: str, ratio: float | None
) -> Compressed:
    """Put together what is generated and what is kept."""
    tensors = tuple(_untied(describe(named), plan))
    generated = {tensor.name for tensor in plan.tensors}
    owner = {name: tensor.name for tensor in tensors for name in (tensor.name, *tensor.aliases)}
    constants = tuple((name, type(x), _hashable(name, x)) for name, x in named.items() if name not in owner)
    structure = Structure(
        plan=plan,
        treedef=treedef,
        names=tuple(owner.get(name, name) for name in named),
        constants=constants,
        tensors=tensors,
        residency=residency,
        ratio_asked=ratio,
    )
    kept = {tensor.name: named[tensor.name] for tensor in tensors if tensor.name not in generated}
    flax_state.register(Compressed)
    return Compressed(variables=variables, kept=kept, structure=structure)


def _untied(tensors: Sequence[ModelTensor], plan: Plan) -> Iterator[ModelTensor]:
    """Give each place of an array that is kept a tensor of its own: to JAX, such places are not tied."""
    generated = {tensor.name for tensor in plan.tensors}
    for tensor in tensors:
        if tensor.name in generated:
            yield tensor
        else:
            for name in (tensor.name, *tensor.aliases):
                yield dataclasses.replace(tensor, name=name, aliases=())


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _hashable(name: str, leaf: Any) -> Any:
    try:
        hash(leaf)
    except TypeError as error:
        what = f"the leaf {name!r} must be an array, or hashable, so that JAX can take it as static"
        raise PlanError(f"{what}; got {type(leaf).__name__}") from error
    return leaf


_MOST_CACHED = 4
_cache: dict[Any, tuple[tuple[weakref.ref[Any], ...], Arrays]] = {}


def _cached(backend: Backend, plan: Plan, variables: Arrays) -> Arrays:
    """Return the weights of the same arrays as before, which cannot have changed, or build them.

    Nothing is kept longer than the arrays that it was built from, nor what was built by a transformation.
    """
    if any(isinstance(x, jax.core.Tracer) for x in variables.values()):
        return backend.materialize(plan, variables)
    key = plan, frozenset((name, id(x)) for name, x in variables.items())
    _, weights = _cache.get(key, ((), {}))
    if not weights or any(x.is_deleted() for x in (*variables.values(), *weights.values())):
        weights = backend.materialize(plan, variables)
        if not any(isinstance(x, jax.core.Tracer) for x in weights.values()):
            # An array that dies takes the entry along before another one can get its id.
            refs = tuple(weakref.ref(x, lambda _: _cache.pop(key, None)) for x in variables.values())
            _cache.pop(key, None)
            _cache[key] = refs, weights
            for oldest in list(_cache)[:-_MOST_CACHED]:
                _cache.pop(oldest, None)
    return dict(weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _one_by_one(backend: Backend, plan: Plan, variables: Arrays) -> Arrays:
    """Return all weights, each built by a call of its own, with the gradients of those that are built together."""
    return {tensor.name: backend.materialize(plan, variables, [tensor.name])[tensor.name] for tensor in plan.tensors}


def _keep_variables(backend: Backend, plan: Plan, variables: Any) -> tuple[Arrays, Arrays]:
    values = {name: x.value for name, x in variables.items()}
    return _one_by_one(backend, plan, values), values


def _pull(backend: Backend, plan: Plan, variables: Arrays, cotangents: Arrays) -> tuple[Arrays]:
    given = {name: g for name, g in cotangents.items() if not isinstance(g, SymbolicZero)}
    return (backend.vjp(plan, variables, given),)


_one_by_one.defvjp(_keep_variables, _pull, symbolic_zeros=True)
