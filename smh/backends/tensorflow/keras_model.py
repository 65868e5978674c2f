"""The compressed Keras model: a model around a copy of the given one whose variables are generated in part.

Keras layers read their weights from ``keras.Variable`` objects. So the variables, and not the layers, are what is
replaced: each variable of a generated weight becomes, in its place, a ``GeneratedVariable``, which holds no array and
has the value that the present forward pass generated. Layers of any kind, tied weights and layers that are called twice
then need no support of their own, and all that Keras does with the other variables goes on unchanged: statistics,
random states, losses, masks and mixed precision. (``keras.StatelessScope`` would also catch those updates and losses.)

The model around it owns the pool, brings ``fit``, and is what Keras saves. Methods and training steps that a subclassed
model defines beside ``call`` stay those of ``inner``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh.backends.tensorflow import keras_tensors
from smh.backends.tensorflow.keras_weights import GeneratedVariable, Source, held_while_running
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.errors import CheckpointError, VariableError
from smh.models.compression import Compression, check_fingerprint, check_gradients, check_residency, fingerprint

_FINGERPRINT = "fingerprint"
_ADVICE = (
    "compress the model by the plan of those weights, smh.compress(model, plan=...), or load a .keras file or one of "
    "smh.save, which bring their plan"
)


class PoolLayer(keras.Layer):
    """The variables of a plan, all zero, as a layer without a call. What is saved of it names the plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(name="pool", dtype="float32")
        for name, shape in plan.variable_shapes.items():
            variable = self.add_weight(
                shape=shape,
                initializer="zeros",
                dtype="float32",
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
        if not known and self.plan_name.refusal is not None:  # Keras looks in all places where what it failed to load
            raise self.plan_name.refusal  # might be, and reports what it met last
        self.plan_name.check(store[_FINGERPRINT] if _FINGERPRINT in known else None)
        super().load_own_variables({key: store[key] for key in known - {_FINGERPRINT}})


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
        return tf.debugging.assert_equal(found, self.own, "smh: what was saved has another plan")  # in a SavedModel


@keras.saving.register_keras_serializable(package="smh")
class Compressed(keras.Model):
    """A model whose weights are generated; :func:`smh.compress` makes it.

    It is trained, evaluated, saved and loaded as every Keras model is.

    Parameters
    ----------
    inner : keras.Model
        A built model, which the new one takes over and changes.
    compression : Compression
        The plan, all weights in the order of ``inner.weights``, and the residency.

    Attributes
    ----------
    inner : keras.Model
        The model that computes.
    pool : PoolLayer
        The variables, all zero at first.
    """

    def __init__(self, inner: keras.Model, compression: Compression) -> None:
        keras_tensors.check_graphs(inner)
        # Keras reads from the signature which of training, mask and others a model takes: those of the inner one.
        object.__setattr__(self, "call", functools.wraps(inner.call)(functools.partial(_call, self)))
        super().__init__(name=inner.name, dtype=inner.dtype_policy, trainable=inner.trainable)
        self._convert_input_args = False  # the inner model does
        self._allow_non_tensor_positional_args = True
        self.inner = inner
        self.pool = PoolLayer(compression.plan)
        self.source = Source(compression, self.pool.weights, inner.weights)
        _generate(inner, self.source)
        self.built = True

    @property
    def residency(self) -> str:
        """When weights are built: ``"full"``, ``"cached"`` or ``"layer"``; see :func:`smh.compress`. May be changed."""
        return self.source.compression.residency

    @residency.setter
    def residency(self, value: str) -> None:
        self._change(residency=check_residency(value))

    @property
    def gradients(self) -> str:
        """How gradients are computed: ``"exact"`` or ``"fast"``; see :func:`smh.compress`. May be changed."""
        return self.source.compression.gradients

    @gradients.setter
    def gradients(self, value: str) -> None:
        self._change(gradients=check_gradients(value))

    def _change(self, **changes: Any) -> None:
        self.source.compression = dataclasses.replace(self.source.compression, **changes)
        self.source.forget()
        self.train_function = self.test_function = self.predict_function = None  # traced with the old one

    @property
    def layers(self) -> list[keras.Layer]:
        """The layers of the compressed model, and the pool."""
        return [*self.inner.layers, self.pool]

    @property
    def inputs(self) -> Any:
        """The symbolic inputs, where the compressed model has them."""
        return self.inner.inputs

    @property
    def outputs(self) -> Any:
        """The symbolic outputs, where the compressed model has them."""
        return self.inner.outputs

    def make_predict_function(self, force: bool = False) -> Any:
        """Return what ``predict`` runs, which with ``cached`` residency reads kept weights."""
        return self._make_serving("predict_function", super().make_predict_function, force)

    def make_test_function(self, force: bool = False) -> Any:
        """Return what ``evaluate`` runs, which with ``cached`` residency reads kept weights."""
        return self._make_serving("test_function", super().make_test_function, force)

    def _make_serving(self, name: str, make: Callable[[bool], Any], force: bool) -> Any:
        before = getattr(self, name)
        make(force)
        made = getattr(self, name)
        single = self.distribute_strategy.num_replicas_in_sync == 1
        if made is not before and self.residency == "cached" and single and not self.run_eagerly:
            setattr(self, name, self.source.serving()(made))  # within this context, each time
        return getattr(self, name)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Leave masks to the inner model, whose outputs carry them."""

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Return the symbolic outputs of the inner model."""
        return self.inner.compute_output_spec(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return all that makes the model but the values of its variables."""
        compression = self.source.compression
        return {
            "inner": keras.saving.serialize_keras_object(self.inner),
            "plan": compression.plan.to_json(),
            "names": [tensor.name for tensor in compression.tensors],
            "residency": compression.residency,
            "ratio_asked": compression.ratio_asked,
            "gradients": compression.gradients,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Compressed:
        """Make a model from what :meth:`get_config` returned, with initial values of its variables."""
        inner = keras.saving.deserialize_keras_object(config["inner"], custom_objects=custom_objects)
        plan, residency = Plan.from_json(config["plan"]), check_residency(config["residency"])
        gradients = check_gradients(config.get("gradients", "exact"))
        named = zip(config["names"], keras_tensors.tensors_of(inner), strict=True)
        tensors = tuple(dataclasses.replace(tensor, name=name) for name, tensor in named)
        model = cls(inner, Compression(plan, tensors, residency, config["ratio_asked"], gradients))
        for variable, value in zip(model.pool.weights, initial_variables(plan).values(), strict=True):
            variable.assign(value)
        return model

    def get_build_config(self) -> None:
        """Return nothing: the model is built when it is made."""

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """Export as :meth:`keras.Model.export` does; a subclassed model needs an ``input_signature``."""

        def spec(x: Any) -> keras.InputSpec:
            return keras.InputSpec(shape=x.shape, dtype=x.dtype)

        structure = getattr(self.inner, "_inputs_struct", None)  # of a Functional model
        known = getattr(self.inner, "inputs", None) if structure is None else [structure]
        if len(args) < 3 and known is not None:
            kwargs.setdefault("input_signature", keras.tree.map_structure(spec, known))
        return super().export(filepath, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: layers would get weights of their own, which the pool does not generate."""
        raise VariableError("generated weights cannot be quantized: make a plain model by smh.materialize(model) first")

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load a weights file as :meth:`keras.Model.load_weights` does, or change nothing.

        Raises :class:`~smh.CheckpointError` if its variables are of another plan, or none, also with ``skip_mismatch``.
        """
        before = [(variable, variable.numpy()) for variable in self.variables]
        name = self.pool.plan_name
        name.refusal = None
        problem: Exception | None = None
        try:
            super().load_weights(*args, **kwargs)
        except Exception as error:
            problem = error
        problem = name.refusal or problem  # Keras keeps a refusal to itself if it may skip mismatches
        if problem is not None:
            for variable, value in before:
                variable.assign(value)
            raise problem


def weights_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Return all weights of a model in order, by name; of a compressed one those that it had before, in their place."""
    if isinstance(model, Compressed):
        return model.source.weights
    return dict(zip(keras_tensors.names_of(model), model.weights, strict=True))


def _call(model: Compressed, *args: Any, **kwargs: Any) -> Any:
    """Run a compressed model."""
    with model.source.passing():
        outputs = model.inner(*args, **kwargs)
        for variable in (model.source.weights[name] for name in model.source.names):
            if variable.regularizer is not None:
                model.add_loss(variable.regularizer(variable))
    return outputs


def _generate(inner: keras.Model, source: Source) -> None:
    """Turn variables of a model into generated ones, which none of its layers tracks or saves."""
    chosen = {id(source.weights[name]): name for name in source.names}
    layers = inner._flatten_layers()
    using = {id(layer): tuple(chosen[id(x)] for x in layer.weights if id(x) in chosen) for layer in layers}
    # Models call layers, not what lies within other layers.
    called = {id(layer): layer for model in layers if isinstance(model, keras.Model) for layer in model.layers}
    for layer in (inner, *called.values()):
        if using[id(layer)]:
            held_while_running(layer, source, using[id(layer)])
    for layer in layers:
        if using[id(layer)]:
            for method in ("set_weights", "quantize", "enable_lora"):
                setattr(layer, method, functools.partial(_refuse, method, layer.name, using[id(layer)]))
        owned = [x for x in keras_tensors.own_weights(layer) if id(x) in chosen]
        for variable in owned:
            layer._untrack_variable(variable)
        if owned:  # several layers save variables by name, tracked or not
            layer.save_own_variables = functools.partial(keras.Layer.save_own_variables, layer)
            layer.load_own_variables = functools.partial(keras.Layer.load_own_variables, layer)
    for name in source.names:
        variable = source.weights[name]
        variable.__class__ = GeneratedVariable
        variable.smh_source, variable.smh_name = source, name
        variable._value = None  # its memory is free


def _refuse(method: str, layer: str, names: Sequence[str], *args: Any, **kwargs: Any) -> None:
    raise VariableError(
        f"weights of layer {layer!r} are generated ({', '.join(names)}), which {method} cannot change: "
        "make a plain model by smh.materialize(model) first"
    )
