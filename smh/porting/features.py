"""Features that are the pixels of a flattened image: frameworks with channels first and last count them differently."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from smh.core.views import View
from smh.errors import PortError, near_names
from smh.porting.layers import CONVOLUTIONS, GATES, Layer, Shape, Structure

OPTIONS = {"reads": "flatten", "gives": "unflatten"}
"""The options of a match for the layout of the inputs and the outputs of a layer."""
_WHAT = {"reads": "inputs", "gives": "outputs"}


def feature_axes(layer: Layer, which: str) -> dict[str, int]:
    """Return by role which axis of the neutral layout counts the inputs, or the outputs, of a layer."""
    if layer.kind == "tensor" or layer.signature[0] == "norm":
        vectors = {role: 0 for role, slot in layer.slots.items() if len(slot.viewed_shape) == 1}
        return vectors if which == "reads" and layer.kind != "group_norm" else {}
    roles = {
        "reads": {"weight": 1} if layer.kind in ("dense", *CONVOLUTIONS) else {"weight_input": 1},
        "gives": {"dense": {"weight": 0, "bias": 0}, "embedding": {"weight": 1}}.get(layer.kind, {}),
    }[which]
    return {role: roles[role.partition(".")[0]] for role in layer.slots if role.partition(".")[0] in roles}


def count(layer: Layer, which: str) -> int:
    """Return how many features a layer reads or gives, or 0 where that is not told."""
    axes = feature_axes(layer, which)
    return next((layer.slots[role].viewed_shape[axis] for role, axis in axes.items()), 0)


def turned(rank: int, images: Mapping[int, Shape], to_channels_last: bool) -> View | None:
    """Return the view that reorders some axes of a tensor, which are flattened images of channels and sizes."""
    before, after, sizes = [], [], []
    for axis in range(rank):
        first = [f"a{axis}s{k}" for k in range(len(images.get(axis, ())))]
        sizes += list(zip(first, images.get(axis, ()), strict=True))
        last = first[1:] + first[:1]
        before.append(f"({' '.join(first if to_channels_last else last)})" if first else f"a{axis}")
        after.append(f"({' '.join(last if to_channels_last else first)})" if first else f"a{axis}")
    return View(f"{' '.join(before)} -> {' '.join(after)}", tuple(sorted(sizes))) if images else None


def check_answers(which: str, answers: Mapping[str, Any], source: Structure, target: Structure) -> None:
    """Raise unless the options for flattened images are well formed and have an effect."""
    option = OPTIONS[which]
    layers = {layer.name: layer for layer in (*source.layers, *target.layers)}
    for name, image in answers.items():
        if name not in layers:
            raise PortError(f"{option} names {name!r}, a layer of neither model: {near_names(name, layers)}")
        sizes = isinstance(image, tuple | list) and all(isinstance(size, int) and size > 0 for size in image)
        if image is not None and not (sizes and len(image) > 1):
            raise PortError(f"{option} must give channels and sizes for {name!r}, such as (8, 6, 6); got {image!r}")
        if source.channels_last == target.channels_last:
            raise PortError(f"{option} for {name!r} changes nothing, as both models order images alike: leave it out")
        if not any(feature_axes(x, which) for x in (*source.layers, *target.layers) if x.name == name):
            kind = layers[name].kind
            raise PortError(
                f"{option} for {name!r} changes nothing, as no view turns the {_WHAT[which]} of its kind ({kind}): "
                "leave it out"
            )


def layout(
    which: str,
    source: Layer,
    target: Layer,
    models: tuple[Structure, Structure],
    answers: Mapping[str, Mapping[str, Any]],
) -> tuple[Shape, str]:
    """Return the image that two layers read or give flattened, () for none, and a question to the user, or "".

    Raises
    ------
    PortError
        If an image does not fit, or no view turns it.
    """
    if models[0].channels_last == models[1].channels_last:
        return (), ""
    if which == "gives" and target.kind not in ("dense", "embedding", *GATES):  # a norm gives what it reads
        return (), ""
    features, option, what, given = count(target, which), OPTIONS[which], _WHAT[which], answers[which]
    name = target.name if target.name in given else source.name
    own = name == target.name or all(layer.name != name for layer in models[1].layers)
    known = (given[name] or ()) if name in given and own else getattr(target, which)
    known = getattr(source, which) if known is None else known
    if known and not features:
        raise PortError(
            f"its {what} are a flattened image, or their order is unclear, and no view turns a {target.kind}"
        )
    ask = f"Say {option}={{{target.name!r}: (channels, *sizes)}} for an image, or None if both models have one order"
    if isinstance(known, str):
        return (), f"the order of its {features} {what} is unclear: {known}. {ask}"
    if known is not None:
        if known and math.prod(known) != features:
            raise PortError(f"an image {known} of channels and sizes does not have the {features} {what} of the layer")
        return tuple(known), ""
    first, layer = (models[1], target) if models[0].channels_last else (models[0], source)
    channels = _suspected(first.layers, layer, which, answers["gives"]) if features else None
    if channels is None:
        return (), ""
    if not channels:
        return (), f"are some of its {features} {what} a flattened image? {ask}"
    say = f"{option}={{{target.name!r}: ({channels}, height, width)}}"
    pixels = f"a flattened image of {channels} channels and {features // channels} pixels"
    return (), f"are its {features} {what} {pixels}? Say {say}, or None for no image"


def _suspected(layers: Sequence[Layer], layer: Layer, which: str, unflattened: Container[str]) -> int | None:
    """Return the channels of the image that a layer may read or give flattened, 0 if unknown; None if it does not.

    A layer may read one if the last layer before it is a convolution, or no layer gives as many features; and may give
    one if the next layer is a convolution, and no layer reads as many.
    """
    features, place = count(layer, which), [x.name for x in layers].index(layer.name)
    order = layers[place + 1 :] if which == "gives" else layers[:place][::-1]
    nearest = next((x for x in order if x.kind in ("dense", *CONVOLUTIONS, *GATES)), layer)
    if which == "gives":
        channels = _channels_read(nearest) if layer.kind == "dense" else 0
        used = any(x is not layer and x.kind in ("dense", *GATES) and count(x, "reads") == features for x in layers)
        return channels if channels > 1 and features % channels == 0 and features >= 4 * channels and not used else None
    if layer.kind not in ("dense", *GATES, "tensor") and layer.signature[0] != "norm":
        return None
    if layer.kind not in ("dense", *GATES):  # what lies between a flattening, or its inverse, and a dense layer
        for x in (x for x in layers if x.kind == "dense" and x.outputs == features):
            image = _suspected(layers, x, "gives", ())
            if image or x.name in unflattened:
                return image or 0
    elif nearest.kind in CONVOLUTIONS:
        if nearest.outputs == features:  # every channel is one feature: the image was pooled
            return None
        if features > nearest.outputs and features % nearest.outputs == 0:
            return nearest.outputs
    given = {x.outputs for x in layers} | {2 * x.outputs for x in layers if x.kind in GATES}
    images = [x.outputs for x in layers if x.kind in CONVOLUTIONS and x.outputs < features]
    if features in given or not images:
        return None
    mixed = 0 if any(x.kind in CONVOLUTIONS and x.outputs < features for x in layers[:place]) else None
    return next((channels for channels in images if features % channels == 0), mixed)


def _channels_read(layer: Layer) -> int:
    if layer.kind not in CONVOLUTIONS or "weight" not in layer.slots:
        return 0
    return layer.slots["weight"].viewed_shape[0 if layer.kind == "conv_transpose" else 1]
