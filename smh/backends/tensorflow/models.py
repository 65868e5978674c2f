"""Compressing Keras models: a model in, a model of the same kind whose weights are generated out."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh.backends.tensorflow import keras_tensors
from smh.backends.tensorflow.adapter import backend
from smh.backends.tensorflow.keras_edits import check_layers
from smh.backends.tensorflow.keras_model import Compressed, as_plain, compressed, weights_of
from smh.backends.tensorflow.narrow import kernels
from smh.core.plan import Plan
from smh.core.rate import kept_rate, rate
from smh.errors import PlanError
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.integers import Integers
from smh.models.adapter import ModelAdapter, Values
from smh.models.compression import Compression, ModelTensor, check_trains
from smh.models.roles import complete
from smh.text import some


class KerasModels(ModelAdapter):
    """Keras models; ``install`` makes a new one, ``assign`` changes the one that it is given."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how a model was compressed."""
        return model.smh_source.compression if isinstance(model, Compressed) else None

    def not_compressed(self, model: Any) -> PlanError:
        """Return the error for a model that is not compressed itself, which says where to look."""
        layers = model._flatten_layers() if isinstance(model, keras.Layer) else []
        if inside := [layer.name for layer in layers if isinstance(layer, Compressed)]:
            return PlanError(
                f"model {model.name!r} is not compressed itself, but has compressed models in it: {some(inside)}. Pass "
                f"one of them, for example model.get_layer({inside[0]!r})"
            )
        return super().not_compressed(model)

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return the weights of a built model."""
        if not isinstance(model, keras.Model):
            raise PlanError(f"only a keras.Model can be compressed; got {type(model).__name__}")
        if any(isinstance(layer, Compressed) for layer in model._flatten_layers()):
            raise PlanError("the model is compressed already: make a plain one by smh.materialize(model) first")
        if not model.built:
            raise PlanError(f"model {model.name!r} is not built, so it has no weights yet: build it, or call it once")
        return complete(keras_tensors.tensors_of(model))

    def values(self, model: keras.Model, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return present values."""
        weights = weights_of(model)
        free = {tensor.name: weights[tensor.name] for tensor in self.tensors(model) if not tensor.kept}
        return Values(free, lambda variable: variable.numpy().astype(np.float32))

    def layers(self, model: keras.Model) -> Mapping[str, Collection[type]]:
        """Return the classes of layers, by the names of weights in them."""
        classes: dict[int, set[type]] = defaultdict(set)
        for layer in model._flatten_layers():
            for variable in layer.weights:
                classes[id(variable)].add(type(layer))
        return {name: classes[id(variable)] for name, variable in weights_of(model).items()}

    def place_of(self, model: keras.Model, part: Any) -> str | None:
        """Return what the names of the weights of a layer begin with, or the name of a weight."""
        if not isinstance(part, keras.Layer | keras.Variable):
            return None
        held = {id(x) for x in (part.weights if isinstance(part, keras.Layer) else [part])}
        found = [name for name, x in weights_of(model).items() if id(x) in held]
        if len(found) == 1 and isinstance(part, keras.Layer):
            return found[0].rpartition("/")[0]
        return posixpath.commonpath(found) if found else None

    def install(self, model: keras.Model, compression: Compression) -> Compressed:
        """Return a compressed model beside the plain one, with variables that are zero."""
        generated = [tensor.name for tensor in compression.plan.tensors]
        return compressed(keras_tensors.copy_of(model, weights_of(model), leave=generated), compression)

    def variables(self, model: Compressed) -> dict[str, Any]:
        """Return the variables."""
        check_layers(model)
        return model.smh_source.values()

    def rate(self, model: Compressed, kept_bits: int | None) -> Any:
        """Return the rate, with gradients of the variables and of kept weights."""
        plan = model.smh_source.plan
        variables = {name: tf.convert_to_tensor(x) for name, x in model.smh_source.values().items()}
        total = rate(kernels(), plan, variables, tf.stop_gradient)
        if kept_bits is None:
            return total
        kept = [tf.convert_to_tensor(x) for x in self._kept_weights(model, plan).values()]
        return total + kept_rate(kernels(), kept, kept_bits, tf.stop_gradient)

    def kept(self, model: keras.Model, plan: Plan) -> dict[str, Any]:
        """Return the kept weights, and other state of layers such as vocabularies."""
        if isinstance(model, Compressed):
            check_layers(model)
        states = {name: x for name, (_, _, x) in keras_tensors.states_of(model).items()}
        return {**self._kept_weights(model, plan), **states}

    def _kept_weights(self, model: keras.Model, plan: Plan) -> dict[str, keras.Variable]:
        generated = {tensor.name for tensor in plan.tensors}
        return {name: x for name, x in weights_of(model).items() if name not in generated}

    def assign(
        self, model: Compressed, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
    ) -> Compressed:
        """Assign values to the variables of a model."""
        check_trains(model.smh_source.compression, "cannot get other variables")
        for name, variable in model.smh_source.variables.items():
            variable.assign(variables[name])
        return self._with_kept(model, kept)

    def freeze(self, model: Compressed, integers: Integers) -> Compressed:
        """Return a frozen model beside the given one."""
        check_layers(model)
        source = model.smh_source
        copy = keras_tensors.copy_of(as_plain(model), source.weights, leave=source.names)
        frozen: Any = compressed(copy, dataclasses.replace(source.compression, frozen=True))
        frozen.smh_source.assign(integers, source.variables)
        made: Compressed = frozen
        return made

    def fill_frozen(self, model: Any, checkpoint: Checkpoint) -> Compressed:
        """Assign the values of a file."""
        model.smh_source.assign(checkpoint.integers, checkpoint.variables)
        return self._with_kept(model, checkpoint.dense)

    def _with_kept(self, model: Compressed, kept: Mapping[str, np.ndarray]) -> Compressed:
        if kept:
            for name, variable in self._kept_weights(model, model.smh_source.plan).items():
                variable.assign(kept[name])
            keras_tensors.load_states(model, kept)
        return model

    def materialize(self, model: Compressed) -> keras.Model:
        """Return a new plain model of the same configuration, not compiled."""
        check_layers(model)
        with model.smh_source.built(), model.smh_source.passing():
            return keras_tensors.copy_of(as_plain(model), model.smh_source.weights)

    def built(self, model: Compressed) -> AbstractContextManager[None]:
        """Return a context in which eager code builds weights once."""
        return model.smh_source.built()

    def renamed(self, checkpoint: Checkpoint, model: Any) -> Checkpoint:
        """Return a checkpoint in the names of a model, if only the numbers that Keras gave to layers differ."""
        compression = self.compression(model)
        names = {t.name for t in (self.tensors(model) if compression is None else compression.tensors)}
        names |= set(keras_tensors.states_of(model))
        plan = checkpoint.plan
        stored = [tensor.name for tensor in plan.tensors]
        stored += [name for name in checkpoint.dense if not name.startswith(CARRIED)]
        known = {value: name for name, value in keras_tensors.without_numbers(names).items()}
        renamed = {name: known.get(value, name) for name, value in keras_tensors.without_numbers(stored).items()}
        if set(stored) == names or set(renamed.values()) != names:
            return checkpoint
        tensors = tuple(dataclasses.replace(tensor, name=renamed[tensor.name]) for tensor in plan.tensors)
        scales = {tensor.scale_variable: f"scale/{renamed[tensor.name]}" for tensor in plan.tensors}
        return dataclasses.replace(
            checkpoint,
            plan=dataclasses.replace(plan, tensors=tensors),
            variables={scales.get(name, name): x for name, x in checkpoint.variables.items()},
            dense={renamed.get(name, name): x for name, x in checkpoint.dense.items()},
        )


adapter = KerasModels()
