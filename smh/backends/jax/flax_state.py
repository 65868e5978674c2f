"""What ``flax.serialization`` saves of compressed parameters, and restores: their plan is named in it.

Flax is not imported: who saves by it has imported it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from smh.errors import CheckpointError
from smh.models.fingerprint import check_fingerprint, fingerprint

if TYPE_CHECKING:
    from smh.backends.jax.pytrees import Compressed

FINGERPRINT = "plan_fingerprint"


def register(cls: type[Compressed]) -> None:
    """Tell Flax how to save compressed parameters, if it is imported."""
    flax = sys.modules.get("flax.serialization")
    if flax is not None:
        flax.register_serialization_state(cls, _to_state, _from_state, override=True)


def _to_state(compressed: Compressed) -> dict[str, Any]:
    """Return the state dict: fingerprint of the plan, 32 bytes, variables and kept arrays."""
    return {
        FINGERPRINT: fingerprint(compressed.plan),
        "variables": dict(compressed.variables),
        "kept": dict(compressed.kept),
    }


def _from_state(compressed: Compressed, state: Mapping[str, Any]) -> Compressed:
    """Return compressed parameters with the arrays of a state dict, or raise :class:`~smh.CheckpointError`."""
    advice = "compress the parameters by the plan of that state, smh.compress(params, plan=...), and restore into these"
    if not isinstance(state, Mapping) or set(state) != {FINGERPRINT, "variables", "kept"}:
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(
            f"the state is not that of compressed parameters, which has {FINGERPRINT}, variables and kept; got {given}"
        )
    check_fingerprint(compressed.plan, np.asarray(state[FINGERPRINT]).astype(np.uint8).tobytes(), advice)
    return dataclasses.replace(
        compressed,
        variables=_like(compressed.variables, state["variables"], "variables"),
        kept=_like(compressed.kept, state["kept"], "kept arrays"),
    )


def _like(arrays: Mapping[str, Any], state: Mapping[str, Any], what: str) -> dict[str, Any]:
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
