"""How autograd keeps generated weights and variables for a backward pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from smh.backends.torch.compilers import compiles

if TYPE_CHECKING:
    from smh.backends.torch.store import Store

_CHANGED = "a variable of the model was changed in place between the forward and the backward pass"


def rebuilt(store: Store, weights: Mapping[str, torch.Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which autograd keeps no generated weight, but how the backward pass builds it again.

    Other tensors are kept as the hooks around it say, such as those of checkpointing.
    """
    around: Any = torch._C._autograd._top_saved_tensors_default_hooks(False) or (lambda x: x, lambda x: x)

    def versions() -> list[int]:
        return [] if store.cut else [x._version for x in store.parameters().values()]

    def pack(x: torch.Tensor) -> Any:
        place = x.untyped_storage().data_ptr()
        for name, weight in weights.items():
            if weight.untyped_storage().data_ptr() == place and x.dtype == weight.dtype:
                return functools.partial(build, name, versions(), x.size(), x.stride(), x.storage_offset())
        return functools.partial(around[1], around[0](x))

    def build(name: str, before: list[int], *geometry: Any) -> torch.Tensor:
        if before != versions():
            raise RuntimeError(_CHANGED)
        with torch.no_grad():
            return store.build([name])[name].as_strided(*geometry)

    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept())
    return hooks


def kept_aside() -> AbstractContextManager[Any]:
    """Return a context in which autograd keeps tensors itself: hooks from outside, as of checkpointing, see none.

    Weights may be built inside of a checkpoint the first time and outside of it the second, or the other way round.
    """
    if traced() or not torch.is_grad_enabled():
        return nullcontext()
    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(lambda x: (x, x._version), _checked)
    return hooks


def _checked(kept: tuple[torch.Tensor, int]) -> torch.Tensor:
    x, version = kept
    if x._version != version:
        raise RuntimeError(_CHANGED)
    return x


def traced() -> bool:
    """Say whether a compiler or a transform of ``torch.func`` runs: they take no hooks, tensors have no identity."""
    return compiles() or torch._C._functorch.peek_interpreter_stack() is not None
