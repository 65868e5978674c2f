"""The structure of a ``torch.nn.Module`` for porting: its layers and the roles of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from smh.backends.torch.copies import NAMES
from smh.backends.torch.discovery import discover, held
from smh.backends.torch.store import find_store
from smh.porting.layers import GATES, Layer, Setting, Slot, Structure, tensor_layer

_KINDS = {
    nn.Linear: "dense",
    nn.modules.conv._ConvTransposeNd: "conv_transpose",  # a subclass of the next one
    nn.modules.conv._ConvNd: "conv",
    nn.Embedding: "embedding",
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
    nn.MultiheadAttention: "attention",
    **dict.fromkeys((nn.LSTM, nn.LSTMCell), "lstm"),
    **dict.fromkeys((nn.GRU, nn.GRUCell), "gru"),
    **dict.fromkeys((nn.RNN, nn.RNNCell), "rnn"),
}
_ROLES = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "count",
}


def describe(model: nn.Module) -> Structure:
    """Return the structure of a module, compressed or not."""
    tensors = _tensors(model)
    layers: list[Layer] = []
    taken: set[str] = set()
    for prefix, module in model.named_modules():
        own = {attribute: slot for (owner, attribute), slot in tensors.items() if owner is module}
        # A tied tensor belongs to the first layer that has it.
        own = {attribute: slot for attribute, slot in own.items() if slot.name not in taken}
        taken |= {slot.name for slot in own.values()}
        layers += [layer for layer in _layers(prefix, module, own) if layer.slots]
    return Structure(channels_last=False, layers=tuple(layers))


def _tensors(model: nn.Module) -> dict[tuple[nn.Module, str], Slot]:
    """Return every tensor that a checkpoint of the model names, by the places where modules hold it."""
    store = find_store(model)
    slots: dict[tuple[nn.Module, str], Slot] = {}
    if store is None:
        for name, found in discover(model).items():
            for module, attribute in found.sites:
                key = attribute + name.removeprefix(found.whole)
                slots[module, key] = Slot(name, found.tensor.shape, dtype=_dtype(found.x))
    else:
        shapes = {tensor.name: tensor.viewed_shape for tensor in store.compression.plan.tensors}
        for module in store.root.modules():
            for attribute, weight in module.__dict__.get(NAMES, {}).items():
                for name in store.weights[weight]:
                    slots[module, attribute + name.removeprefix(weight)] = Slot(name, shapes[name])
        variables = set(store.slots.values())
        for x, places in held(store.root):
            for site in places.values():
                if site not in variables:
                    slots[site] = Slot(next(iter(places)), tuple(x.shape), dtype=_dtype(x))
    return {
        (module, attribute): slot
        for (module, attribute), slot in slots.items()
        if attribute not in module._non_persistent_buffers_set
    }


def _layers(name: str, module: nn.Module, own: dict[str, Slot]) -> Iterator[Layer]:
    """Yield the layers that a module is to other frameworks, from the tensors that it holds itself."""
    kind = next((kind for cls, kind in _KINDS.items() if isinstance(module, cls)), "")
    if kind.endswith("_norm"):
        slots = {_ROLES[key]: slot for key, slot in own.items() if key in _ROLES}
        channels = isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)  # of no vector
        yield Layer(name, kind, slots, _settings(module), reads=() if channels else None)
    elif kind == "attention":
        yield from _attention(name, own)
    elif kind in GATES:
        for suffix in dict.fromkeys("".join(key.partition("_l")[1:]) for key in own):  # "_l0_reverse", or "" of a cell
            yield _recurrent(".".join(filter(None, (name, suffix[2:]))), kind, own, suffix)
    elif kind:
        yield Layer(name, kind, own)
    else:
        for slot in own.values():
            yield tensor_layer(slot.name, slot.shape, slot.dtype)


def _attention(name: str, own: dict[str, Slot]) -> Iterator[Layer]:
    """Yield the projections of an attention; those that lie in one tensor are its parts."""
    rest = dict(own)
    packed, bias = rest.pop("in_proj_weight", None), rest.pop("in_proj_bias", None)
    for k, role in enumerate(("query", "key", "value")):
        slots = {}
        for attribute in (f"in_proj_weight.{role}", f"{role[0]}_proj_weight"):
            if attribute in rest:
                slots["weight"] = rest.pop(attribute)
        if packed is not None:
            slots["weight"] = replace(packed, part=(k, 3))
        if bias is not None:
            slots["bias"] = replace(bias, part=(k, 3))
        yield Layer(f"{name}.{role}" if name else role, "dense", slots)
    for slot in rest.values():  # bias_k, bias_v
        yield tensor_layer(slot.name, slot.shape, slot.dtype)


def _recurrent(name: str, kind: str, own: dict[str, Slot], suffix: str) -> Layer:
    ends = {"ih": "input", "hh": "hidden"}
    roles = {f"{what}_{end}{suffix}": f"{what}_{role}" for what in ("weight", "bias") for end, role in ends.items()}
    slots = {role: own[key] for key, role in roles.items() if key in own}
    hidden = slots.get("weight_hidden")
    projected = hidden is not None and hidden.shape[0] != GATES[kind] * hidden.shape[1]
    return Layer(name, kind, slots, problem="it projects its hidden state (proj_size)" if projected else "")


def _settings(module: Any) -> dict[str, Setting]:
    values = {"epsilon": ("eps", module.eps), "momentum": ("momentum", getattr(module, "momentum", None))}
    return {word: Setting(own, float(value)) for word, (own, value) in values.items() if value is not None}


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
