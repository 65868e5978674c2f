"""The structure of a pytree for porting: Flax NNX and Equinox layers by their classes, Flax's dictionaries by names.

Flax and Equinox are not imported: who has such layers has imported them, and classes are told by name and module.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from smh.backends.jax import pytrees
from smh.backends.jax.pytrees import Compressed
from smh.core.views import View
from smh.porting.layers import Layer, Setting, Slot, Structure, tensor_layer

_SPATIAL = {3: "w", 4: "h w", 5: "d h w"}
_NORMS = {"BatchNorm": "batch_norm", "LayerNorm": "layer_norm", "GroupNorm": "group_norm", "RMSNorm": "rms_norm"}
_COLLECTIONS = ("params", "batch_stats")  # of flax.linen, around the names of layers


def describe(params: Any) -> Structure:
    """Return the structure of parameters, compressed or not, or of a module of Flax NNX or Equinox."""
    reader = _Reader(params)
    layers = list(reader.layers(reader.tree, ()))
    alphabetical = frozenset(_without_collection(name) for name in reader.alphabetical)
    return Structure(not reader.equinox, tuple(_joined(layers)), alphabetical)


@dataclass(frozen=True)
class _Leaf:
    """A tensor of which only the name is known."""

    name: str
    slot: Slot
    in_dict: bool
    state: bool


_Tensor = tuple[Any, Sequence[str], View | None]
"""A tensor of a layer, the attributes that lead to it, and its view."""


class _Reader:
    """Goes through a pytree; names are those by which :func:`smh.backends.jax.compress` calls its leaves."""

    def __init__(self, params: Any) -> None:
        if isinstance(params, Compressed):
            self.tree, self.names = _restored(params)
        else:
            self.tree = params
            self.names = _first_names(pytrees.flatten(params)[1])
        self.only = _is(params, "flax", "Module") and ("Param", "BatchStat")
        self.equinox = False
        self.alphabetical: set[str] = set()

    def layers(self, x: Any, path: tuple[Any, ...], in_dict: bool = False) -> Iterator[Layer | _Leaf]:
        """Yield the layers and the other tensors below a node."""
        if isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            yield from self._leaf(x, path, in_dict)
        elif _is(x, "flax", "Variable"):
            if not self.only or any(_is(x, "flax", kind) for kind in self.only):
                yield from self._leaf(x, path, in_dict, state=_is(x, "flax", "RngState"))
        elif (make := self._known(x)) is not None:
            yield make(x, path)
        else:
            children = _children(x)
            names = [pytrees.join((key,)) for key, _ in children]
            if len(names) > 1 and names == sorted(names) and (isinstance(x, Mapping) or _is(x, "flax", "Module")):
                self.alphabetical.add(pytrees.join(path) if path else "")
            for key, child in children:
                yield from self.layers(child, (*path, key), isinstance(x, Mapping))

    def _leaf(self, x: Any, path: tuple[Any, ...], in_dict: bool, state: bool = False) -> Iterator[_Leaf]:
        slot = self._slot(x, path)
        if slot is not None:
            yield _Leaf(pytrees.join(path), slot, in_dict, state or slot.dtype.startswith("uint"))

    def _slot(self, x: Any, path: tuple[Any, ...], view: View | None = None) -> Slot | None:
        """Return a tensor by its path, if it is one of the parameters."""
        name = self.names.get(pytrees.join(path))
        if name is None or x is None:
            return None
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # files hold the words of a key
            x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return Slot(name, tuple(x.shape), view, dtype=str(x.dtype))

    def _known(self, x: Any) -> Any:
        """Return what makes a layer of an object, if its class is known."""
        for cls in type(x).__mro__:
            makers = {"flax": _FLAX, "equinox": _EQUINOX}.get(cls.__module__.partition(".")[0], {})
            if cls.__name__ in makers:
                self.equinox = self.equinox or makers is _EQUINOX
                maker = makers[cls.__name__]
                return lambda x, path: maker(self, x, path)
        return None

    def layer(
        self,
        kind: str,
        path: tuple[Any, ...],
        tensors: Mapping[str, _Tensor],
        settings: Mapping[str, Setting] | None = None,
        problem: str = "",
    ) -> Layer:
        """Return a layer, given its tensors by role."""
        keys = {role: tuple(map(jax.tree_util.GetAttrKey, names)) for role, (_, names, _) in tensors.items()}
        found = {role: self._slot(x, (*path, *keys[role]), view) for role, (x, _, view) in tensors.items()}
        slots = {role: slot for role, slot in found.items() if slot is not None}
        return Layer(pytrees.join(path), kind, slots, settings or {}, problem=problem)


def _flax_linear(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    ins = [f"i{k}" for k in range(_count(x.in_features))]
    outs = [f"o{k}" for k in range(_count(x.out_features))]
    joined = " ".join(outs)
    kernel = View(f"{' '.join(ins)} {joined} -> ({joined}) ({' '.join(ins)})")
    bias = View(f"{joined} -> ({joined})") if len(outs) > 1 else None
    return reader.layer("dense", path, {"weight": (x.kernel, ["kernel"], kernel), "bias": (x.bias, ["bias"], bias)})


def _flax_conv(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    sp = _SPATIAL[len(x.kernel.shape)]
    view = View(f"{sp} i o -> o i {sp}")
    return reader.layer("conv", path, {"weight": (x.kernel, ["kernel"], view), "bias": (x.bias, ["bias"], None)})


def _flax_conv_transpose(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    sp = _SPATIAL[len(x.kernel.shape)]
    view = View(f"{sp} o i -> i o {sp}") if x.transpose_kernel else _flipped(f"{sp} i o -> i o {sp}", x.kernel.shape, 0)
    tensors = {"weight": (x.kernel, ["kernel"], view), "bias": (x.bias, ["bias"], None)}
    return reader.layer("conv_transpose", path, tensors)


def _flax_embed(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    return reader.layer("embedding", path, {"weight": (x.embedding, ["embedding"], None)})


def _flax_norm(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    tensors = {role: (getattr(x, role, None), [role], None) for role in ("scale", "bias", "mean", "var")}
    settings = {"epsilon": Setting("epsilon", float(x.epsilon))}
    if hasattr(x, "momentum"):
        settings["momentum"] = Setting("momentum", float(x.momentum), complement=True)
    return reader.layer(_norm(x), path, tensors, settings)


def _flax_cell(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    kind = "gru" if _is(x, "flax", "GRUCell") else "lstm"
    view = View("i o -> o i")
    tensors: dict[str, _Tensor] = {
        "weight_input": (x.dense_i.kernel, ["dense_i", "kernel"], view),
        "weight_hidden": (x.dense_h.kernel, ["dense_h", "kernel"], view),
    }
    if kind == "gru":
        tensors["bias_input"] = (x.dense_i.bias, ["dense_i", "bias"], None)
    else:
        tensors["bias"] = (x.dense_h.bias, ["dense_h", "bias"], None)
    return reader.layer(kind, path, tensors)


def _equinox_linear(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    return reader.layer("dense", path, {role: (getattr(x, role), [role], None) for role in ("weight", "bias")})


def _equinox_conv(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    ones = " ".join("1" * x.num_spatial_dims)
    bias = (x.bias, ["bias"], View(f"o {ones} -> o"))
    return reader.layer("conv", path, {"weight": (x.weight, ["weight"], None), "bias": bias})


def _equinox_conv_transpose(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    sp, ones = _SPATIAL[len(x.weight.shape)], " ".join("1" * x.num_spatial_dims)
    view = _flipped(f"(g o) i {sp} -> (g i) o {sp}", x.weight.shape, 2, {"g": x.groups})
    tensors = {"weight": (x.weight, ["weight"], view), "bias": (x.bias, ["bias"], View(f"o {ones} -> o"))}
    return reader.layer("conv_transpose", path, tensors)


def _equinox_embedding(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    return reader.layer("embedding", path, {"weight": (x.weight, ["weight"], None)})


def _equinox_norm(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    tensors = {
        "scale": (getattr(x, "weight", None), ["weight"], None),
        "bias": (getattr(x, "bias", None), ["bias"], None),
    }
    return reader.layer(_norm(x), path, tensors, {"epsilon": Setting("eps", float(x.eps))})


def _equinox_cell(reader: _Reader, x: Any, path: tuple[Any, ...]) -> Layer:
    kind = "gru" if _is(x, "equinox", "GRUCell") else "lstm"
    tensors: dict[str, _Tensor] = {
        "weight_input": (x.weight_ih, ["weight_ih"], None),
        "weight_hidden": (x.weight_hh, ["weight_hh"], None),
        "bias": (x.bias, ["bias"], None),
    }
    problem = ""
    if kind == "gru" and x.use_bias:
        tensors["bias_n"] = (x.bias_n, ["bias_n"], None)
        problem = "the two biases of an Equinox GRUCell are those of no other framework"
    return reader.layer(kind, path, tensors, problem=problem)


_FLAX = {
    **dict.fromkeys(("Linear", "LinearGeneral"), _flax_linear),
    "Conv": _flax_conv,
    "ConvTranspose": _flax_conv_transpose,
    "Embed": _flax_embed,
    **dict.fromkeys(_NORMS, _flax_norm),
    **dict.fromkeys(("GRUCell", "OptimizedLSTMCell"), _flax_cell),
}
_EQUINOX = {
    "Linear": _equinox_linear,
    "Conv": _equinox_conv,
    "ConvTranspose": _equinox_conv_transpose,
    "Embedding": _equinox_embedding,
    **dict.fromkeys(("LayerNorm", "GroupNorm", "RMSNorm"), _equinox_norm),
    **dict.fromkeys(("GRUCell", "LSTMCell"), _equinox_cell),
}


def _joined(found: Sequence[Layer | _Leaf]) -> Iterator[Layer]:
    """Yield all layers in order; tensors in dictionaries that have the names of Flax become layers."""
    groups: dict[str, dict[str, _Leaf]] = defaultdict(dict)
    for leaf in found:
        if isinstance(leaf, _Leaf) and leaf.in_dict:
            owner, _, role = leaf.name.rpartition("/")
            groups[_without_collection(owner)].setdefault(role, leaf)
    attention = {name.rpartition("/")[0] for name in groups if name.rpartition("/")[2] == "query"}
    made: set[str] = set()
    for item in found:
        if isinstance(item, Layer):
            if item.slots:
                yield item
        elif item.slot.name not in made:
            parent = _without_collection(item.name.rpartition("/")[0])
            layer = _by_names(parent, groups[parent], attention) if item.in_dict else None
            if layer is None or item.slot.name not in {slot.name for slot in layer.slots.values()}:
                kind = "state" if item.state else "tensor"
                layer = tensor_layer(item.slot.name, item.slot.shape, item.slot.dtype, kind)
            made |= {slot.name for slot in layer.slots.values()}
            yield layer


def _by_names(name: str, leaves: Mapping[str, _Leaf], attention: set[str]) -> Layer | None:
    """Return the layer that the names of tensors in a dictionary of Flax tell."""

    def slot(role: str, pattern: str = "") -> Slot:
        known = leaves[role].slot
        return Slot(known.name, known.shape, View(pattern) if pattern else None, dtype=known.dtype)

    slots: dict[str, Slot] = {}
    if "kernel" in leaves:
        rank = len(leaves["kernel"].slot.shape)
        parent, _, own = name.rpartition("/")
        if rank == 2:
            kind, pattern = "dense", "i o -> o i"
        elif rank == 3 and parent in attention and own in ("query", "key", "value"):
            kind, pattern = "dense", "i h d -> (h d) i"
        elif rank == 3 and parent in attention and own == "out":
            kind, pattern = "dense", "h d o -> o (h d)"
        elif rank in _SPATIAL:
            kind, pattern = "conv", f"{_SPATIAL[rank]} i o -> o i {_SPATIAL[rank]}"
        else:
            return None
        slots["weight"] = slot("kernel", pattern)
        if "bias" in leaves:
            slots["bias"] = slot("bias", "h d -> (h d)" if len(leaves["bias"].slot.shape) == 2 else "")
        return Layer(name, kind, slots)
    if "embedding" in leaves:
        return Layer(name, "embedding", {"weight": slot("embedding")})
    if "scale" in leaves or {"mean", "var"} <= set(leaves):
        roles = [role for role in ("scale", "bias", "mean", "var") if role in leaves]
        return Layer(name, "batch_norm" if "mean" in leaves else "norm", {role: slot(role) for role in roles})
    return None


def _without_collection(name: str) -> str:
    first, _, rest = name.partition("/")
    return rest if first in _COLLECTIONS else name


def _restored(compressed: Compressed) -> tuple[Any, dict[str, str]]:
    """Return the pytree that was compressed, with shapes in the place of arrays, and the names of its tensors."""
    structure = compressed.structure
    shapes = {tensor.name: jax.ShapeDtypeStruct(tensor.viewed_shape, "float32") for tensor in compressed.plan.tensors}
    shapes |= {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in compressed.kept.items()}
    found = {**{name: value for name, _, value in structure.constants}, **shapes}
    tree = jax.tree.unflatten(structure.treedef, [found[name] for name in structure.names])
    paths = pytrees.flatten(tree)[1]
    return tree, {path: name for path, name in zip(paths, structure.names, strict=True) if name in shapes}


def _first_names(named: Mapping[str, Any]) -> dict[str, str]:
    """Return for each array of plain parameters its first name; those of two and more axes may be tied."""
    names = {}
    for tensor in pytrees.describe(named):
        for name in (tensor.name, *tensor.aliases):
            names[name] = tensor.name if len(tensor.shape) >= 2 else name
    return names


def _children(x: Any) -> list[tuple[Any, Any]]:
    """Return the children of a node of a pytree in the order in which it holds them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    children = [(path[0], child) for path, child in flat if path]
    held = list(x) if isinstance(x, Mapping) else list(vars(x)) if hasattr(x, "__dict__") else []
    places = {str(name): place for place, name in enumerate(held)}
    return sorted(children, key=lambda child: places.get(jax.tree_util.keystr((child[0],), simple=True), 0))


def _is(x: Any, package: str, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] == package for cls in type(x).__mro__)


def _norm(x: Any) -> str:
    return next(_NORMS[cls.__name__] for cls in type(x).__mro__ if cls.__name__ in _NORMS)


def _count(features: Any) -> int:
    return len(features) if isinstance(features, (tuple, list)) else 1


def _flipped(pattern: str, shape: Sequence[int], first: int, sizes: Mapping[str, int] | None = None) -> View | None:
    """Return a view that also turns the spatial axes round, of which the first is axis ``first``."""
    axes = _SPATIAL[len(shape)].split()
    order = {axis: tuple(reversed(range(shape[first + k]))) for k, axis in enumerate(axes) if shape[first + k] > 1}
    return View.make((pattern, sizes or {}, order))
