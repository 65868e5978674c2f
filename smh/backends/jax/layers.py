"""What the nodes of a pytree tell of its leaves: layers of Flax NNX and Equinox.

Neither is imported: classes are told by their names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from smh.backends.jax.pytrees import paths
from smh.backends.jax.trained import is_a, walked
from smh.models.compression import ModelTensor
from smh.models.roles import ADAPTER, by_class, complete

_SPATIAL = ("", "w", "h w", "d h w")


def with_roles(params: Any, tensors: Iterable[ModelTensor]) -> tuple[ModelTensor, ...]:
    """Return the tensors with the roles and the meaning of axes that their layers tell."""
    places, nodes_of = paths(params), dict(walked(params))
    found = []
    for tensor in tensors:
        nodes = nodes_of[places[tensor.name]]
        owner, attribute = _owner(nodes)
        adapts = any(is_a(node, "flax", "LoRAParam") for node, _ in nodes)
        left = ADAPTER if adapts else by_class(owner, attribute)
        kind = "" if owner is None or isinstance(owner, Mapping | list | tuple) else type(owner).__name__
        found.append(dataclasses.replace(tensor, left=left, axes=_axes(owner, attribute, tensor.shape), kind=kind))
    return complete(found)


def _owner(nodes: tuple[tuple[Any, str], ...]) -> tuple[Any, str]:
    """Return the object that holds a leaf, and as what."""
    for node, child in reversed(nodes):
        if not any(cls.__name__ in ("Variable", "AxisMetadata") for cls in type(node).__mro__):
            return node, child
    return None, ""


def _axes(layer: Any, attribute: str, shape: tuple[int, ...]) -> str | None:
    """Return what the axes of a weight mean in a layer of Equinox or Flax NNX, which may be a stack of layers."""
    letters = next(filter(None, (_letters(cls, layer, attribute) for cls in type(layer).__mro__)), None)
    if letters is None or len(letters) > len(shape):
        return None
    known = {"i": ("in_features", "in_channels"), "o": ("out_features", "out_channels")}
    sizes = {key: next((getattr(layer, name, None) for name in names), None) for key, names in known.items()}
    depth = len(shape) - len(letters)
    found = []
    for places in itertools.combinations(range(len(shape)), depth):  # the first one: axes in front
        rest = iter(letters)
        axes = ["s" if axis in places else next(rest) for axis in range(len(shape))]
        fits = all(sizes[key] in (None, shape[axes.index(key)]) or type(sizes[key]) is not int for key in ("i", "o"))
        found.append((not fits, places, " ".join(axes)))
    return min(found)[2]


def _letters(cls: type, layer: Any, attribute: str) -> list[str] | None:
    """Return what the axes of a weight mean that a class of Equinox or Flax NNX gives a single layer."""
    package, name = cls.__module__.partition(".")[0], cls.__name__
    if package == "equinox" and attribute.startswith("weight"):
        if name in ("Linear", "GRUCell", "LSTMCell", "Embedding"):
            return ["o", "i"]
        if name in ("Conv", "ConvTranspose"):
            return ["o", "i", *_SPATIAL[layer.num_spatial_dims].split()]
    if package == "flax" and attribute == "kernel":
        if name == "Linear":
            return ["i", "o"]
        if name == "LinearGeneral":
            ins, outs = len(layer.in_features), len(layer.out_features)
            return ["i", *"abcdefgh"[: ins - 1], *"s" * (outs - 1), "o"]
        if name in ("Conv", "ConvTranspose"):
            turned = getattr(layer, "transpose_kernel", False)
            return [*_SPATIAL[len(layer.kernel_size)].split(), *("oi" if turned else "io")]
    return ["o", "i"] if package == "flax" and name == "Embed" and attribute == "embedding" else None
