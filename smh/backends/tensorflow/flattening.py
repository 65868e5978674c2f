"""Which features of a Keras model are the pixels of a flattened image, according to its graph.

The *order* of a tensor is, for a vector, a :data:`~smh.porting.layers.Layout`; for an array with more axes, the places
of these axes in an image with its channels first, or () for a sequence. An operation without a rule makes it unclear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from smh.porting.layers import Layout

_MIXED = "a flattened image lies beside other features"
_EITHER = "an image is flattened whose channels may come first elsewhere"
_LOST = "it is unclear which tensor is flattened before it"
_MOVING = ("Einsum", "Moveaxis", "Permute", "Swapaxes", "Transpose")
_SEQUENCES = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.MultiHeadAttention, keras.layers.Embedding)
_IN_PLACE = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.PReLU,
)
"""Layers whose weights leave every feature in its place."""


def layouts(model: keras.Model) -> dict[int, tuple[Layout, Layout]]:
    """Return the layouts of the inputs and outputs of layers, by the id of a layer in a graph."""
    orders: dict[int, Layout] = {}
    wanted: dict[int, Layout] = {}
    found: dict[int, tuple[Layout, Layout]] = {}
    _forward(model, orders, wanted, found)
    _backward(model, orders, wanted)
    found.clear()
    _forward(model, orders, wanted, found)
    return found


def _forward(
    model: Any, orders: dict[int, Layout], wanted: dict[int, Layout], found: dict[int, tuple[Layout, Layout]]
) -> None:
    """Set the orders of all tensors, and of the inputs and outputs of layers, given those of the model's inputs."""
    for node in _nodes(model):
        operation, inputs, outputs = node.operation, node.input_tensors, node.output_tensors
        inner = _graph(operation)
        if inner is not None and len(inner.inputs) == len(inputs):
            orders |= {id(x): orders[id(y)] for x, y in zip(inner.inputs, inputs, strict=True)}
            _forward(operation, orders, wanted, found)
            orders |= {id(x): orders[id(y)] for x, y in zip(outputs, inner.outputs, strict=True)}
            continue
        for x in outputs:
            if inputs or id(x) not in orders:
                order = _order(operation, [(orders[id(y)], y.shape[1:]) for y in inputs], x.shape[1:])
                orders[id(x)] = wanted.get(id(x)) if order is None else order
        for layer in _readers(operation) if inputs else ():
            pair = _features(orders[id(inputs[0])], inputs[0]), _features(orders[id(outputs[0])], outputs[0])
            if found.setdefault(id(layer), pair) != pair:
                found[id(layer)] = ("it is called several times, with features in different orders",) * 2


def _order(operation: Any, ins: Sequence[tuple[Layout, Sequence[int]]], shape: Sequence[int]) -> Layout:
    """Return the order of the outputs of an operation; None if it is free."""
    name, places = type(operation).__name__, getattr(operation, "data_format", None)
    if not ins:
        return _places(keras.config.image_data_format(), len(shape)) if len(shape) > 2 else ()
    (first, own), weights = ins[0], bool(getattr(operation, "weights", ()))
    if name in ("Flatten", "Reshape", "Ravel") and len(shape) == 1 and len(own) > 1:
        if places == "channels_first":  # of Flatten: Keras puts them last
            own = (*own[1:], own[0])
            first = (*first[1:], first[0]) if isinstance(first, tuple) and first else first
        return _flattened(first, own)
    if name != "Flatten" and places is not None:
        sequence = len(shape) == 2 and not first and "Conv" not in name  # padded or pooled
        return () if len(shape) < 2 else _EITHER if sequence else _places(places, len(shape))
    if isinstance(operation, _SEQUENCES):
        return () if len(shape) > 1 else None
    if name == "Reshape" and len(own) == 1 and first and len(shape) > 2:
        return _places("channels_last", len(shape)) if first == (shape[-1], *shape[:-1]) else _EITHER
    if name == "Permute" and first and isinstance(first, tuple):
        return tuple(first[place - 1] for place in operation.dims)
    joined = name == "Concatenate"
    told = list(dict.fromkeys(order for order, own in ins if order is not None and (joined or own == shape)))
    if joined:
        return () if not any(told) else _MIXED if len(shape) == 1 else told[0] if len(told) == 1 else _EITHER
    in_place = isinstance(operation, _IN_PLACE) or not (weights or name in _MOVING)
    if in_place and any(own == shape for _, own in ins):
        return (told[0] if told else None) if len(told) < 2 else _MIXED
    if weights and len(shape) == 1 or not any(order for order, _ in ins):
        return None if weights else ()
    same = len(own) > 1 and own[-1] == shape[-1]
    return _EITHER if len(shape) > 1 and (same or weights) else () if same else _LOST


def _backward(model: Any, orders: dict[int, Layout], wanted: dict[int, Layout]) -> None:
    """Find vectors that become an image, or are added to a flattened one."""
    for node in reversed(list(_nodes(model))):
        inner = _graph(node.operation)
        if inner is not None and len(inner.inputs) == len(node.input_tensors):
            wanted |= {id(x): wanted.get(id(y)) for x, y in zip(inner.outputs, node.output_tensors, strict=True)}
            _backward(inner, orders, wanted)
            wanted |= {id(x): wanted.get(id(y)) for x, y in zip(node.input_tensors, inner.inputs, strict=True)}
            continue
        operation, (out, *_) = node.operation, node.output_tensors
        name, order = type(operation).__name__, wanted.get(id(out)) or orders[id(out)]
        for x in node.input_tensors:
            back: Layout = None
            if getattr(operation, "data_format", None) is not None and name != "Flatten" and len(x.shape) > 2:
                back = _places(operation.data_format, len(x.shape) - 1)
            elif name == "Reshape" and len(x.shape) == 2 and isinstance(order, tuple):
                back = _flattened(order, out.shape[1:])
            elif x.shape == out.shape and (isinstance(operation, _IN_PLACE) or not getattr(operation, "weights", ())):
                back = order
            elif order and len(x.shape) == len(out.shape) == 2 and not getattr(operation, "weights", ()):
                back = _MIXED
            if back:
                wanted[id(x)] = back if (wanted.get(id(x)) or back) == back else _MIXED


def _places(data_format: str, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)) if data_format == "channels_first" else (*range(1, rank), 0)


def _flattened(order: Layout, sizes: Sequence[int]) -> Layout:
    """Return the layout of a vector, given the order of the flattened axes."""
    if not isinstance(order, tuple) or not order:
        return order
    used = [place for place, size in zip(order, sizes, strict=True) if size != 1]
    if used == sorted(used):
        return ()
    if used == [*sorted(used)[1:], 0]:
        return tuple(size for _, size in sorted(zip(order, sizes, strict=True)))
    return "the axes of its image come in an unusual order"


def _features(order: Layout, x: Any) -> Layout:
    """Return the layout of the last axis of a tensor."""
    return order or () if len(x.shape) == 2 or order == _LOST else ()


def _readers(operation: Any) -> Iterator[Any]:
    """Yield an operation, and the layers in it that share its inputs."""
    yield operation
    if isinstance(operation, keras.layers.Bidirectional):
        yield from (operation.forward_layer.cell, operation.backward_layer.cell)
    elif isinstance(operation, keras.layers.RNN):
        yield operation.cell
    elif isinstance(operation, keras.layers.Wrapper):
        yield operation.layer


def _graph(model: Any) -> Any:
    """Return the graph of a model, or None if it has none."""
    functional = keras.src.models.Functional
    return model if isinstance(model, functional) else getattr(model, "_functional", None)


def _nodes(model: Any) -> Iterator[Any]:
    """Yield the calls in the graph of a model, in the order of the data."""
    nodes = getattr(_graph(model), "_nodes_by_depth", {})
    for depth in sorted(nodes, reverse=True):
        yield from nodes[depth]
