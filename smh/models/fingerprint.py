"""How a saved state of a compressed model names its plan, without which its numbers mean nothing.

The same variables give other weights by another plan, also where all shapes agree: with another seed or gain. What a
framework saves itself therefore carries the fingerprint of the plan as 32 bytes, and each backend looks at it before it
takes anything from a state.
"""

from __future__ import annotations

import numpy as np

from smh.core.plan import Plan
from smh.errors import CheckpointError


def fingerprint(plan: Plan) -> np.ndarray:
    """Return the fingerprint of a plan, shape (32,), uint8."""
    return np.frombuffer(bytes.fromhex(plan.fingerprint), dtype=np.uint8)


def check_fingerprint(plan: Plan, found: bytes | None, advice: str) -> None:
    """Raise :class:`~smh.CheckpointError` unless a saved fingerprint, or None where there is none, is that of a plan.

    ``advice`` says what to do instead, in the words of the framework.
    """
    if found is None:
        raise CheckpointError(f"the saved state does not name the plan that generates its weights: {advice}")
    if found.hex() != plan.fingerprint:
        raise CheckpointError(
            f"the saved state is of a model with another plan: its fingerprint is {found.hex()}, that of this model is "
            f"{plan.fingerprint} ({plan.pool!r}, layout {plan.layout}, {len(plan.tensors)} tensors, seed {plan.seed}). "
            f"Nothing was loaded: {advice}"
        )
