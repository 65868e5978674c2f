"""The structure of a Keras model for porting: its layers and what their tensors are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from smh.backends.tensorflow import keras_tensors
from smh.backends.tensorflow.keras_model import Compressed
from smh.core.views import View
from smh.errors import PortError
from smh.porting.layers import GATES, Layer, Setting, Shape, Slot, Structure, tensor_layer

_NORMS = {
    keras.layers.BatchNormalization: "batch_norm",
    keras.layers.LayerNormalization: "layer_norm",
    keras.layers.GroupNormalization: "group_norm",
    keras.layers.RMSNormalization: "rms_norm",
}
_NORM_ROLES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var", "scale": "scale"}
_CELLS = {keras.layers.LSTMCell: "lstm", keras.layers.GRUCell: "gru", keras.layers.SimpleRNNCell: "rnn"}
_SPATIAL = {3: "w", 4: "h w", 5: "d h w"}
_ATTENTION = ("_query_dense", "_key_dense", "_value_dense")

_Names = Mapping[int, str]
_Views = Mapping[str, tuple[str, View | None]]
"""By attribute of a layer: the role of the tensor, and its view."""


def describe(model: keras.Model) -> Structure:
    """Return the structure of a built Keras model, compressed or not."""
    if not isinstance(model, keras.Model) or not model.built:
        raise PortError(f"a built keras.Model is needed: build it, or call it once; got {type(model).__name__}")
    if isinstance(model, Compressed):
        inner, weights = model.inner, tuple(model.source.weights.values())
        names = list(model.source.weights)
    else:
        inner, weights = model, model.weights
        names = list(keras_tensors.names_of(model))
    known = {id(x): name for name, x in zip(names, weights, strict=True)}
    layers: list[Layer] = []
    taken: set[str] = set()
    for layer in _Reader(inner, known).layers():
        slots = {role: slot for role, slot in layer.slots.items() if slot.name not in taken}
        taken |= {slot.name for slot in slots.values()}
        if slots:
            layers.append(Layer(layer.name, layer.kind, slots, layer.settings, layer.image, layer.problem))
    for x in weights:
        if known[id(x)] not in taken:
            kind = "tensor" if keras.backend.is_float_dtype(x.dtype) else "state"
            layers.append(tensor_layer(known[id(x)], tuple(x.shape), str(x.dtype), kind))
    places = {name: place for place, name in enumerate(names)}  # Keras goes through layers in no order of use
    layers.sort(key=lambda layer: min(places[slot.name] for slot in layer.slots.values()))
    return Structure(channels_last=keras.config.image_data_format() == "channels_last", layers=tuple(layers))


class _Reader:
    """Goes through the layers of a model."""

    def __init__(self, model: keras.Model, names: _Names) -> None:
        self.model = model
        self.names = names
        self.images = _images(model)

    def layers(self) -> Iterator[Layer]:
        """Yield all layers whose kind is known."""
        projections: dict[int, str] = {}
        for layer in self.model._flatten_layers():
            if isinstance(layer, keras.layers.MultiHeadAttention):
                projections |= {id(getattr(layer, attribute)): "in" for attribute in _ATTENTION}
                projections[id(layer._output_dense)] = "out"
            yield from self._layers(layer, projections.get(id(layer)))

    def _layers(self, layer: Any, projection: str | None) -> Iterator[Layer]:
        norm = next((kind for cls, kind in _NORMS.items() if isinstance(layer, cls)), None)
        cell = next((kind for cls, kind in _CELLS.items() if isinstance(layer, cls)), None)
        if isinstance(layer, keras.layers.Dense):
            yield self._layer("dense", layer, {"kernel": ("weight", View("i o -> o i")), "bias": ("bias", None)})
        elif projection == "in":
            views = {"kernel": ("weight", View("i h d -> (h d) i")), "bias": ("bias", View("h d -> (h d)"))}
            yield self._layer("dense", layer, views)
        elif projection == "out":
            yield self._layer("dense", layer, {"kernel": ("weight", View("h d o -> o (h d)")), "bias": ("bias", None)})
        elif isinstance(layer, keras.layers.Embedding):
            yield self._layer("embedding", layer, {"embeddings": ("weight", None)})
        elif norm is not None:
            yield self._layer(norm, layer, {key: (role, None) for key, role in _NORM_ROLES.items()})
        elif cell is not None:
            yield self._recurrent(cell, layer)
        else:
            yield from self._convolutions(layer)

    def _convolutions(self, layer: Any) -> Iterator[Layer]:
        conv = keras.src.layers.convolutional
        bias: _Views = {"bias": ("bias", None)}
        if isinstance(layer, conv.base_separable_conv.BaseSeparableConv):
            sp = _SPATIAL[len(layer.depthwise_kernel.shape)]
            deep: _Views = {"depthwise_kernel": ("weight", View(f"{sp} c m -> (c m) 1 {sp}"))}
            point: _Views = {"pointwise_kernel": ("weight", View(f"{sp} i o -> o i {sp}"))}
            yield self._layer("conv", layer, deep, "/depthwise")
            yield self._layer("conv", layer, {**point, **bias}, "/pointwise")
        elif isinstance(layer, conv.base_depthwise_conv.BaseDepthwiseConv):
            sp = _SPATIAL[len(layer.kernel.shape)]
            yield self._layer("conv", layer, {"kernel": ("weight", View(f"{sp} c m -> (c m) 1 {sp}")), **bias})
        elif isinstance(layer, conv.base_conv_transpose.BaseConvTranspose):
            sp = _SPATIAL[len(layer.kernel.shape)]
            yield self._layer("conv_transpose", layer, {"kernel": ("weight", View(f"{sp} o i -> i o {sp}")), **bias})
        elif isinstance(layer, conv.base_conv.BaseConv):
            sp = _SPATIAL[len(layer.kernel.shape)]
            yield self._layer("conv", layer, {"kernel": ("weight", View(f"{sp} i o -> o i {sp}")), **bias})

    def _recurrent(self, kind: str, cell: Any) -> Layer:
        count = GATES[kind]
        # From z r h to the neutral r z n; those of an LSTM are in the neutral order.
        order = {"g": (1, 0, 2)} if kind == "gru" else {}
        turned = View.make(("i (g h) -> (g h) i", {"g": count}, order))
        views: _Views = {
            "kernel": ("weight_input", turned),
            "recurrent_kernel": ("weight_hidden", turned),
        }
        problem = ""
        if kind == "gru" and not cell.reset_after:
            problem = "a GRU with reset_after=False computes something else"
        layer = self._layer(kind, cell, views, problem=problem)
        slots = dict(layer.slots)
        if cell.use_bias:
            name, shape, dtype = self.names[id(cell.bias)], tuple(cell.bias.shape), str(cell.bias.dtype)
            if len(shape) == 2:
                view = View.make(("1 (g h) -> (g h)", {"g": count}, order))
                slots |= {
                    role: Slot(name, shape, view, (k, 2), dtype) for k, role in enumerate(("bias_input", "bias_hidden"))
                }
            else:
                slots["bias"] = Slot(name, shape, dtype=dtype)
        return Layer(layer.name, kind, slots, problem=layer.problem)

    def _layer(
        self,
        kind: str,
        layer: Any,
        views: _Views,
        suffix: str = "",
        problem: str = "",
    ) -> Layer:
        """Return a layer with those of some attributes that are weights of the model."""
        slots = {}
        name = ""
        for attribute, (role, view) in views.items():
            x: Any = getattr(layer, attribute, None)
            if id(x) in self.names:
                slots[role] = Slot(self.names[id(x)], tuple(x.shape), view, dtype=str(x.dtype))
                name = name or self.names[id(x)].rpartition("/")[0]
        settings = {}
        if kind.endswith("_norm"):
            settings["epsilon"] = Setting("epsilon", float(layer.epsilon))
        if kind == "batch_norm":
            settings["momentum"] = Setting("momentum", float(layer.momentum), complement=True)
        return Layer(f"{name or layer.name}{suffix}", kind, slots, settings, self.images.get(id(layer)), problem)


def _images(model: Any) -> dict[int, Shape]:
    """Return for dense layers that follow a flattening: channels and sizes of what is flattened."""
    found: dict[int, Shape] = {}
    image: Shape | None = None
    for layer in model.layers if isinstance(model, keras.Model) else []:
        if isinstance(layer, keras.Model):
            found |= _images(layer)
        elif isinstance(layer, keras.layers.Flatten):
            image = _image(layer)
        elif isinstance(layer, keras.layers.Dense) and image is not None:
            if math.prod(image) == layer.kernel.shape[0]:
                found[id(layer)] = image
            image = None
    return found


def _image(layer: Any) -> Shape | None:
    try:
        shape = tuple(layer.input.shape[1:])
    except (AttributeError, ValueError):  # called more than once, or in a model that keeps no graph
        return None
    if len(shape) < 2 or None in shape:
        return None
    return shape if layer.data_format == "channels_first" else (shape[-1], *shape[:-1])
