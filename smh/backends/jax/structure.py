"""The structure of a pytree for porting: Flax NNX and Equinox layers by their classes, Flax's dictionaries by names.

Flax and Equinox are not imported: who has such layers has imported them, and classes are told by name and module.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from smh.backends.jax import pytrees
from smh.backends.jax.pytrees import ARRAYS, Compressed
from smh.backends.jax.trained import is_a as _is
from smh.core.views import View
from smh.porting.layers import Layer, Setting, Slot, Structure, numbered, tensor_layer

_SPATIAL = {3: "w", 4: "h w", 5: "d h w"}  # by the rank of a kernel
_NORMS = {"BatchNorm": "batch_norm", "LayerNorm": "layer_norm", "GroupNorm": "group_norm", "RMSNorm": "rms_norm"}
_CELLS = {"GRUCell": "gru", "LSTMCell": "lstm", "OptimizedLSTMCell": "lstm"}
_ATTENTION = {**dict.fromkeys(("query", "key", "value"), "i h d -> (h d) i"), "out": "h d o -> o (h d)"}
_SEPARATE = {"lstm": "ifgo", "gru": "rzn"}  # cells of Flax with two dense layers for each gate
_STATISTICS = ("scale", "bias", "mean", "var")
_COLLECTIONS = ("params", "batch_stats")  # of flax.linen, around the names of layers


def describe(params: Any) -> Structure:
    """Return the structure of parameters, compressed or not, or of a module of Flax NNX or Equinox."""
    reader = _Reader(params)
    layers = tuple(_joined(list(reader.layers(reader.tree))))
    return Structure(not reader.equinox, layers, frozenset(map(_without_collection, reader.alphabetical)))


@dataclass(frozen=True)
class _Leaf:
    """A tensor of which only the name is known."""

    name: str
    slot: Slot
    in_dict: bool


@dataclass(frozen=True)
class _Known:
    """What the class of a layer tells of it."""

    kind: str
    tensors: Mapping[str, tuple[str, str | View | None]]  # by role: the attributes that lead to one, and its view
    settings: Mapping[str, Setting] = field(default_factory=dict)
    problem: str = ""


class _Reader:
    """Goes through a pytree; names are those by which :func:`smh.compress` calls its leaves."""

    def __init__(self, params: Any) -> None:
        if isinstance(params, Compressed):
            self.tree, self.names = _restored(params)
        else:
            self.tree, self.names = params, _first_names(params)
        self.only = ("Param", "BatchStat") if _is(params, "flax", "Module") else ("Variable",)
        self.equinox = False
        self.alphabetical: set[str] = set()

    def layers(self, x: Any, name: str | None = None, in_dict: bool = False) -> Iterator[Layer | _Leaf]:
        """Yield the layers and the other tensors below a node."""
        if (variable := _is(x, "flax", "Variable")) or isinstance(x, ARRAYS):
            slot = self._slot(x, name)
            if slot is not None and (not variable or any(_is(x, "flax", kind) for kind in self.only)):
                yield _Leaf(name or "params", slot, in_dict)
        elif (known := self._known(x)) is not None:
            slots = {}
            for role, (attributes, view) in known.tensors.items():
                tensor = functools.reduce(lambda y, part: getattr(y, part, None), attributes.split("/"), x)
                if (slot := self._slot(tensor, _below(name, attributes), View.make(view))) is not None:
                    slots[role] = slot
            if slots:
                yield Layer(name or "params", known.kind, slots, known.settings, problem=known.problem)
        else:
            children = _children(x)
            names = [key for key, _ in children]
            if len(names) > 1 and names == sorted(names) and (isinstance(x, Mapping) or _is(x, "flax", "Module")):
                self.alphabetical.add(name or "")
            for key, child in _by_number(children):
                yield from self.layers(child, _below(name, key), isinstance(x, Mapping))

    def _slot(self, x: Any, name: str | None, view: View | None = None) -> Slot | None:
        """Return a tensor, if it is one of the parameters."""
        first = self.names.get(name or "params")
        if first is None or x is None:
            return None
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # files hold the words of a key
            x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return Slot(first, tuple(x.shape), view, dtype=str(x.dtype))

    def _known(self, x: Any) -> _Known | None:
        """Return the description of the nearest known class of an object."""
        for cls in type(x).__mro__:
            package = cls.__module__.partition(".")[0]
            tell = {"flax": _flax, "equinox": _equinox}.get(package)
            if tell is not None and (known := tell(cls.__name__, x)) is not None:
                self.equinox |= package == "equinox"
                return known
        return None


def _flax(cls: str, x: Any) -> _Known | None:
    """Return the description of a layer of Flax NNX: kernels have inputs before outputs, and are channels-last."""
    if cls in ("Linear", "LinearGeneral"):
        ins = " ".join(f"i{k}" for k in range(np.size(x.in_features)))
        outs = " ".join(f"o{k}" for k in range(np.size(x.out_features)))
        bias = f"{outs} -> ({outs})" if " " in outs else None
        return _Known("dense", {"weight": ("kernel", f"{ins} {outs} -> ({outs}) ({ins})"), "bias": ("bias", bias)})
    if cls in ("Conv", "ConvTranspose"):
        sp = _SPATIAL[len(x.kernel.shape)]
        kind, view = "conv", View(f"{sp} i o -> o i {sp}")
        if cls == "ConvTranspose":
            kind, pattern = "conv_transpose", f"{sp} i o -> i o {sp}"
            view = View(f"{sp} o i -> i o {sp}") if x.transpose_kernel else _flipped(pattern, x.kernel.shape, 0)
        return _Known(kind, {"weight": ("kernel", view), "bias": ("bias", None)})
    if cls == "Embed":
        return _Known("embedding", {"weight": ("embedding", None)})
    if cls in _NORMS:
        settings = {"epsilon": Setting("epsilon", float(x.epsilon))}
        if hasattr(x, "momentum"):
            settings["momentum"] = Setting("momentum", float(x.momentum), complement=True)
        return _Known(_NORMS[cls], {role: (role, None) for role in _STATISTICS}, settings)
    if cls in ("GRUCell", "OptimizedLSTMCell"):
        bias_role, holder = ("bias_input", "dense_i") if cls == "GRUCell" else ("bias", "dense_h")
        weights = {"weight_input": ("dense_i/kernel", "i o -> o i"), "weight_hidden": ("dense_h/kernel", "i o -> o i")}
        return _Known(_CELLS[cls], {**weights, bias_role: (f"{holder}/bias", None)})
    if cls == "LSTMCell":
        names = {f"{end}.{k}": {"if": "if_"}.get(name, name) for (end, k), name in _gates("ifgo").items()}
        weights = {f"weight_{end}": (f"{name}/kernel", "i o -> o i") for end, name in names.items()}
        biases = {
            end.replace("hidden", "bias"): (f"{name}/bias", None) for end, name in names.items() if "hidden" in end
        }
        return _Known("lstm", {**weights, **biases})
    return None


def _equinox(cls: str, x: Any) -> _Known | None:
    """Return the description of a layer of Equinox: weights are those of PyTorch, biases may have axes of size 1."""
    if cls in ("Linear", "Embedding"):
        return _Known("dense" if cls == "Linear" else "embedding", {"weight": ("weight", None), "bias": ("bias", None)})
    if cls in ("Conv", "ConvTranspose"):
        kind, view, bias = "conv", None, f"o {' '.join('1' * x.num_spatial_dims)} -> o"
        if cls == "ConvTranspose":
            kind, sp = "conv_transpose", _SPATIAL[len(x.weight.shape)]
            view = _flipped(f"(g o) i {sp} -> (g i) o {sp}", x.weight.shape, 2, {"g": x.groups})
        return _Known(kind, {"weight": ("weight", view), "bias": ("bias", bias)})
    if cls in ("LayerNorm", "GroupNorm", "RMSNorm"):
        tensors = {"scale": ("weight", None), "bias": ("bias", None)}
        return _Known(_NORMS[cls], tensors, {"epsilon": Setting("eps", float(x.eps))})
    if cls in ("GRUCell", "LSTMCell"):
        names = {"weight_input": "weight_ih", "weight_hidden": "weight_hh", "bias": "bias", "bias_n": "bias_n"}
        problem = "the two biases of an Equinox GRUCell are those of no other framework"
        tensors = {role: (name, None) for role, name in names.items()}
        return _Known(_CELLS[cls], tensors, problem=problem if cls == "GRUCell" and x.use_bias else "")
    return None


def _joined(found: Sequence[Layer | _Leaf]) -> Iterator[Layer]:
    """Yield all layers in order; tensors in dictionaries that have the names of Flax become layers."""
    groups: dict[str, dict[str, Slot]] = defaultdict(dict)
    for item in found:
        if isinstance(item, _Leaf) and item.in_dict:
            owner, _, role = item.name.rpartition("/")
            groups[_without_collection(owner)].setdefault(role, item.slot)
    made: set[str] = set()
    for item in found:
        if isinstance(item, Layer):
            yield item
        elif item.slot.name not in made:
            parent = _without_collection(item.name.rpartition("/")[0])
            layer = _by_names(parent, groups) if item.in_dict else None
            if layer is None or item.slot.name not in {slot.name for slot in layer.slots.values()}:
                kind = "state" if item.slot.dtype.startswith("uint") else "tensor"  # such as random keys and counters
                layer = tensor_layer(item.slot.name, item.slot.shape, item.slot.dtype, kind)
            made |= {slot.name for slot in layer.slots.values()}
            yield layer


def _by_names(name: str, groups: Mapping[str, Mapping[str, Slot]]) -> Layer | None:
    """Return the layer that the names of tensors in a dictionary of Flax tell."""
    slots = groups[name]
    if (cell := _cell_by_names(name.rpartition("/")[0], groups)) is not None:
        return cell
    if "kernel" in slots:
        rank = len(slots["kernel"].shape)
        parent, _, own = name.rpartition("/")
        if rank == 2:
            kind, pattern = "dense", "i o -> o i"
        elif rank == 3 and _below(parent or None, "query") in groups and own in _ATTENTION:
            kind, pattern = "dense", _ATTENTION[own]
        elif rank in _SPATIAL:
            kind, pattern = "conv", f"{_SPATIAL[rank]} i o -> o i {_SPATIAL[rank]}"
        else:
            return None
        made = {"weight": dataclasses.replace(slots["kernel"], view=View(pattern))}
        if "bias" in slots:
            view = View("h d -> (h d)") if len(slots["bias"].shape) == 2 else None
            made["bias"] = dataclasses.replace(slots["bias"], view=view)
        return Layer(name, kind, made)
    if "embedding" in slots:
        return Layer(name, "embedding", {"weight": slots["embedding"]})
    if "scale" in slots or {"mean", "var"} <= set(slots):
        kind = "batch_norm" if "mean" in slots else "norm"
        return Layer(name, kind, {role: slots[role] for role in _STATISTICS if role in slots})
    return None


def _gates(gates: str) -> dict[tuple[str, int], str]:
    """Return the names of the dense layers in a cell of Flax that keeps its gates apart."""
    return {(end, k): end[0] + gate for end in ("input", "hidden") for k, gate in enumerate(gates)}


def _cell_by_names(name: str, groups: Mapping[str, Mapping[str, Slot]]) -> Layer | None:
    """Return the recurrent cell that has dense layers of such names, if one does."""
    for kind, gates in _SEPARATE.items():
        found = {
            place: next(
                (
                    groups[path]
                    for path in (f"{name}/{key}".lstrip("/"), f"{name}/{key}_".lstrip("/"))
                    if path in groups
                ),
                {},
            )
            for place, key in _gates(gates).items()
        }
        if all("kernel" in slots for slots in found.values()):
            made = {}
            for (end, k), slots in found.items():
                made[f"weight_{end}.{k}"] = dataclasses.replace(slots["kernel"], view=View("i o -> o i"))
                if "bias" in slots:
                    made[f"bias.{k}" if kind == "lstm" else f"bias_{end}.{k}"] = slots["bias"]
            return Layer(name, kind, made)
    return None


def _without_collection(name: str) -> str:
    first, _, rest = name.partition("/")
    return rest if first in _COLLECTIONS else name


def _restored(compressed: Compressed) -> tuple[Any, dict[str, str]]:
    """Return the pytree that was compressed, with shapes in the place of weights, and the names of its tensors."""
    shapes = {tensor.name: jax.ShapeDtypeStruct(tensor.viewed_shape, "float32") for tensor in compressed.plan.tensors}
    arrays = {**compressed.kept, **shapes}
    tree = compressed.structure.restored(arrays)
    paths = pytrees.flatten(tree)[1]
    return tree, {path: name for path, name in zip(paths, compressed.structure.names, strict=True) if name in arrays}


def _first_names(params: Any) -> dict[str, str]:
    """Return for each array of plain parameters its first name; those of two and more axes may be tied."""
    tensors = pytrees.describe(params)
    return {name: x.name if len(x.shape) >= 2 else name for x in tensors for name in (x.name, *x.aliases)}


def _children(x: Any) -> list[tuple[str, Any]]:
    """Return the children of a node of a pytree, by name, in the order in which it holds them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    children = [(pytrees.join(path), child) for path, child in flat if path]
    held = list(x) if isinstance(x, Mapping) else list(vars(x)) if hasattr(x, "__dict__") else []
    places = {str(name): place for place, name in enumerate(held)}
    return sorted(children, key=lambda child: places.get(child[0], 0))


def _by_number(children: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return children in order; those that Flax Linen numbered as it made them, as Conv_2 and Conv_10, by number."""
    ordered = list(children)
    places: dict[str, list[int]] = defaultdict(list)
    for place, (name, _) in enumerate(children):
        if numbered(name, name):
            places[name.rpartition("_")[0]].append(place)
    for found in places.values():
        by_number = sorted((children[place] for place in found), key=lambda child: int(child[0].rpartition("_")[2]))
        for place, child in zip(found, by_number, strict=True):
            ordered[place] = child
    return ordered


def _below(name: str | None, key: str) -> str:
    return key if name is None else f"{name}/{key}"


def _flipped(pattern: str, shape: Sequence[int], first: int, sizes: Mapping[str, int] | None = None) -> View:
    """Return a view that also turns the spatial axes round, of which the first is axis ``first``."""
    axes = _SPATIAL[len(shape)].split()
    order = {axis: tuple(reversed(range(shape[first + k]))) for k, axis in enumerate(axes) if shape[first + k] > 1}
    return View(pattern, tuple((sizes or {}).items()), tuple(sorted(order.items())))
