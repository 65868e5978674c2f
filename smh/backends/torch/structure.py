"""The structure of a ``torch.nn.Module`` for porting: its layers and what their tensors are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from smh.backends.torch.discovery import discover, parts_of
from smh.backends.torch.generated import NAMES
from smh.backends.torch.install import find_store
from smh.porting.layers import GATES, Layer, Setting, Slot, Structure, tensor_layer

_NORMS = {
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
}
_ROLES = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "count",
}
_RECURRENT = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}
_CELLS = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}


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
    found: dict[tuple[nn.Module, str], Slot] = {}
    if store is None:
        tensors, sites = discover(model)
        for tensor in tensors:
            for module, attribute in sites[tensor.name]:
                part = tensor.name.rpartition(".")[2]
                key = f"{attribute}.{part}" if part in parts_of(module, attribute) else attribute
                found[module, key] = Slot(tensor.name, tensor.shape, dtype=_dtype(getattr(module, attribute)))
    else:
        shapes = {tensor.name: tensor.viewed_shape for tensor in store.plan.tensors}
        slots = set(store.slots.values())
        first: dict[int, str] = {}
        for prefix, module in store.root.named_modules():
            for attribute, name in module.__dict__.get(NAMES, {}).items():
                for part in store.packed.get(name, (name,)):
                    key = attribute if part == name else f"{attribute}.{part.rpartition('.')[2]}"
                    found[module, key] = Slot(part, shapes[part])
            for attribute, x in (*module._parameters.items(), *module._buffers.items()):
                if x is not None and (module, attribute) not in slots:
                    name = first.setdefault(id(x), f"{prefix}.{attribute}" if prefix else attribute)
                    found[module, attribute] = Slot(name, tuple(x.shape), dtype=_dtype(x))
    return {
        (module, attribute): slot
        for (module, attribute), slot in found.items()
        if attribute not in module._non_persistent_buffers_set
    }


def _layers(name: str, module: nn.Module, own: dict[str, Slot]) -> Iterator[Layer]:
    """Yield the layers that a module is to other frameworks, from the tensors that it holds itself."""
    norm = next((kind for cls, kind in _NORMS.items() if isinstance(module, cls)), None)
    recurrent = next((kind for cls, kind in _RECURRENT.items() if isinstance(module, cls)), None)
    cell = next((kind for cls, kind in _CELLS.items() if isinstance(module, cls)), None)
    if isinstance(module, nn.Linear):
        yield Layer(name, "dense", own)
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield Layer(name, "conv_transpose", own)
    elif isinstance(module, nn.modules.conv._ConvNd):
        yield Layer(name, "conv", own)
    elif isinstance(module, nn.Embedding):
        yield Layer(name, "embedding", own)
    elif norm is not None:
        yield Layer(name, norm, {_ROLES[key]: slot for key, slot in own.items() if key in _ROLES}, _settings(module))
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(name, own)
    elif recurrent is not None:
        for suffix in dict.fromkeys(key.partition("_l")[2] for key in own):
            yield _recurrent(f"{name}.{suffix}" if name else suffix, recurrent, own, f"_l{suffix}")
    elif cell is not None:
        yield _recurrent(name, cell, own, "")
    else:
        for slot in own.values():
            yield tensor_layer(slot.name, slot.shape, slot.dtype)


def _attention(name: str, own: dict[str, Slot]) -> Iterator[Layer]:
    """Yield the projections of an attention; those that lie in one tensor are its parts."""
    rest = dict(own)
    bias = rest.pop("in_proj_bias", None)
    packed = rest.pop("in_proj_weight", None)
    for k, role in enumerate(("query", "key", "value")):
        slots = {}
        if f"in_proj_weight.{role}" in rest:
            slots["weight"] = rest.pop(f"in_proj_weight.{role}")
        elif packed is not None:
            slots["weight"] = Slot(packed.name, packed.shape, part=(k, 3), dtype=packed.dtype)
        elif f"{role[0]}_proj_weight" in rest:
            slots["weight"] = rest.pop(f"{role[0]}_proj_weight")
        if bias is not None:
            slots["bias"] = Slot(bias.name, bias.shape, part=(k, 3), dtype=bias.dtype)
        yield Layer(f"{name}.{role}" if name else role, "dense", slots)
    for slot in rest.values():  # bias_k, bias_v
        yield tensor_layer(slot.name, slot.shape, slot.dtype)


def _recurrent(name: str, kind: str, own: dict[str, Slot], suffix: str) -> Layer:
    roles = {
        "weight_ih": "weight_input",
        "weight_hh": "weight_hidden",
        "bias_ih": "bias_input",
        "bias_hh": "bias_hidden",
    }
    slots = {role: own[f"{key}{suffix}"] for key, role in roles.items() if f"{key}{suffix}" in own}
    hidden = slots.get("weight_hidden")
    projected = hidden is not None and hidden.shape[0] != GATES[kind] * hidden.shape[1]
    return Layer(name, kind, slots, problem="it projects its hidden state (proj_size)" if projected else "")


def _settings(module: Any) -> dict[str, Setting]:
    settings = {}
    if module.eps is not None:
        settings["epsilon"] = Setting("eps", float(module.eps))
    if getattr(module, "momentum", None) is not None:
        settings["momentum"] = Setting("momentum", float(module.momentum))
    return settings


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
