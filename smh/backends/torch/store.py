"""The variables of a compressed model, and when weights are built from them (residency)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from smh.backends.torch.autograd import Materialize, Promise, Redeem
from smh.backends.torch.discovery import Site
from smh.backends.torch.generated import NAMES, STORE, GeneratedWeight
from smh.models.compression import Compression


@dataclass
class Scope:
    """A forward pass under way, of the model or of one layer."""

    weights: dict[str, torch.Tensor]  # what is built
    lazy: bool = False  # whether what is read and not there is built, and kept until the end
    promises: Mapping[str, torch.Tensor] = field(default_factory=dict)  # for weights to come, if they get gradients
    hooks: AbstractContextManager[Any] | None = None  # how autograd keeps weights meanwhile, where not as usual


@dataclass(eq=False, repr=False)
class Store:
    """Builds the weights of a model."""

    root: nn.Module
    compression: Compression
    slots: dict[str, Site]  # where the parameter of each variable is
    order: dict[nn.Module, tuple[str, ...]]  # the modules that changed, and what parameters each had
    weights: dict[str, tuple[str, ...]]  # what layers read, and the tensors of the plan in it, one below the other
    scopes: dict[int, list[Scope]] = field(default_factory=dict)  # by thread
    cache: tuple[tuple[Any, ...], dict[str, torch.Tensor]] | None = None  # all weights, and of what variables

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: neither passes under way nor weights."""
        return {**self.__dict__, "scopes": {}, "cache": None}

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters that hold the variables, by the names of variables."""
        return {name: module._parameters[attribute] for name, (module, attribute) in self.slots.items()}

    def variables(self) -> dict[str, torch.Tensor]:
        """Return the variables, float32, as the plan shapes them: a scale is one number, and its parameter a vector."""
        shapes = self.compression.plan.variable_shapes
        return {name: x.to(torch.float32).reshape(shapes[name]) for name, x in self.parameters().items()}

    def build(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Return weights, in the type of the variables; autograd sees how they came about."""
        chosen = tuple(self.weights if names is None else names)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _transformed():
            with _kept_aside():
                return self._built(chosen)
        # PyTorch chooses kernels by requires_grad and inference, also where no gradient is wanted: as of parameters.
        learns = any(x.requires_grad for x in self.parameters().values())
        with torch.inference_mode(False), torch.no_grad():
            return {name: w.detach().requires_grad_(learns) for name, w in self._built(chosen).items()}

    def _built(self, names: Iterable[str], promises: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Return weights, whose gradients go to the variables, or to promises if there are any."""
        tensors = tuple(tensor for name in names for tensor in self.weights[name])
        with torch.no_grad() if promises else nullcontext():
            built = Materialize.apply(self.compression.plan, tensors, *self.variables().values())
        found = dict(zip(tensors, built, strict=True))
        if promises:
            found = {tensor: Redeem.apply(promises[tensor], x) for tensor, x in found.items()}
        dtype = next(iter(self.parameters().values())).dtype
        parts = {name: [found[tensor] for tensor in self.weights[name]] for name in names}
        return {name: (x[0] if len(x) == 1 else torch.cat(x)).to(dtype) for name, x in parts.items()}

    def weight(self, name: str) -> torch.Tensor:
        """Return a weight, for a layer or for whoever reads its attribute."""
        stack = self.scopes.get(_thread(), [])
        for scope in reversed(stack):
            if name in scope.weights:
                return scope.weights[name]
        if stack:
            scope = stack[-1]
            built = self._built((name,), scope.promises) if scope.promises else self.build([name])
            if scope.lazy:
                scope.weights |= built
            return built[name]
        if torch.compiler.is_compiling():
            return self.build([name])[name]
        return self._current([name])[name].as_subclass(GeneratedWeight)

    def watches(self, module: nn.Module) -> bool:
        """Say whether a call of a module is a pass of its own."""
        return module is self.root or self.compression.residency == "layer"

    def enter(self, module: nn.Module) -> None:
        """Begin a forward pass of the model, or of one layer."""
        stack = self.scopes.setdefault(_thread(), [])
        if self.compression.residency == "layer":
            scope = Scope({}, NAMES in module.__dict__, stack[-1].promises if stack else self._promises())
            if scope.lazy and scope.promises:
                scope.hooks = _rebuilt(self, scope.weights)
                scope.hooks.__enter__()
            stack.append(scope)
        elif stack:  # the model calls itself
            stack.append(stack[-1])
        else:
            stack.append(Scope(self._current()))

    def leave(self) -> None:
        """End what began last; nothing is left of it."""
        stack = self.scopes.get(_thread())
        if stack:
            scope = stack.pop()
            if scope.hooks is not None:
                scope.hooks.__exit__(None, None, None)
                scope.weights.clear()  # the hooks outlive the pass, and hold these
            if not stack:
                del self.scopes[_thread()]

    def _needs_grad(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters().values())

    def _promises(self) -> dict[str, torch.Tensor]:
        """Return placeholders, where gradients are wanted and plain autograd records them."""
        if torch.compiler.is_compiling() or not self._needs_grad() or _transformed():
            return {}
        plan = self.compression.plan
        names = tuple(tensor.name for tensor in plan.tensors)
        with _kept_aside():
            return dict(zip(names, Promise.apply(plan, names, *self.variables().values()), strict=True))

    def _current(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Return weights; where they may be cached all of them, built anew only if a variable is another or changed."""
        found = tuple(self.parameters().values())
        cached = self.compression.residency == "cached" and not torch.compiler.is_compiling() and not _transformed()
        if not cached or self._needs_grad() or any(type(x) is not nn.Parameter or x.is_inference() for x in found):
            return self.build(names)
        # The tensors themselves are kept for comparison, so that nothing else can get their identity.
        state = tuple((x, x._version, x.data_ptr()) for x in found)
        kept = self.cache  # once: another thread may forget it, or keep what it built for other variables
        if kept is None or not all(map(_unchanged, kept[0], state)):
            self.cache = kept = state, self.build()
        return kept[1]


def find_store(model: Any) -> Store | None:
    """Return the store of a compressed model, also from within what wraps a whole model, or None."""
    if not isinstance(model, nn.Module):
        return None
    store: Store | None = model.__dict__.get(STORE)
    if store is not None and store.root is model:
        return store
    match list(model.named_children()):
        case [("module" | "_orig_mod", inner)]:
            return find_store(inner)
    return None


def _rebuilt(store: Store, weights: Mapping[str, torch.Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which autograd keeps no generated weight, but how the backward pass builds it again.

    Other tensors are kept as the hooks around it say, such as those of checkpointing.
    """
    around: Any = torch._C._autograd._top_saved_tensors_default_hooks(False) or (lambda x: x, lambda x: x)

    def versions() -> list[int]:
        return [x._version for x in store.parameters().values()]

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


_CHANGED = "a variable of the model was changed in place between the forward and the backward pass"


def _kept_aside() -> AbstractContextManager[Any]:
    """Return a context in which autograd keeps tensors itself: hooks from outside, as of checkpointing, see none.

    Weights may be built inside of a checkpoint the first time and outside of it the second, or the other way round.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _transformed():
        return nullcontext()
    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(lambda x: (x, x._version), _checked)
    return hooks


def _checked(kept: tuple[torch.Tensor, int]) -> torch.Tensor:
    x, version = kept
    if x._version != version:
        raise RuntimeError(_CHANGED)
    return x


def _unchanged(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return before[0] is now[0] and before[1:] == now[1:]


def _transformed() -> bool:
    """Say whether a transform of ``torch.func`` runs: it takes no hooks, and its tensors have no identity."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _thread() -> int:
    """Return what tells threads apart; a compiler traces one only."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
