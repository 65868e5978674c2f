"""Compressed pytrees: the parameters of a model, with variables in the place of the weights that these generate."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

from smh.backends.jax.derivatives import Arrays
from smh.backends.jax.trained import Path, is_a, untrained
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import Compression, ModelTensor, check_gradients, check_residency
from smh.models.report import one_line
from smh.tables import counted

ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
_TYPES = ("float32", "bfloat16", "float16")
"""Of arrays that can be generated: in float32, and rounded where they are of another type."""


class NotMaterializedError(PlanError, AttributeError):
    """Compressed parameters, used as those of the model are."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"compressed parameters have no {what}: smh.materialize(params) returns the parameters of the model, "
            "to be called inside the function that is differentiated"
        )


@dataclass(frozen=True, repr=False)
class Structure:
    """The static part of a compressed pytree: hashable, and equal if the content is equal."""

    compression: Compression
    treedef: Any
    names: tuple[str, ...]  # for each leaf of the pytree, the name of what goes there
    constants: tuple[tuple[str, type, Any], ...]  # the other leaves, with types: a number and a bool can be equal
    narrow: tuple[tuple[str, str], ...] = ()  # generated weights that are rounded to another type

    def __hash__(self) -> int:
        """Return a hash of the parts that hash fast: JAX asks for it at every call of a compiled function."""
        return hash((self.names, self.residency))

    def __str__(self) -> str:
        """Return a line for each thing in which plans differ: JAX shows the difference by lines."""
        plan = self.compression.plan
        return "\n".join(
            [
                f"plan {plan.fingerprint}",
                f"pool {plan.pool!r}",
                f"layout {plan.layout}",
                f"seed {plan.seed}",
                f"{len(plan.tensors)} tensors, {plan.num_weights:,} weights",
                f"{len(self.names)} leaves",
                f"residency {self.residency!r}",
                f"gradients {self.gradients!r}",
                f"frozen {self.frozen!r}",
                f"types {dict(self.narrow)!r:.200}",
                f"constants { ({name: x for name, _, x in self.constants})!r:.200}",
            ]
        )

    def __repr__(self) -> str:
        return f"Structure({', '.join(str(self).splitlines())})"

    @property
    def fingerprint(self) -> str:
        """Of the plan."""
        return self.compression.plan.fingerprint

    @property
    def residency(self) -> str:
        """When weights are built."""
        return self.compression.residency

    @property
    def gradients(self) -> str:
        """How gradients are computed."""
        return self.compression.gradients

    @property
    def frozen(self) -> bool:
        """Whether the pool is in integers."""
        return self.compression.frozen

    def restored(self, arrays: Mapping[str, Any]) -> Any:
        """Return the pytree that was compressed, with arrays by their names."""
        found = {**{name: value for name, _, value in self.constants}, **arrays}
        return jax.tree.unflatten(self.treedef, [found[name] for name in self.names])


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """Compressed parameters of a model: a pytree of trained arrays.

    Its leaves are the variables and the kept arrays, so optimizers, ``jax.jit``, ``jax.grad``, ``jax.lax.scan`` and
    the rest of JAX take it as they take any parameters. :func:`smh.compress` makes one;
    ``dataclasses.replace(compressed, variables=...)`` is a copy with other variables.

    The paths of variables contain the fingerprint of the plan, and so does the state that ``flax.serialization`` saves.
    Neither this state nor one saved by Orbax is restored into parameters with another plan. A pickle contains its plan.
    Leaves saved one by one, as by ``equinox.tree_serialise_leaves``, do not name a plan.

    Attributes
    ----------
    variables : dict of str to jax.Array
        The variables of the plan, by name, float32. Of parameters that :func:`smh.freeze` returned: the integers of the
        pool, their exponents, and scales.
    kept : dict of str to jax.Array
        All other arrays of the pytree, by name, as they were.
    structure : Structure
        The rest, which JAX takes as static.
    """

    variables: Arrays
    kept: Arrays
    structure: Structure

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Arrays], ...], Structure]:
        """Return the children of the pytree with their keys, and the static part."""
        variables = jax.tree_util.GetAttrKey(f"variables_{self.structure.fingerprint[:16]}")
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
        return self.structure.residency

    def with_residency(self, residency: str) -> Compressed:
        """Return a copy whose weights are built at another time, ``"full"``, ``"cached"`` or ``"layer"``."""
        return self._with(residency=check_residency(residency))

    @property
    def gradients(self) -> str:
        """How gradients are computed; see :func:`smh.compress`."""
        return self.structure.gradients

    def with_gradients(self, gradients: str) -> Compressed:
        """Return a copy whose gradients are computed in another way, ``"exact"`` or ``"fast"``."""
        return self._with(gradients=check_gradients(gradients))

    def _with(self, **changes: Any) -> Compressed:
        compression = dataclasses.replace(self.structure.compression, **changes)
        return dataclasses.replace(self, structure=dataclasses.replace(self.structure, compression=compression))

    def __contains__(self, name: object) -> bool:
        """Return False: compressed parameters have none of the names that libraries look for in dictionaries."""
        return False

    def __getitem__(self, name: object) -> NoReturn:
        raise NotMaterializedError(f"[{name!r}]")

    def __getattr__(self, name: str) -> NoReturn:
        raise NotMaterializedError(f".{name}")

    def __repr__(self) -> str:
        return f"Compressed({one_line(self.structure.compression)}; {counted(len(self.kept), 'kept array')})"


def flatten(params: Any) -> tuple[Any, dict[str, Any]]:
    """Return the tree definition of parameters, and their leaves by name, in order."""
    treedef, located = _located(params)
    return treedef, {name: leaf for name, (_, leaf) in located.items()}


def _located(params: Any) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Return the tree definition of parameters, and the path and value of each leaf by name.

    A wrapper that holds nothing but a ``value``, such as Flax's, does not show in names.
    """
    if place_of_compressed(params) is not None:
        raise PlanError(f"the parameters are compressed already: smh.materialize them first; got {params!r:.200}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    check_framework(params)
    if len(leaves) == 1 and leaves[0][1] is params and not isinstance(params, ARRAYS):
        what = "smh.jax takes a pytree of arrays, such as a model's init returns or a module of Flax NNX or Equinox"
        raise PlanError(f"{what}; got {type(params).__name__}")
    crowds = Counter(path[:i] for path, _ in leaves for i in range(len(path)))
    located: dict[str, tuple[Any, Any]] = {}
    for path, leaf in leaves:
        wrapped = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value") and crowds[path[:-1]] == 1
        name = join(path[:-1] if wrapped else path)
        if name in located:
            what = f"two leaves of the parameters have the name {name!r}: rename a key"
            raise PlanError(f"{what}; got one at {jax.tree_util.keystr(path)}")
        located[name] = path, leaf
    return treedef, located


def paths(params: Any) -> dict[str, Path]:
    """Return where the leaves of parameters are, by the names that :func:`flatten` gives them."""
    return {name: path for name, (path, _) in _located(params)[1].items()}


def check_framework(model: Any) -> None:
    """Raise :class:`~smh.PlanError` for a model of another framework."""
    for package, base in (("keras", "Layer"), ("torch", "Module")):
        if is_a(model, package, base):
            what = f"smh.jax takes pytrees of arrays; got a model of {package}, {type(model).__name__}"
            raise PlanError(f"{what}: use smh.{package} instead")


def place_of_compressed(params: Any) -> str | None:
    """Return where compressed parameters are in a pytree, if they are."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, Compressed))
    return next((join(path) for path, x in leaves if isinstance(x, Compressed)), None)


def describe(params: Any) -> tuple[ModelTensor, ...]:
    """Return all leaves that are arrays, once each."""
    _, located = _located(params)
    whys = untrained(params)
    places: dict[Any, list[str]] = {}
    for name, (_, leaf) in located.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):  # nobody ties arrays by describing them alike
            places[name] = [name]
        elif isinstance(leaf, ARRAYS):
            places.setdefault(id(leaf), []).append(name)
    tensors = []
    for names in places.values():
        x = located[names[0]][1]
        size = math.prod(x.shape)
        kept = next((whys[path] for path, _ in (located[name] for name in names) if path in whys), "")
        trained = not kept and jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)
        if not kept:
            kept = f"its type is {x.dtype}" if str(x.dtype) not in _TYPES else "" if size else "it is empty"
        nbytes = size * x.dtype.itemsize
        tied = tuple(names[1:])
        tensors.append(ModelTensor(names[0], tuple(x.shape), nbytes, aliases=tied, kept=kept, trained=trained))
    return tuple(tensors)


def join(path: Sequence[Any]) -> str:
    """Return the name of the leaf at a path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/") or "params"
