"""What other libraries have to be told of compressed parameters: ``jax.export``, ``flax.serialization``, Flax NNX."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from smh.backends.jax.derivatives import Arrays
from smh.backends.jax.pytrees import Compressed, Structure
from smh.errors import CheckpointError, PlanError
from smh.models.compression import check_fingerprint, fingerprint


def register() -> None:
    """Tell the libraries of Flax, where somebody has imported them."""
    if (flax := sys.modules.get("flax.serialization")) is not None:
        flax.register_serialization_state(Compressed, _to_state, _from_state, override=True)
    graphs: Any = sys.modules.get("flax.nnx.graphlib")
    if Compressed not in getattr(graphs, "PYTREE_REGISTRY", {Compressed}):
        graphs.register_pytree_node_type(Compressed, _to_children, _from_children)


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


def _to_children(compressed: Compressed) -> tuple[list[tuple[str, Any]], Any]:
    """Return the children for Flax NNX, which would not see that bare arrays are parameters."""
    leaves = jax.tree.leaves(compressed, is_leaf=lambda x: hasattr(x, "get_metadata"))
    if any(isinstance(x, (jax.Array, np.ndarray)) for x in leaves):
        raise PlanError(
            "Flax NNX finds no nnx.Param in compressed parameters, so nnx.Optimizer would train nothing: call the "
            "functions of Optax on the parameters themselves, or hold them in a module as "
            "nnx.data(jax.tree.map(nnx.Param, params)) and materialize nnx.as_pure of that"
        )
    children, structure = compressed.tree_flatten_with_keys()
    return sorted((key.name, child) for key, child in children), structure  # Flax sorts them too


def _from_children(children: Any, structure: Any) -> Compressed:
    found = dict(children)
    kept = found.pop("kept")
    (variables,) = found.values()
    return Compressed(variables, kept, structure)


_FIELDS = ("fingerprint", "names", "residency", "gradients", "frozen")


@dataclass(frozen=True)
class ExportedStructure:
    """The structure of compressed parameters of an exported program, which takes those with the same plan and names.

    The program has all that it computes in it: the plan, and how the pytree looks, stay with those who exported it.
    """

    fingerprint: str
    names: tuple[str, ...]
    residency: str
    gradients: str
    frozen: bool = False

    def __eq__(self, other: object) -> bool:
        """Compare with structures of either kind."""
        if not isinstance(other, (Structure, ExportedStructure)):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __hash__(self) -> int:
        """Return the hash of an equal :class:`Structure`."""
        return hash((self.names, self.residency))

    @property
    def compression(self) -> NoReturn:
        """Raise :class:`~smh.PlanError`: it is not known."""
        raise PlanError(
            "an exported program does not return the plan of compressed parameters, only arrays: put these into "
            "your own parameters, jax.tree.map(lambda _, x: x, params, exported_params)"
        )


def _to_bytes(structure: Structure | ExportedStructure) -> bytes:
    return json.dumps({name: getattr(structure, name) for name in _FIELDS}).encode()


def _from_bytes(text: bytes | bytearray) -> ExportedStructure:
    fields = json.loads(text)
    return ExportedStructure(**{**fields, "names": tuple(fields["names"])})


export.register_pytree_node_serialization(
    Compressed, serialized_name="smh.jax.Compressed", serialize_auxdata=_to_bytes, deserialize_auxdata=_from_bytes
)
