"""Models on the meta device: shapes without values, until a file fills them."""

from __future__ import annotations

import torch
from torch import nn

from smh.backends.torch.discovery import held
from smh.core.warning import warn
from smh.errors import PlanError
from smh.text import some


def allocate(model: nn.Module) -> None:
    """Give all that a model stores memory, on PyTorch's default device, where it has none."""
    device = torch.get_default_device()
    device = torch.device("cpu") if device.type == "meta" else device
    empty = [(x, places) for x, places in held(model) if x.is_meta]
    stored = model.state_dict().keys()
    for x, places in empty:
        if not stored.isdisjoint(places):
            new = _empty_like(x, device)
            new = nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new
            for module, attribute in places.values():
                if attribute in module._parameters:
                    module._parameters[attribute] = new
                else:
                    module._buffers[attribute] = new
    if left := [next(iter(places)) for _, places in empty if stored.isdisjoint(places)]:
        warn(
            f"no file holds {some(left)} (persistent=False), which stay on the meta device: build the model so that "
            "only parameters are there, as accelerate.init_empty_weights() does, or assign these buffers"
        )


def _empty_like(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``torch.empty_like(x, device=device)``, which would import SymPy for a tensor on the meta device."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    if last + 1 != x.numel():  # elements that overlap, or gaps
        return torch.empty(x.shape, dtype=x.dtype, device=device)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def check_not_offloaded(model: nn.Module) -> None:
    """Raise :class:`~smh.PlanError` where accelerate holds the values of variables until layers run."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise PlanError(
            f"accelerate keeps the variables of {type(model).__name__} elsewhere until their layers run, but every "
            "weight needs the pool: accelerate.hooks.remove_hook_from_submodules(model) brings them back. A compressed "
            "model is small; smh.materialize_(model) makes one that can be offloaded"
        )
