"""The layer that holds the variables of a compressed Keras model, or the integers of a frozen one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh.core.integers import stored_arrays
from smh.core.plan import Plan
from smh.errors import CheckpointError
from smh.models.compression import check_fingerprint, fingerprint

EXPONENTS = "exponents"
"""The name of the exponents of all arrays of the pool, of which those are 0 whose integers are all 0."""
_FINGERPRINT = "fingerprint"
_ADVICE = (
    "compress the model by the plan of those weights, smh.compress(model, plan=...), or load a .keras file or one of "
    "smh.save, which bring their plan. Load weights of a plain model into that model, and then smh.fit it"
)


class PoolLayer(keras.Layer):
    """The variables of a plan, all zero, as a layer without a call. Its saved state names the plan.

    If the layer is frozen, its arrays are the stored integers, their exponents, which come last, and the scales.
    """

    def __init__(self, plan: Plan, frozen: bool = False) -> None:
        super().__init__(name="pool", dtype="float32")
        arrays = {name: ("float32", shape) for name, shape in plan.variable_shapes.items()}
        if frozen:
            stored = stored_arrays(plan)
            arrays |= {**stored, EXPONENTS: ("int32", (len(stored),))}
        for name, (dtype, shape) in arrays.items():
            variable = self.add_weight(
                shape=shape,
                initializer="zeros",
                dtype=dtype,
                trainable=not frozen,
                autocast=False,  # weights are generated in float32, whatever layers compute in
                name=name.replace("/", "."),
            )
            setattr(self, variable.name, variable)  # for tf.train.Checkpoint, which goes by attributes
        self.built = True
        self.plan_name = PlanName(plan)

    def save_own_variables(self, store: Any) -> None:
        """Store the variables, and the fingerprint of the plan."""
        super().save_own_variables(store)
        store[_FINGERPRINT] = self.plan_name.own

    def load_own_variables(self, store: Any) -> None:
        """Load the variables; raises :class:`~smh.CheckpointError` if they are of another plan, or of none."""
        known = set(store.keys())
        if not known and self.plan_name.refusal is not None:  # Keras tries several places to load from and reports
            raise self.plan_name.refusal  # only the last error
        self.plan_name.check(store[_FINGERPRINT] if _FINGERPRINT in known else None)
        found = {key: store[key] for key in known - {_FINGERPRINT}}
        types = [np.asarray(x).dtype == np.float32 for _, x in sorted(found.items())]
        if all(types) != all(x.dtype == "float32" for x in self.weights):
            self.plan_name.refusal = CheckpointError(
                "one of the two models is frozen, so that their weights files differ: load this one into a model such "
                f"as the one that was saved, or use smh.save and smh.load; got {len(found)} arrays for "
                f"{len(self.weights)}"
            )
            raise self.plan_name.refusal
        super().load_own_variables(found)


class PlanName(tf.__internal__.tracking.Trackable):
    """The fingerprint of a plan, as ``tf.train.Checkpoint`` saves it, too."""

    def __init__(self, plan: Plan) -> None:
        self.own = fingerprint(plan)
        self.refusal: CheckpointError | None = None  # what `check` raised last
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
        return {_FINGERPRINT: tf.constant(self.own)}

    def _restore_from_tensors(self, restored_tensors: dict[str, Any]) -> Any:
        found = restored_tensors[_FINGERPRINT]
        if tf.executing_eagerly():
            self.check(found.numpy())
            return None
        return tf.debugging.assert_equal(found, self.own, "smh: the saved state has another plan")  # in a SavedModel
