"""What a ``torch.nn.Module`` consists of: which tensors may be generated, where they are read, and why others stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from smh.backends.torch.store import Site
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import ModelTensor


def parts_of(module: nn.Module, attribute: str) -> tuple[str, ...]:
    """Return the names of the matrices that lie in one parameter, or nothing.

    They are generated one by one, each with a scale of its own, as other frameworks hold them.
    """
    packed = isinstance(module, nn.MultiheadAttention) and attribute == "in_proj_weight"
    return ("query", "key", "value") if packed else ()


def discover(model: nn.Module, plan: Plan | None = None) -> tuple[tuple[ModelTensor, ...], dict[str, list[Site]]]:
    """Return all parameters and buffers of a model, once each, and where parameters are read.

    Parameters that may be generated and hold several matrices (:func:`parts_of`) are listed by these, unless a plan
    names the whole.
    """
    elsewhere = _held_elsewhere(model)
    found: dict[int, tuple[torch.Tensor, list[str], list[Site], str]] = {}
    for prefix, module in model.named_modules():
        for attribute, x in (*module._parameters.items(), *module._buffers.items()):
            if x is not None:
                why = _why_kept(module, prefix, attribute, x) or elsewhere.get(id(x), "")
                entry = found.setdefault(id(x), (x, [], [], why))
                entry[1].append(f"{prefix}.{attribute}" if prefix else attribute)
                entry[2].append((module, attribute))
                found[id(x)] = (*entry[:3], entry[3] or why)
    dtype = next((x.dtype for x, _, _, why in found.values() if not why and x.ndim >= 2), None)
    tensors, sites = [], {}
    for x, names, places, why in found.values():
        if not why and x.dtype != dtype:
            why = f"its type is {x.dtype}, that of the first one is {dtype}"
        module, attribute = places[0]
        parts = parts_of(module, attribute)
        whole = why or plan is not None and names[0] in {tensor.name for tensor in plan.tensors}
        count = 1 if whole or not parts else len(parts)
        for suffix in [""] if count == 1 else [f".{part}" for part in parts]:
            tensors.append(
                ModelTensor(
                    name=f"{names[0]}{suffix}",
                    shape=(x.shape[0] // count, *x.shape[1:]) if x.ndim else (),
                    nbytes=x.numel() * x.element_size() // count,
                    axes=_axes(module, x.ndim),
                    aliases=tuple(f"{name}{suffix}" for name in names[1:]),
                    kept=why,
                )
            )
            sites[f"{names[0]}{suffix}"] = places
    return tuple(tensors), sites


def _why_kept(module: nn.Module, prefix: str, attribute: str, x: torch.Tensor) -> str:
    """Return why a tensor cannot be generated, or nothing."""
    if is_lazy(x):
        name = f"{prefix}.{attribute}"
        raise PlanError(f"the shape of {name!r} is not known yet: call the model once before you compress it")
    if not isinstance(x, nn.Parameter):
        return "it is a buffer"
    if not x.is_floating_point():
        return f"its type is {x.dtype}"
    if type(x) is not nn.Parameter or x.layout != torch.strided or x.is_meta:
        return f"it is no plain tensor but {type(x).__name__}, {x.layout}, on {x.device}"
    if "parametrizations" in prefix.split("."):
        return "its layer is parametrised (torch.nn.utils.parametrize)"
    for hook in module._forward_pre_hooks.values():
        target = getattr(hook, "name", getattr(hook, "_tensor_name", None))
        if isinstance(target, str) and attribute.startswith(f"{target}_"):
            return f"{type(hook).__name__} computes {target!r} from it"
    if not x.requires_grad:
        return "it is frozen (requires_grad=False)"
    if x.numel() == 0:
        return "it is empty"
    if getattr(module, "sparse", False) is True:
        return "its layer asks for sparse gradients"
    if getattr(module, "max_norm", None) is not None:
        return "its layer changes it in place (max_norm)"
    return ""


def _held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Return why parameters are kept that modules also hold beside their registers: there they would go stale."""
    reasons = {}
    for name, module in model.named_modules():
        for attribute, value in module.__dict__.items():
            if attribute in ("_parameters", "_buffers", "_modules", "_flat_weights"):
                continue
            parts = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            )
            for part in parts:
                if isinstance(part, nn.Parameter):
                    place = f"{name}.{attribute}" if name else attribute
                    reasons[id(part)] = f"it is also held in {place!r}, outside of the registered parameters"
    return reasons


def _axes(module: nn.Module, ndim: int) -> str | None:
    """Return what the axes of a weight mean in PyTorch: out, in, then spatial ones."""
    if not 2 <= ndim <= 5:
        return None
    first = "i o" if isinstance(module, nn.modules.conv._ConvTransposeNd) else "o i"
    return " ".join([first, *("d", "h", "w")[5 - ndim :]])


class Values(Mapping[str, np.ndarray]):
    """Present values of parameters, read when they are asked for."""

    def __init__(self, sites: Mapping[str, list[Site]]) -> None:
        self._sites = sites

    def __getitem__(self, name: str) -> np.ndarray:
        module, attribute = self._sites[name][0]
        values: np.ndarray = module._parameters[attribute].detach().to("cpu", torch.float32).numpy()
        part = name.rpartition(".")[2]
        parts = parts_of(module, attribute)
        return np.split(values, len(parts))[parts.index(part)] if part in parts else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
