"""What a ``torch.nn.Module`` consists of: which tensors may be generated, where they are read, and why others stay."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from smh.backends.torch.references import second_ways
from smh.backends.torch.sharded import is_cut
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import ModelTensor
from smh.models.roles import by_class

_AXES = {("XLNetRelativeAttention", key): "i s o" for key in "qkvr"} | {("XLNetRelativeAttention", "o"): "o w i"}
"""What axes mean in classes that contract them by ``einsum``."""

Site = tuple[nn.Module, str]
"""A module and one of its attributes."""


@dataclass(frozen=True)
class Found:
    """A tensor of a model: a parameter, a buffer, or one of several matrices that lie in one parameter."""

    tensor: ModelTensor
    x: torch.Tensor  # its values
    whole: str  # the name of the parameter or buffer
    parts: tuple[str, ...]  # the names of all tensors in that, one below the other
    sites: tuple[Site, ...]  # where modules hold it


def held(model: nn.Module) -> Iterable[tuple[torch.Tensor, dict[str, Site]]]:
    """Return all parameters and buffers of a model, once each, and where modules hold them, by name."""
    found: dict[int, tuple[torch.Tensor, dict[str, Site]]] = {}
    for prefix, module in model.named_modules():
        for attribute, x in (*module._parameters.items(), *module._buffers.items()):
            if x is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                found.setdefault(id(x), (x, {}))[1][name] = module, attribute
    return found.values()


def in_state(model: nn.Module) -> list[tuple[torch.Tensor, dict[str, Site]]]:
    """Return those of them that the state of the model has: buffers can be left out of it."""
    return [
        (x, places)
        for x, places in held(model)
        if not all(attribute in module._non_persistent_buffers_set for module, attribute in places.values())
    ]


def discover(model: nn.Module, plan: Plan | None = None) -> dict[str, Found]:
    """Return all tensors of a plain model, by first name.

    A parameter that may be generated and holds several matrices is listed by these, as other frameworks hold them and
    with a scale for each, unless a plan names the whole.
    """
    everything = in_state(model)
    elsewhere = second_ways(model, [(x, next(iter(places))) for x, places in everything]) | _of_adapters(model)
    listed = []
    sizes: Counter[torch.dtype] = Counter()
    for x, places in everything:
        whys = (_why_kept(module, name, x) or elsewhere.get(id(x)) for name, (module, _) in places.items())
        listed.append((x, places, next(filter(None, whys), "")))
        sizes[x.dtype] += x.numel() if not listed[-1][2] and x.ndim >= 2 else 0
    dtype, most = next(iter(sizes.most_common(1)), (None, 0))
    planned = {tensor.name for tensor in plan.tensors} if plan is not None else set()
    found = {}
    for x, places, why in listed:
        if not why and most and x.dtype != dtype:
            why = f"its type is {x.dtype}, that of most weights is {dtype}"
        whole, *aliases = places
        module, attribute = places[whole]
        lefts = [_why_left(*site) for site in places.values()]
        packed = isinstance(module, nn.MultiheadAttention) and attribute == "in_proj_weight"
        suffixes = (".query", ".key", ".value") if packed and not why and whole not in planned else ("",)
        parts = tuple(f"{whole}{suffix}" for suffix in suffixes)
        pieces = [x] if len(parts) == 1 else x.detach().chunk(len(parts))
        for name, suffix, piece in zip(parts, suffixes, pieces, strict=True):
            tensor = ModelTensor(
                name=name,
                shape=tuple(piece.shape),
                nbytes=piece.numel() * piece.element_size(),
                axes=_axes(module, attribute, tuple(piece.shape)),
                aliases=tuple(f"{alias}{suffix}" for alias in aliases),
                kept=why,
                left=next(filter(None, lefts), lefts[0]),
                kind=type(module).__name__,
                trained=isinstance(x, nn.Parameter) and x.requires_grad,
            )
            found[name] = Found(tensor, piece, whole, parts, tuple(places.values()))
    return found


def _why_kept(module: nn.Module, name: str, x: torch.Tensor) -> str:
    """Return why a tensor cannot be generated, or nothing."""
    *path, attribute = name.split(".")
    if is_lazy(x):
        raise PlanError(f"the shape of {name!r} is not known yet: call the model once before you compress it")
    if not isinstance(x, nn.Parameter):
        return "it is a buffer"
    if not x.is_floating_point():
        return f"its type is {x.dtype}"
    if is_cut(x):
        return "it is cut into pieces: compress the model first, then shard it"
    if type(x) is not nn.Parameter or x.layout != torch.strided:
        return f"it is not a plain tensor but {type(x).__name__}, {x.layout}, on {x.device}"
    if "_orig_mod" in path:
        return "torch.compile has its layer: compress the model first, then compile"
    if "parametrizations" in path:
        return "its layer is parametrized (torch.nn.utils.parametrize)"
    for hook in module._forward_pre_hooks.values():
        target = getattr(hook, "name", getattr(hook, "_tensor_name", None))
        if isinstance(target, str) and attribute.startswith(f"{target}_"):
            return f"{type(hook).__name__} computes {target!r} from it"
    if not x.requires_grad:
        return "it is frozen (requires_grad=False)"
    if x._backward_hooks or getattr(x, "_post_accumulate_grad_hooks", None):
        return "it has hooks"
    if x.numel() == 0:
        return "it is empty"
    if getattr(module, "sparse", False) is True:
        return "its layer asks for sparse gradients"
    if getattr(module, "max_norm", None) is not None:
        return "its layer changes it in place (max_norm)"
    return ""


def _why_left(module: nn.Module, attribute: str) -> str | None:
    """Return why a tensor is not generated unless asked for, nothing if it is, or None if its layer does not tell."""
    if (row := getattr(module, "padding_idx", None)) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"its layer keeps row {row} fixed (padding_idx={row}); include it by name to generate all rows"
    return by_class(module, attribute)


def _of_adapters(model: nn.Module) -> dict[int, str]:
    """Return why parameters of adapters are kept: they have starting values with a meaning, such as zeros."""
    reasons = {}
    for module in model.modules():
        named = getattr(module, "adapter_layer_names", ())  # of layers of peft
        whole = ("prompt_encoder",) if type(module).__module__.partition(".")[0] == "peft" else ()
        for part in (getattr(module, name, None) for name in (*named, *whole)):
            for x in part.parameters() if isinstance(part, nn.Module) else (part,):
                reasons[id(x)] = "it is of an adapter: compress a model first, then adapt it"
    return reasons


def _axes(module: nn.Module, attribute: str, shape: tuple[int, ...]) -> str | None:
    """Return the meaning of the axes of a weight in PyTorch: out, in, then spatial ones.

    A parameter of three axes that belongs to no convolution is a stack of matrices, such as those of experts. Other
    sizes of 1 in front let a table broadcast.
    """
    rank = len(shape)
    if not 2 <= rank <= 5:
        return None
    name = type(module).__name__
    if (named := _AXES.get((name, attribute))) is not None and rank == len(named.split()):
        return named
    known = by_class(module, attribute) == "" or re.search("conv", f"{name}.{attribute}", re.IGNORECASE)
    if not known and rank > 2 and (rank == 3 or shape[0] == 1):
        turned = getattr(module, "is_transposed", False) is True  # experts of transformers
        own = {2: "i o" if turned else "o i", 3: "o i w", 4: "o i h w"}
        return f"s {own[rank - 1]}"
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or (name == "Conv1D" and rank == 2)  # of GPT-2
    return " ".join(["i o" if transposed else "o i", *("d", "h", "w")[5 - rank :]])
