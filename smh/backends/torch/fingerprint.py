"""How the ``state_dict`` of a compressed model names its plan, without which its numbers mean nothing.

The same variables give other weights by another plan, also where all shapes agree: with another seed or gain. So the
state of the model holds the fingerprint of the plan as PyTorch's extra state, and loading looks at it first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from smh.core.plan import Plan
from smh.errors import CheckpointError

KEY = "_extra_state"
"""Under which PyTorch stores what a module adds to its state."""
_PLAN, _OWN = "plan", "own"
_ADVICE = (
    "compress the model by the plan of that state, smh.compress(model, plan=...), or load a file of smh.save, which "
    "brings its plan"
)


def state_of(plan: Plan, own: Any = None) -> Any:
    """Return the extra state: the fingerprint, 32 bytes, and what the model's own class adds, if it does."""
    fingerprint = torch.tensor(list(bytes.fromhex(plan.fingerprint)), dtype=torch.uint8, device="cpu")
    return fingerprint if own is None else {_PLAN: fingerprint, _OWN: own}


def own_part(state: Any) -> Any:
    """Return what the model's own class added to the extra state, or None."""
    return state.get(_OWN) if isinstance(state, dict) else None


def check_state(plan: Plan, state: Mapping[str, Any], prefix: str, first: str) -> None:
    """Raise :class:`~smh.CheckpointError` for the state of a model with another plan, warn if it names none.

    Parameters
    ----------
    plan : Plan
        The plan of the model that is loaded.
    state : mapping
        A ``state_dict``.
    prefix : str
        Of the names of the model's tensors in it.
    first : str
        The attribute of the model's first variable: a state without it has nothing to name a plan for.
    """
    if f"{prefix}{KEY}" in state:
        theirs = _read(state[f"{prefix}{KEY}"])
        if theirs != plan.fingerprint:
            raise CheckpointError(
                f"the state_dict is of a model with another plan: its fingerprint is {theirs}, that of this model is "
                f"{plan.fingerprint} ({plan.pool!r}, layout {plan.layout}, {len(plan.tensors)} tensors, seed "
                f"{plan.seed}). Nothing was loaded: {_ADVICE}"
            )
    elif f"{prefix}{first}" in state:
        warnings.warn(
            f"the state_dict does not say by which plan it generates weights ({prefix + KEY!r} is missing): by another "
            f"plan than this model's they would be others. If in doubt, {_ADVICE}",
            UserWarning,
            stacklevel=2,
        )


def _read(state: Any) -> str:
    """Return the fingerprint of an extra state in hexadecimal digits, or say what is there."""
    found = state.get(_PLAN) if isinstance(state, dict) else state
    if isinstance(found, torch.Tensor) and found.dtype == torch.uint8 and found.shape == (32,):
        return bytes(found.tolist()).hex()
    return f"missing (there is {type(found).__name__})"
