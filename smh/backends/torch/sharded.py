"""Variables that ``torch.distributed.fsdp.fully_shard`` cuts into pieces, one for each process.

A pass gathers them itself, before the modules do: a weight takes variables of several modules, which are whole at
different times. So gradients of variables come here, and are averaged over processes as ``fully_shard`` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from smh.errors import PlanError

FLAT = (
    "variables of the model are not where smh.compress put them, or not whole: FullyShardedDataParallel, for one, "
    "makes one vector of all parameters. Use torch.distributed.fsdp.fully_shard instead"
)


def is_cut(x: Any) -> bool:
    """Say whether a tensor is a DTensor, without importing the module that defines it."""
    return hasattr(x, "full_tensor")


def whole(x: Any) -> torch.Tensor:
    """Return a tensor with its pieces from all processes; its gradient is the mean of theirs."""
    if not is_cut(x):
        found: torch.Tensor = x
        return found
    from torch.distributed.tensor import Partial

    mesh = x.device_mesh
    found = x.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if found.requires_grad:
        found.register_hook(lambda gradient: gradient / mesh.size())
    return found


def cut_like(x: Any, values: torch.Tensor) -> torch.Tensor:
    """Return values, the same in all processes, cut as a tensor is."""
    if not is_cut(x):
        return values
    from torch.distributed.tensor import distribute_tensor

    found: torch.Tensor = distribute_tensor(values.to(x.device), x.device_mesh, x.placements, src_data_rank=None)
    return found


def cut_again(model: nn.Module, variables: Iterable[torch.Tensor]) -> None:
    """Cut all that earlier passes gathered and left whole, or raise where the variables cannot be trained so."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    for module in modules:
        state = module._get_fsdp_state()
        if state._mp_policy.param_dtype not in (None, torch.float32):
            raise PlanError(
                f"fully_shard would round the variables of {type(model).__name__} to {state._mp_policy.param_dtype}: "
                "leave out param_dtype, and run the model under torch.autocast"
            )
        if any(group.gradient_divide_factor is not None for group in state._fsdp_param_groups):
            raise PlanError("gradients of variables are averaged: leave out set_gradient_divide_factor, scale the loss")
        module.reshard()
    if not modules and any(map(is_cut, variables)):
        raise PlanError(
            f"the variables of {type(model).__name__} are DTensors, but not by fully_shard, which is the only way to "
            "shard a compressed model: smh.materialize_(model) before tensor parallelism"
        )


def check_uncut(model: nn.Module, variables: Iterable[torch.Tensor], what: str) -> None:
    """Raise :class:`~smh.PlanError` for a model that is cut into pieces."""
    if any(map(is_cut, variables)) or hasattr(model, "_get_fsdp_state"):
        raise PlanError(
            f"a model that fully_shard cut into pieces cannot be {what}: smh.save(path, model) in all processes, then "
            "smh.load(path, plain_model)"
        )
