"""How what Keras and TensorFlow save of a compressed model names its plan; see :mod:`smh.models.fingerprint`.

The layer that holds the variables saves the fingerprint of the plan with them, and loading looks at it first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from smh.core.plan import Plan
from smh.errors import CheckpointError
from smh.models.fingerprint import check_fingerprint, fingerprint

FINGERPRINT = "fingerprint"
"""Under which name it is saved: 32 bytes."""
_ADVICE = (
    "compress the model by the plan of those weights, smh.compress(model, plan=...), or load a .keras file or one of "
    "smh.save, which bring their plan"
)


class PlanName(tf.__internal__.tracking.Trackable):
    """The fingerprint of a plan, as ``tf.train.Checkpoint`` saves it, too.

    Parameters
    ----------
    plan : Plan
        The plan.

    Attributes
    ----------
    own : numpy.ndarray, shape (32,), uint8
        The fingerprint.
    refusal : CheckpointError or None
        What :meth:`check` raised last.
    """

    def __init__(self, plan: Plan) -> None:
        self.own = fingerprint(plan)
        self.refusal: CheckpointError | None = None
        self._plan = plan

    def check(self, found: Any) -> None:
        """Raise :class:`~smh.CheckpointError` unless a saved fingerprint, or None where there is none, is this one."""
        self.refusal = None
        theirs = None if found is None else np.asarray(found).astype(np.uint8).tobytes()
        try:
            check_fingerprint(self._plan, theirs, _ADVICE)
        except CheckpointError as error:
            self.refusal = error
            raise

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {FINGERPRINT: tf.constant(self.own)}

    def _restore_from_tensors(self, restored_tensors: dict[str, Any]) -> Any:
        found = restored_tensors[FINGERPRINT]
        if tf.executing_eagerly():
            self.check(found.numpy())
            return None
        return tf.debugging.assert_equal(found, self.own, "smh: what was saved has another plan")  # in a SavedModel
