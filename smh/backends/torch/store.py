"""The variables of a compressed model, and when weights are built from them (residency)."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from smh.backends.torch.autograd import Materialize, Promise, Redeem
from smh.backends.torch.generated import NAMES, GeneratedWeight
from smh.core.plan import Plan
from smh.models.compression import Compression

Site = tuple[nn.Module, str]
"""A module and one of its attributes."""


@dataclass
class Scope:
    """A forward pass under way, of the model or of one layer."""

    weights: dict[str, torch.Tensor]
    """What is built."""
    lazy: bool = False
    """Whether what is read and not there is built, and kept until the end."""
    promises: dict[str, torch.Tensor] = field(default_factory=dict)
    """Placeholders for weights to come, whose gradients arrive together."""
    hooks: AbstractContextManager[Any] | None = None
    """How autograd keeps weights meanwhile, where not as usual."""


class Store:
    """Builds the weights of a model.

    ``slots`` says where each variable is held, ``order`` which modules differ from what they were and what parameters
    each had, ``packed`` which weights hold several tensors of the plan, one below the other.
    """

    ready = False  # while a copy is put together

    def __init__(
        self,
        root: nn.Module,
        compression: Compression,
        slots: dict[str, Site],
        order: dict[nn.Module, tuple[str, ...]],
        packed: dict[str, tuple[str, ...]],
    ) -> None:
        self.root = root
        self.compression = compression
        self.slots = slots
        self.order = order
        self.packed = packed
        self.ready = True
        self._scopes: dict[int, list[Scope]] = {}
        self._cache: tuple[tuple[Any, ...], dict[str, torch.Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: neither passes under way nor weights."""
        return {**self.__dict__, "_scopes": {}, "_cache": None}

    @property
    def plan(self) -> Plan:
        """What is generated."""
        return self.compression.plan

    @property
    def residency(self) -> str:
        """When weights are built."""
        return self.compression.residency

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters that hold the variables, by the names of variables."""
        return {name: module._parameters[attribute] for name, (module, attribute) in self.slots.items()}

    def holds(self, module: nn.Module, attribute: str) -> bool:
        """Say whether an attribute of a module is the parameter of a variable."""
        return any(module is owner and attribute == name for owner, name in self.slots.values())

    def variables(self) -> dict[str, torch.Tensor]:
        """Return the variables, float32, as the plan shapes them: a scale is one number, and its parameter a vector."""
        shapes = self.plan.variable_shapes
        return {name: x.to(torch.float32).reshape(shapes[name]) for name, x in self.parameters().items()}

    def build(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Return weights, in the type of the variables; autograd sees how they came about."""
        chosen = self._names() if names is None else tuple(names)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _transformed():
            with _kept_aside():
                return self._built(chosen)
        # PyTorch chooses kernels by requires_grad and inference, also where no gradient is wanted: as of parameters.
        learns = any(x.requires_grad for x in self.parameters().values())
        with torch.inference_mode(False), torch.no_grad():
            return {name: w.detach().requires_grad_(learns) for name, w in self._built(chosen).items()}

    def _built(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        tensors = tuple(tensor for name in names for tensor in self._tensors(name))
        weights = dict(zip(tensors, Materialize.apply(self.plan, tensors, *self.variables().values()), strict=True))
        return {name: _joined([weights[x] for x in self._tensors(name)]).to(self._dtype()) for name in names}

    def _tensors(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the plan that a weight consists of."""
        return self.packed.get(name, (name,))

    def _names(self) -> tuple[str, ...]:
        """Return the names of all weights that layers read."""
        parts = {part: name for name, parts in self.packed.items() for part in parts}
        return tuple(dict.fromkeys(parts.get(tensor.name, tensor.name) for tensor in self.plan.tensors))

    def weight(self, name: str) -> torch.Tensor:
        """Return a weight, for a layer or for whoever reads its attribute."""
        stack = self._scopes.get(_thread(), [])
        for scope in reversed(stack):
            if name in scope.weights:
                return scope.weights[name]
        if stack:
            weight = self._redeemed(name, stack[-1].promises)
            if stack[-1].lazy:
                stack[-1].weights[name] = weight
            return weight
        if torch.compiler.is_compiling():
            return self.build([name])[name]
        weights = self._cached() if self._may_cache() else self.build([name])
        return weights[name].as_subclass(GeneratedWeight)

    def watches(self, module: nn.Module) -> bool:
        """Say whether a call of a module is a pass of its own."""
        return module is self.root or self.residency == "layer"

    def enter(self, module: nn.Module) -> None:
        """Begin a forward pass of the model, or of one layer."""
        stack = self._scopes.setdefault(_thread(), [])
        if self.residency == "layer":
            scope = Scope({}, lazy=NAMES in module.__dict__)
            scope.promises = stack[-1].promises if stack else self._promises()
            if scope.lazy and scope.promises:
                scope.hooks = _Rebuilt(self, scope)
                scope.hooks.__enter__()
            stack.append(scope)
        elif stack:  # the model calls itself
            stack.append(stack[-1])
        else:
            stack.append(Scope(self._cached() if self._may_cache() else self.build()))

    def leave(self) -> None:
        """End what began last; nothing is left of it, also where beginning it failed."""
        stack = self._scopes.get(_thread())
        if stack:
            scope = stack.pop()
            if scope.hooks is not None:
                scope.hooks.__exit__(None, None, None)
                scope.weights.clear()  # the hooks outlive the pass, and hold the scope
            if not stack:
                del self._scopes[_thread()]

    def forget(self) -> None:
        """Free the weights that are kept."""
        self._cache = None

    def _dtype(self) -> torch.dtype:
        return next(iter(self.parameters().values())).dtype

    def _needs_grad(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters().values())

    def _may_cache(self) -> bool:
        return self.residency == "cached" and not torch.compiler.is_compiling() and not self._needs_grad()

    def _promises(self) -> dict[str, torch.Tensor]:
        """Return placeholders, where gradients are wanted and plain autograd records them."""
        if torch.compiler.is_compiling() or not self._needs_grad() or _transformed():
            return {}
        names = tuple(tensor.name for tensor in self.plan.tensors)
        with _kept_aside():
            return dict(zip(names, Promise.apply(self.plan, names, *self.variables().values()), strict=True))

    def _redeemed(self, name: str, promises: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return one weight, whose gradient goes to its promise if there is one."""
        tensors = self._tensors(name)
        if tensors[0] not in promises:
            return self.build([name])[name]
        with torch.no_grad():
            weights = Materialize.apply(self.plan, tensors, *self.variables().values())
        redeemed = [Redeem.apply(promises[x], weight) for x, weight in zip(tensors, weights, strict=True)]
        return _joined(redeemed).to(self._dtype())

    def _cached(self) -> dict[str, torch.Tensor]:
        """Return all weights, built anew only if a variable is another one or was changed."""
        found = tuple(self.parameters().values())
        if _transformed() or any(type(x) is not nn.Parameter or x.is_inference() for x in found):
            return self.build()
        # The tensors themselves are kept for comparison, so that nothing else can get their identity.
        state = tuple((x, x._version, x.data_ptr()) for x in found)
        kept = self._cache  # once: another thread may forget it, or keep what it built for other variables
        if kept is None or not all(map(_unchanged, kept[0], state)):
            self._cache = kept = state, self.build()
        return kept[1]


@dataclass(frozen=True)
class _Name:
    """What autograd keeps in the place of a generated weight."""

    name: str
    versions: list[int]
    geometry: tuple[Any, ...]


class _Rebuilt:
    """While a layer runs, autograd keeps no generated weight, only its name; the backward pass builds it again.

    Other tensors are kept as the hooks around these say, such as those of checkpointing.
    """

    def __init__(self, store: Store, scope: Scope) -> None:
        self._store = store
        self._scope = scope
        outer: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        self._outer_pack: Any = outer[0] if outer else _same
        self._outer_unpack: Any = outer[1] if outer else _same
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: torch.Tensor) -> Any:
        place = x.untyped_storage().data_ptr()
        for name, weight in self._scope.weights.items():
            if weight.untyped_storage().data_ptr() == place and x.dtype == weight.dtype:
                return _Name(name, self._versions(), (x.size(), x.stride(), x.storage_offset()))
        return self._outer_pack(x)

    def _unpack(self, kept: Any) -> torch.Tensor:
        if not isinstance(kept, _Name):
            return self._outer_unpack(kept)
        if kept.versions != self._versions():
            raise RuntimeError(_CHANGED)
        with torch.no_grad():
            return self._store.build([kept.name])[kept.name].as_strided(*kept.geometry)

    def _versions(self) -> list[int]:
        return [x._version for x in self._store.parameters().values()]


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


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _same(x: Any) -> Any:
    return x


def _unchanged(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return before[0] is now[0] and before[1:] == now[1:]


def _transformed() -> bool:
    """Say whether a transform of ``torch.func`` runs: it takes no hooks, and its tensors have no identity."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _thread() -> int:
    """Return what tells threads apart; a compiler traces one only."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
