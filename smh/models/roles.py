"""Which tensors are weight matrices: decided by the class of the layer if it is known, else by names and sizes.

No framework is imported: classes are recognized by name. Other tensors are kept, unless ``include``
asks for them.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from smh.core.rules import default_axes
from smh.models.compression import ModelTensor

Shape = tuple[int, ...]

ADAPTER = "it is an adapter: compress the model before it is adapted"
"""Why adapters are kept: they start at zero, and the model that they adapt is frozen."""

_LAYERS = {
    "torch": {"Linear", "Bilinear", "_ConvNd", "MultiheadAttention", "RNNBase", "RNNCellBase"},
    "equinox": {"Linear", "Conv", "ConvTranspose", "GRUCell", "LSTMCell"},
}
_NORM = re.compile(r"Norm(alization)?(Gated|Act)?\w{0,4}|PReLU|LayerScale")  # ends of names: LlamaRMSNorm, LayerNorm2d
_OF_NORM = re.compile(r"(weight|scale|gamma|gain|g|bias|beta|b|offset|alpha|(.*_)?bias)\d?")
_MATRIX = re.compile(r"(.*_)?kernel|w|weight|embeddings?")
_NAMES = tuple(
    (re.compile(pattern, re.IGNORECASE), why)
    for pattern, why in (
        (r"(.*_)?bias|bias_.*|beta|offset", "it is a bias"),
        (r"(.*_)?scales?(_inv)?|gamma|gain|(.*_)?layer_?scale.*", "it is a scale"),
        (r"alpha|negative_slope", "it is a slope"),
        (r"((running|moving)_)?(mean|var|variance)", "it is a running statistic"),
        (r"cached?_.*|(.*_)?(key|value|kv?)_cache", "it is a cache"),
        (r"q?zeros|(.*_)?zero_points?|(.*_)?absmax|amax|(.*_)?quant_map|scb", "it belongs to quantized weights"),
        (r"(.*_)?(cls|class|mask|dist|distillation|register|query)_tokens?", "it is a token"),
        (r"(.*_)?rel(ative)?_(pos|position|attention|bias)(_.*)?", "it is a table of relative positions"),
        (r"a_log", "its starting values have a meaning"),
    )
)
_VECTORS = tuple(pattern for pattern, _ in _NAMES[:4])  # the names of what is a vector in a single layer
_PAIRS = (("_v", "_g"), ("_orig", "_u"), ("_v", "_orig"))  # of weight_norm and spectral_norm in PyTorch
_QUANTISED = re.compile(r"q?(weight|kernel|embeddings?)(_packed|_q)?", re.IGNORECASE)


def by_class(layer: object, attribute: str) -> str | None:
    """Return why a tensor of a layer is not a weight matrix, "" if it is one, or None if the class is unknown."""
    for cls in type(layer).__mro__:
        package = cls.__module__.partition(".")[0]
        if cls.__name__ in _LAYERS.get(package, ()):
            return "" if re.search("(^|_)weight", attribute) else None
        known = package in ("torch", "keras", "flax", "equinox")
        if re.search(f"({_NORM.pattern})$", cls.__name__) and (known or _OF_NORM.fullmatch(attribute)):
            return f"it is a parameter of {type(layer).__name__}"
    return None


def by_name(name: str, shape: Shape, beside: Mapping[str, ModelTensor], depth: int = 0) -> str:
    """Return why a tensor is not a weight matrix by name and sizes, or "".

    ``beside`` has the tensors of its layer. The first ``depth`` axes count layers of a stack, or experts.
    """
    *path, attribute = re.split("[./]", name)
    if len(shape) < 2:
        return "fewer than two axes"
    for pattern, why in _NAMES:
        if pattern.fullmatch(attribute):
            return why
    if attribute == "b" and "w" in beside:
        return "it is a bias"
    if _MATRIX.fullmatch(attribute) and any(x in beside and beside[x].shape == shape for x in ("bias", "b")):
        return "it has the shape of its bias, as the parameters of norms have"
    ends = (attribute.removesuffix(end) + other for end, other in _PAIRS if attribute.endswith(end))
    needed = next((other for other in ends if other in beside), None)
    if "parametrizations" in path or needed:
        return f"it means something only together with {needed or 'what else its layer is made of'!r}"
    for other, x in beside.items():
        if other != attribute and x.kept and len(x.shape) > 1 and _QUANTISED.fullmatch(other):
            return f"it means something only together with {other!r}, which is kept"
    inner = shape[depth:]  # that of one layer, which decides as if the layer were alone
    if len(inner) < 2:
        return "fewer than two axes in each layer of the stack"
    if attribute != "w" and not attribute.endswith("kernel") and sum(size != 1 for size in inner) < 2:
        return "fewer than two axes of more than one element"
    return ""


def complete(
    tensors: Iterable[ModelTensor], axes_of: Callable[[Shape], str | None] = lambda shape: None
) -> tuple[ModelTensor, ...]:
    """Return tensors with what their names tell: which are not weight matrices, and which are stacks of layers.

    ``axes_of`` gives the meaning of axes by shape where it is not that of :meth:`smh.Plan.build`.
    """
    tensors = tuple(tensors)
    layers: dict[str, dict[str, ModelTensor]] = defaultdict(dict)
    for tensor in tensors:
        layer, attribute = _split(tensor.name)
        layers[layer][attribute] = tensor
    depths = stacks({tensor.name: tensor.shape for tensor in tensors if not tensor.kept})
    joined = {(_module(t.name), t.shape[depths.get(t.name, 0) :][:2]) for t in tensors}  # by what takes heads
    found = []
    for tensor in tensors:
        left, axes, doubt = tensor.left, tensor.axes, ""
        depth = depths.get(tensor.name, 0)
        if not left and re.search("(^|[./])lora_", tensor.name, re.IGNORECASE):  # whatever the class of its layer
            left = ADAPTER
        elif left is None:
            left = by_name(tensor.name, tensor.shape, layers[_split(tensor.name)[0]], depth)
        if axes is None:
            bias = layers[_split(tensor.name)[0]].get("bias")
            axes = _axes(tensor.name, tensor.shape, depth, axes_of, bias.shape[depth:] if bias else ())
            inner, stack = tensor.shape[depth:], ["s"] * depth
            told = tensor.kind or bias or axes_of(inner) or axes not in (None, " ".join([*stack, "w i o"]))
            if not told and _may_have_heads(tensor.name, inner):
                if (_module(tensor.name), inner[1:]) in joined:
                    axes = " ".join([*stack, "i s o"])
                else:
                    doubt = f"axes={{{tensor.name!r}: 'i s o'}} if it has heads, or 'w i o' if it is a convolution"
        found.append(dataclasses.replace(tensor, left=left, axes=axes, doubt=doubt))
    return tuple(found)


def stacks(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return for each tensor how many leading axes count layers of a stack, or experts.

    A part of a model is a stack if its tensors have the same first size, and its biases and scales, which are vectors
    in a single layer, an axis more. Where there are none, it is one if it is called experts.

    >>> stacks({"scan/fc/kernel": (4, 9, 7), "scan/fc/bias": (4, 7), "out/kernel": (7, 3), "out/bias": (3,)})
    {'scan/fc/kernel': 1, 'scan/fc/bias': 1, 'out/kernel': 0, 'out/bias': 0}
    """
    parts: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        for end in (0, *(separator.end() for separator in re.finditer("[./]", name))):
            parts[name[:end]].append(name)
    depths = dict.fromkeys(shapes, 0)
    for _, names in sorted(parts.items(), key=lambda part: len(part[0])):
        while _is_stack({name: shapes[name][depths[name] :] for name in names}):
            for name in names:
                depths[name] += 1
    for name, shape in shapes.items():
        if len(shape) - depths[name] == 3 and re.search(r"(^|[./_])experts?[./](?!\d)", name, re.IGNORECASE):
            depths[name] += 1
    return depths


def structure_of(x: np.ndarray) -> str:
    """Return the structure of values, which random values in their place would lose, or "".

    >>> structure_of(np.zeros((3, 4))), structure_of(np.log(np.ones((3, 1)) * np.arange(1, 5)))
    ('all its values were 0', 'its values were the same along axis 0')
    """
    if x.size < 2:
        return ""
    if x.flat[1] == x.flat[0] and (x == x.flat[0]).all():
        return f"all its values were {float(x.flat[0]):.4g}"
    for axis, size in enumerate(x.shape):
        first = x.take([0], axis)
        if size > 1 and (x.take([1], axis) == first).all() and (x == first).all():  # two rows first: most differ
            return f"its values were the same along axis {axis}"
    zeros = 1.0 - np.count_nonzero(x) / x.size
    return f"{zeros:.0%} of its values were 0" if zeros >= 0.5 else ""


def _is_stack(shapes: Mapping[str, Shape]) -> bool:
    """Return whether tensors, all of a part of a model, have an axis in front that counts layers."""
    first = next(iter(shapes.values()))[:1]
    if first <= (1,) or any(shape[:1] != first for shape in shapes.values()):
        return False
    evident = False
    for name, shape in shapes.items():
        layer, attribute = _split(name)
        like_bias = any(shapes.get(layer + bias) == shape for bias in ("bias", "b"))
        if not like_bias and _MATRIX.fullmatch(attribute):
            if len(shape) < 3:
                return False
            continue
        has_matrix = any(layer + matrix in shapes for matrix in ("w", "weight", "kernel"))
        vector = (attribute == "b" and has_matrix) or any(pattern.fullmatch(attribute) for pattern in _VECTORS)
        if vector or any(pattern.fullmatch(attribute) for pattern, _ in _NAMES):
            if len(shape) < 2:
                return False
            evident |= vector and sum(size > 1 for size in shape) > 1
    return evident


def _axes(name: str, shape: Shape, depth: int, axes_of: Callable[[Shape], str | None], bias: Shape = ()) -> str | None:
    """Return the meaning of the axes of a tensor inside ``depth`` stacks, or None for the default by rank.

    A bias of several axes has those of the outputs, as in Flax's DenseGeneral: all but the last count heads.
    """
    layer, attribute = _split(name)
    if not _MATRIX.fullmatch(attribute):  # sizes of 1 in front let tables and vectors broadcast
        while len(shape) - depth > 2 and shape[depth] == 1:
            depth += 1
    inner = shape[depth:]
    own = axes_of(inner)
    if own is None and len(inner) == 2 and attribute.startswith("embedding"):
        own = "o i"
    elif own is None and attribute == "kernel" and 1 < len(bias) < len(inner) and inner[-len(bias) :] == bias:
        own = " ".join(["i", *"abcdefgh"[: len(inner) - len(bias) - 1], *"s" * (len(bias) - 1), "o"])
    elif own is None and len(inner) == 3 and re.search("(^|/)((query|key|value)|[qkv](_proj)?)/kernel$", name):
        own = "i s o"  # heads
    if own is None and depth and len(inner) <= 5:
        own = default_axes(inner)
    return own if own is None else " ".join([*"s" * depth, own])


def _may_have_heads(name: str, shape: Shape) -> bool:
    """Return whether a kernel of three axes may be Flax's DenseGeneral: a convolution has a smaller window."""
    return _split(name)[1] == "kernel" and len(shape) == 3 and shape[0] > shape[1] > 1


def _module(name: str) -> str:
    """Return the name of the module that has the layer of a tensor."""
    return _split(_split(name)[0][:-1])[0]


def _split(name: str) -> tuple[str, str]:
    """Return the name of a layer, up to the last dot or slash, and that of its tensor."""
    attribute = re.split("[./]", name)[-1]
    return name[: len(name) - len(attribute)], attribute
