"""How the ``state_dict`` of a compressed model names its plan; see :mod:`smh.models.fingerprint`.

The state of the model holds the fingerprint of the plan as PyTorch's extra state, and loading looks at it first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from smh.core.plan import Plan
from smh.models.fingerprint import check_fingerprint, fingerprint

KEY = "_extra_state"
"""Under which PyTorch stores what a module adds to its state."""
_PLAN, _OWN = "plan", "own"
_ADVICE = (
    "compress the model by the plan of that state, smh.compress(model, plan=...), or load a file of smh.save, which "
    "brings its plan"
)


def state_of(plan: Plan, own: Any = None) -> Any:
    """Return the extra state: the fingerprint, 32 bytes, and what the model's own class adds, if it does."""
    named = torch.tensor(fingerprint(plan).tolist(), dtype=torch.uint8, device="cpu")
    return named if own is None else {_PLAN: named, _OWN: own}


def own_part(state: Any) -> Any:
    """Return what the model's own class added to the extra state, or None."""
    return state.get(_OWN) if isinstance(state, dict) else None


def check_state(plan: Plan, state: Mapping[str, Any], prefix: str, first: str) -> None:
    """Raise :class:`~smh.CheckpointError` for a ``state_dict`` of a model with another plan, warn if it names none.

    ``prefix`` is that of the model's names in it, ``first`` the attribute of the model's first variable: a state
    without this one has nothing to name a plan for.
    """
    if f"{prefix}{KEY}" in state:
        check_fingerprint(plan, _read(state[f"{prefix}{KEY}"]), _ADVICE)
    elif f"{prefix}{first}" in state:
        warnings.warn(
            f"the state_dict does not say by which plan it generates weights ({prefix + KEY!r} is missing): by another "
            f"plan than this model's they would be others. If in doubt, {_ADVICE}",
            UserWarning,
            stacklevel=2,
        )


def _read(state: Any) -> bytes | None:
    """Return the fingerprint of an extra state, if it has one."""
    found = state.get(_PLAN) if isinstance(state, dict) else state
    if isinstance(found, torch.Tensor) and found.dtype == torch.uint8 and found.shape == (32,):
        return bytes(found.tolist())
    return None
