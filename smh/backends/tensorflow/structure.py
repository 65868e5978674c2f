"""The structure of a Keras model for porting: its layers and the roles of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import keras

from smh.backends.tensorflow.flattening import layouts
from smh.backends.tensorflow.keras_model import weights_of
from smh.core.views import View
from smh.errors import PortError
from smh.porting.layers import GATES, Layer, Setting, Slot, Structure, tensor_layer

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


class _Part(NamedTuple):
    """A tensor of a layer, or a part of it."""

    attribute: str
    role: str
    view: View | None = None
    part: tuple[int, int] | None = None


_BIAS = _Part("bias", "bias")


class _Kind(NamedTuple):
    """What a Keras layer is to other frameworks."""

    layer: Any
    kind: str
    parts: list[_Part]
    suffix: str = ""
    problem: str = ""


def describe(model: keras.Model) -> Structure:
    """Return the structure of a built Keras model, compressed or not."""
    if not isinstance(model, keras.Model) or not model.built:
        raise PortError(f"a built keras.Model is needed: build it, or call it once; got {type(model).__name__}")
    weights = weights_of(model)
    names = {id(x): name for name, x in weights.items()}
    known = layouts(model)
    layers: list[Layer] = []
    taken: set[str] = set()
    for kind in (kind for layer in model._flatten_layers() for kind in _kinds(layer)):
        slots = _slots(kind, names)
        name = next((slot.name.rpartition("/")[0] for slot in slots.values()), "") or kind.layer.name
        slots = {role: slot for role, slot in slots.items() if slot.name not in taken}
        taken |= {slot.name for slot in slots.values()}
        if slots:
            features = known.get(id(kind.layer), (None, None))
            layers.append(Layer(name + kind.suffix, kind.kind, slots, _settings(kind), *features, kind.problem))
    owners = {id(x): id(layer) for layer in model._flatten_layers() for x in vars(layer).values()}
    for name, x in weights.items():
        if name not in taken:
            of = "tensor" if keras.backend.is_float_dtype(x.dtype) else "state"
            layer = tensor_layer(name, tuple(x.shape), str(x.dtype), of)
            layers.append(replace(layer, reads=known.get(owners.get(id(x), 0), (None,))[0]))
    places = {name: place for place, name in enumerate(weights)}  # Keras goes through layers in no order of use
    layers.sort(key=lambda layer: min(places[slot.name] for slot in layer.slots.values()))
    return Structure(channels_last=True, layers=tuple(layers))  # Flatten puts channels last in any data format


def _kinds(layer: Any) -> Iterator[_Kind]:
    """Yield the description of a known layer; an attention gives one for each projection."""
    conv = keras.src.layers.convolutional
    norm = next((kind for cls, kind in _NORMS.items() if isinstance(layer, cls)), None)
    cell = next((kind for cls, kind in _CELLS.items() if isinstance(layer, cls)), None)
    if isinstance(layer, keras.layers.Dense):
        yield _Kind(layer, "dense", [_Part("kernel", "weight", View("i o -> o i")), _BIAS])
    elif isinstance(layer, keras.layers.MultiHeadAttention):
        parts = [_Part("kernel", "weight", View("i h d -> (h d) i")), _Part("bias", "bias", View("h d -> (h d)"))]
        for attribute in _ATTENTION:
            yield _Kind(getattr(layer, attribute), "dense", parts)
        yield _Kind(layer._output_dense, "dense", [_Part("kernel", "weight", View("h d o -> o (h d)")), _BIAS])
    elif isinstance(layer, keras.layers.Embedding):
        yield _Kind(layer, "embedding", [_Part("embeddings", "weight")])
    elif norm is not None:
        yield _Kind(layer, norm, [_Part(attribute, role) for attribute, role in _NORM_ROLES.items()])
    elif cell is not None:
        yield _recurrent(layer, cell)
    elif isinstance(layer, conv.base_separable_conv.BaseSeparableConv):
        sp = _SPATIAL[len(layer.depthwise_kernel.shape)]
        deep = _Part("depthwise_kernel", "weight", View(f"{sp} c m -> (c m) 1 {sp}"))
        point = _Part("pointwise_kernel", "weight", View(f"{sp} i o -> o i {sp}"))
        yield _Kind(layer, "conv", [deep], "/depthwise")
        yield _Kind(layer, "conv", [point, _BIAS], "/pointwise")
    elif isinstance(layer, conv.base_depthwise_conv.BaseDepthwiseConv):
        sp = _SPATIAL[len(layer.kernel.shape)]
        yield _Kind(layer, "conv", [_Part("kernel", "weight", View(f"{sp} c m -> (c m) 1 {sp}")), _BIAS])
    elif isinstance(layer, conv.base_conv_transpose.BaseConvTranspose):
        sp = _SPATIAL[len(layer.kernel.shape)]
        yield _Kind(layer, "conv_transpose", [_Part("kernel", "weight", View(f"{sp} o i -> i o {sp}")), _BIAS])
    elif isinstance(layer, conv.base_conv.BaseConv):
        sp = _SPATIAL[len(layer.kernel.shape)]
        yield _Kind(layer, "conv", [_Part("kernel", "weight", View(f"{sp} i o -> o i {sp}")), _BIAS])


def _recurrent(cell: Any, kind: str) -> _Kind:
    sizes = {"g": GATES[kind]}
    # From z r h to the neutral r z n; those of an LSTM are in the neutral order.
    order = {"g": (1, 0, 2)} if kind == "gru" else {}
    turned = View.make(("i (g h) -> (g h) i", sizes, order))
    parts = [_Part("kernel", "weight_input", turned), _Part("recurrent_kernel", "weight_hidden", turned)]
    if cell.use_bias and len(cell.bias.shape) == 2:
        view = View.make(("1 (g h) -> (g h)", sizes, order))
        parts += [_Part("bias", role, view, (k, 2)) for k, role in enumerate(("bias_input", "bias_hidden"))]
    else:
        parts.append(_BIAS)
    unlike = kind == "gru" and not cell.reset_after
    return _Kind(cell, kind, parts, problem="a GRU with reset_after=False computes something else" if unlike else "")


def _slots(kind: _Kind, names: Mapping[int, str]) -> dict[str, Slot]:
    """Return those of the parts that are weights of the model, by role."""
    slots = {}
    for attribute, role, view, part in kind.parts:
        x: Any = getattr(kind.layer, attribute, None)
        if id(x) in names:
            slots[role] = Slot(names[id(x)], tuple(x.shape), view, part, str(x.dtype))
    return slots


def _settings(kind: _Kind) -> dict[str, Setting]:
    settings = {}
    if kind.kind.endswith("_norm"):
        settings["epsilon"] = Setting("epsilon", float(kind.layer.epsilon))
    if kind.kind == "batch_norm":
        settings["momentum"] = Setting("momentum", float(kind.layer.momentum), complement=True)
    return settings
