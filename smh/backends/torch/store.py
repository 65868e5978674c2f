"""The variables of a compressed model, and when weights are built from them (residency)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from smh.backends.torch import packed, sharded
from smh.backends.torch.autograd import Materialize, Promise, Redeem
from smh.backends.torch.checks import check_finite, check_pass, check_whole
from smh.backends.torch.compilers import compiles
from smh.backends.torch.copies import NAMES, STORE, is_whole
from smh.backends.torch.discovery import Site
from smh.backends.torch.empty import check_not_offloaded
from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.saved import kept_aside, rebuilt, traced
from smh.backends.torch.state import State, same
from smh.backends.torch.weights import ADVICE, GeneratedWeight, PassWeight, refused
from smh.core.integers import Exponents
from smh.core.plan import Plan
from smh.core.warning import warn
from smh.errors import PlanError
from smh.models.compression import Compression

Exporting = tuple[Callable[[Plan, packed.Packed], packed.Packed], TorchKernels]
"""What prepares the integers of a pool for kernels, and these."""
_MOST_APART = 8
"""How often parts of the weights are built from the same variables before a warning."""


@dataclass
class Scope:
    """What a forward pass reads, of the model or of one layer. Passes with the same weights may share it."""

    weights: dict[str, torch.Tensor]  # those that are built
    read: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)  # what layers got, and its version
    lazy: bool = False  # whether missing weights are built when read, and kept until the end
    promises: Mapping[str, torch.Tensor] = field(default_factory=dict)  # for weights to come, if they get gradients
    hooks: AbstractContextManager[Any] | None = None  # how autograd keeps weights meanwhile, where not as usual


@dataclass
class Kept(Scope):
    """A stretch of code in which passes and readers share all weights, as long as these are right."""

    shared: Scope = field(default_factory=lambda: Scope({}))  # what passes read
    state: State | None = None  # of the variables that they were built from
    learns: bool = False  # whether autograd saw how


@dataclass(eq=False, repr=False)
class Store:
    """Builds the weights of a model."""

    root: nn.Module
    compression: Compression
    slots: dict[str, Site]  # where the parameter of each variable is
    order: dict[nn.Module, tuple[str, ...]]  # the modules that changed, and what parameters each had
    weights: dict[str, tuple[str, ...]]  # what layers read, and the tensors of the plan in it, one below the other
    scopes: dict[int, list[Scope]] = field(default_factory=dict)  # by thread
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)  # that users gave to weights
    cache: tuple[State, Scope] | None = None  # all weights, and of what variables
    packed: tuple[State, packed.Packed] | None = None  # the integers of the pool, where single layers are built
    exponents: Exponents | None = None  # of a frozen model, whose slots are buffers with integers
    exporting: Exporting | None = None  # how a frozen model builds its weights while it is exported
    cut: bool = False  # whether a variable was ever cut into pieces, see smh.backends.torch.sharded
    backwards: int = 0  # backward passes through kept weights: an optimizer may follow that raises no version
    told: set[str] = field(default_factory=set)  # the kinds of warnings that were given
    seen: tuple[int, Any] = (0, None)  # when to look again whether the pool is trained, and parameters as they were
    whole: set[int] = field(default_factory=set)  # threads that pickle or write the whole model, and not a part of it
    apart: tuple[State | None, set[str], int] = (None, set(), 0)  # weights built for parts of the model, and how often

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy: neither running passes nor weights."""
        check_whole(self, "with a part of a compressed model the whole is pickled, for its pool")
        self.whole.discard(threading.get_ident())
        fresh: dict[str, Any] = {"scopes": {}, "cache": None, "packed": None, "whole": set(), "apart": (None, set(), 0)}
        return {**self.__dict__, **fresh, "told": set(), "seen": (0, None)}

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return what holds the variables, by their names: parameters, or buffers if the model is frozen."""
        try:
            if self.exponents is not None:
                return {name: module._buffers[attribute] for name, (module, attribute) in self.slots.items()}
            return {name: module._parameters[attribute] for name, (module, attribute) in self.slots.items()}
        except KeyError as error:
            raise PlanError(sharded.FLAT) from error

    def variables(self) -> dict[str, torch.Tensor]:
        """Return the variables, float32, as the plan shapes them: a scale is one number, and its parameter a vector."""
        plan, parameters = self.compression.plan, self.parameters()
        shapes = plan.variable_shapes
        if self.exponents is not None:
            parameters |= packed.values(plan, parameters, self.exponents)
        if self.cut:
            parameters = {name: sharded.whole(x) for name, x in parameters.items()}
        if any(x.numel() != math.prod(shapes[name]) for name, x in parameters.items()):
            raise PlanError(sharded.FLAT)
        return {name: x.to(torch.float32).reshape(shapes[name]) for name, x in parameters.items()}

    def build(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Return weights, in the type of the variables; autograd sees how they came about."""
        chosen = tuple(self.weights if names is None else names)
        if torch.is_grad_enabled() or traced():
            with kept_aside():
                return self._built(chosen)
        # PyTorch chooses kernels by requires_grad and inference, also where no gradient is wanted: as of parameters.
        learns = any(x.requires_grad for x in self.parameters().values())
        with torch.inference_mode(False), torch.no_grad():
            return {name: w.detach().requires_grad_(learns) for name, w in self._built(chosen).items()}

    def _built(self, names: Iterable[str], promises: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Return weights, whose gradients go to the variables, or to promises if there are any."""
        tensors = tuple(tensor for name in names for tensor in self.weights[name])
        with torch.no_grad() if promises else nullcontext():
            built = self._materialized(tensors)
        if not promises:
            self._watch_backward(built)
        found = dict(zip(tensors, built, strict=True))
        if promises:
            found = {tensor: Redeem.apply(promises[tensor], x) for tensor, x in found.items()}
        dtype = self._dtype()
        parts = {name: [found[tensor] for tensor in self.weights[name]] for name in names}
        return {name: (x[0] if len(x) == 1 else torch.cat(x)).to(dtype) for name, x in parts.items()}

    def _dtype(self) -> torch.dtype:
        """Return the type of weights: that of the variables, or of what else is not an integer in a frozen model."""
        held = chain(self.parameters().values(), self.root.parameters(), self.root.buffers())
        return next((x.dtype for x in held if x.is_floating_point()), torch.float32)

    def _materialized(self, tensors: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        """Return tensors of the plan; built layer by layer and without autograd they share the integers of the pool."""
        plan, fast = self.compression.plan, self.compression.fast
        if self.exponents is not None:
            return self._of_integers(tensors, self.exponents)
        if any(x.is_meta for x in self.parameters().values()):
            check_not_offloaded(self.root)
        by_layer = self.compression.residency == "layer" and not torch.is_grad_enabled()
        state = self._state() if by_layer else None
        if state is None:
            found: tuple[torch.Tensor, ...] = Materialize.apply(plan, tensors, fast, *self.variables().values())
        else:
            kept = self.packed
            if kept is None or not same(kept[0], state):
                state = self._state(values=True) or state
                self.packed = kept = state.copied(), packed.pack(plan, self.variables())
            found = packed.materialize(plan, kept[1], self._scales(tensors), tensors)
        check_finite(plan, self.variables, found)
        return found

    def _of_integers(self, tensors: tuple[str, ...], exponents: Exponents) -> tuple[torch.Tensor, ...]:
        """Return tensors of the plan of a frozen model."""
        plan = self.compression.plan
        grids = packed.of_integers(plan, self.parameters(), exponents)
        prepare, kernels = self.exporting or (None, None)
        grids = prepare(plan, grids) if prepare else grids
        found = packed.materialize(plan, grids, self._scales(tensors), tensors, kernels)
        check_finite(plan, self.variables, found)
        return found

    def _scales(self, tensors: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return the learned scales of some tensors, without reading the others for each layer."""
        parameters = self.parameters()
        names = [tensor.scale_variable for tensor in self.compression.plan.select(tensors) if tensor.learn_scale]
        return {name: parameters[name].to(torch.float32).reshape(()) for name in names}

    def weight(self, name: str) -> torch.Tensor:
        """Return a weight, for a layer or for whoever reads its attribute."""
        stack = self.scopes.get(_thread(), [])
        if stack and name in stack[-1].read:
            return stack[-1].read[name][0]
        if stack and isinstance(stack[-1], Kept) and not _in_backward():
            return self._copied(self._kept(stack[-1]).weights[name], name)
        for scope in reversed(stack):
            if name in scope.weights:
                return self._served(scope.weights[name], name, scope)
        if stack and not isinstance(stack[-1], Kept):
            scope = stack[-1]
            built = self._built((name,), scope.promises) if scope.promises else self.build([name])
            if scope.lazy:
                scope.weights |= built
            return self._served(built[name], name, scope)
        if compiles():
            return self.build([name])[name]
        return self._copied(self._part((name,), first_is_free=True).weights[name], name)

    def _served(self, weight: torch.Tensor, name: str, scope: Scope) -> torch.Tensor:
        """Return a weight as layers read it."""
        if type(weight) in (torch.Tensor, PassWeight) and not traced():
            weight.__class__ = PassWeight
            weight.__dict__ = self.attributes.setdefault(name, {})
            scope.read[name] = weight, weight._version
        return weight

    def _copied(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """Return a weight for other code, whose writes to its memory change nothing."""
        shared = self.cache is not None or bool(self.scopes)
        own = (weight.clone() if shared else weight).as_subclass(GeneratedWeight)
        own.__dict__ = self.attributes.setdefault(name, {})
        return own

    def watches(self, module: nn.Module) -> bool:
        """Say whether a call of a module is a separate pass."""
        if module is self.root or self.compression.residency == "layer":
            return True
        stack = self.scopes.get(_thread())
        return not stack or isinstance(stack[-1], Kept)

    def enter(self, module: nn.Module) -> None:
        """Begin a forward pass of the model, or of a part of it that is called by itself, or of one layer."""
        if torch.jit.is_tracing():
            raise PlanError(f"torch.jit does not take compressed models, torch.onnx.export needs dynamo=True: {ADVICE}")
        stack = self.scopes.setdefault(_thread(), [])
        if not stack and torch.is_grad_enabled():
            check_pass(self, traced())
        if self.cut and not stack:
            self._cut_again()
        if not stack and self.packed is not None and not same(self.packed[0], self._state(values=True)):
            self.packed = None
        kept = None if _in_backward() else next((scope for scope in stack if isinstance(scope, Kept)), None)
        if self.compression.residency == "layer" and kept is None:
            promises = stack[-1].promises if stack else self._promises()
            scope = Scope({}, lazy=NAMES in module.__dict__, promises=promises)
            if scope.lazy and scope.promises:
                scope.hooks = rebuilt(self, scope.weights)
                scope.hooks.__enter__()
            stack.append(scope)
        elif stack and not isinstance(stack[-1], Kept) and not stack[-1].lazy:  # the model calls itself
            stack.append(stack[-1])
        elif kept is not None:
            stack.append(self._kept(kept))
        elif module is self.root:
            stack.append(self._current())
        else:
            part = self._part(self._below(module))
            stack.append(Scope(part.weights, part.read, lazy=True))

    def keep(self) -> bool:
        """Begin a stretch of code that shares weights, unless it is part of a larger one; say whether it began."""
        if self.compression.residency == "layer" or self.scopes.get(_thread()):
            return False
        self._open()
        return True

    @contextmanager
    def built(self) -> Iterator[None]:
        """Build all weights now, and share them in this context."""
        scope = self._open()
        try:
            if isinstance(scope, Kept):
                self._kept(scope)
            yield
        finally:
            self.leave()

    def _open(self) -> Scope:
        if self.cut and not self.scopes.get(_thread()):
            self._cut_again()
        scope = Scope(self.build()) if compiles() else Kept({})
        self.scopes.setdefault(_thread(), []).append(scope)
        return scope

    def _cut_again(self) -> None:
        """Leave nothing whole that gradients would miss, but in a backward pass, which runs layers again."""
        if not _in_backward():
            sharded.cut_again(self.root, self.parameters().values())

    def leave(self, complete: bool = False) -> None:
        """End the latest pass and drop its weights, which a complete pass must not have changed."""
        stack = self.scopes.get(_thread())
        if stack:
            scope = stack.pop()
            changed = [name for name, (weight, version) in list(scope.read.items()) if weight._version != version]
            if scope.hooks is not None:
                scope.hooks.__exit__(None, None, None)
                scope.weights.clear()  # the hooks outlive the pass, and hold these
            if changed:
                self.cache = None
                for outer in stack:
                    if isinstance(outer, Kept):
                        outer.state = None
            if not stack:
                del self.scopes[_thread()]
            if changed and complete:
                raise refused(f"a forward pass changed {', '.join(map(repr, changed))} in place")

    def _needs_grad(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters().values())

    def _promises(self) -> dict[str, torch.Tensor]:
        """Return placeholders, where gradients are wanted and plain autograd records them."""
        if traced() or not self._needs_grad():
            return {}
        plan = self.compression.plan
        names = tuple(tensor.name for tensor in plan.tensors)
        with kept_aside():
            promises = Promise.apply(plan, names, self.compression.fast, *self.variables().values())
            self._watch_backward(promises)
            return dict(zip(names, promises, strict=True))

    def _below(self, module: nn.Module) -> tuple[str, ...]:
        """Return the weights that a module and its parts read, in order."""
        read = {name for part in module.modules() for name in part.__dict__.get(NAMES, {}).values()}
        return tuple(name for name in self.weights if name in read)

    def _state(self, values: bool = False) -> State | None:
        """Return what tells whether the variables changed, or None if nothing does."""
        found = () if self.cut or traced() else tuple(self.parameters().values())
        kind = nn.Parameter if self.exponents is None else torch.Tensor
        if not found or any(type(x) is not kind or x.is_inference() or x.is_meta for x in found):
            return None
        capturing = found[0].is_cuda and torch.cuda.is_current_stream_capturing()
        return State.of(found, self.backwards, values and self.exponents is None and not capturing)

    def _watch_backward(self, built: tuple[torch.Tensor, ...]) -> None:
        """Count the backward passes that go through weights."""

        def count(cotangents: Any) -> None:
            self.backwards += 1

        if not traced() and built and built[0].grad_fn is not None:
            built[0].grad_fn.register_prehook(count)

    def _kept(self, kept: Kept) -> Scope:
        """Return a scope with all weights: the kept one, unless a variable changed, or autograd needs others."""
        needs = self._needs_grad()
        # Where variables have gradients an optimizer may step.
        state = self._state(values=any(x.grad is not None for x in self.parameters().values()))
        if not same(kept.state, state) or (needs and not kept.learns):
            self.packed = None
            kept.state = None if state is None else state.copied()
            kept.shared, kept.learns = self._current(), needs
        return kept.shared

    def _part(self, names: tuple[str, ...], first_is_free: bool = False) -> Scope:
        """Return a scope with weights outside of a pass of the model; warn where that happens again and again."""
        state = self._state()
        if state is not None and self.compression.residency == "full" and not _in_backward():
            before, seen, count = self.apart
            if not same(before, state):
                seen, count = set(), 0
            count += not (first_is_free and seen.isdisjoint(names))
            self.apart = state, seen.union(names), count
            if count == _MOST_APART:
                warn(
                    f"weights of {type(self.root).__name__} were built {_MOST_APART} times from the same variables, "
                    "for parts of the model: outside of its forward pass every call of a layer, and every reading of a "
                    "weight, builds them anew. Put such code in `with smh.built(model):`, which builds all once"
                )
        return self._current(names)

    def _current(self, names: Iterable[str] | None = None) -> Scope:
        """Return a scope with weights, by default with all.

        Where weights may be cached they are all of them, built anew only if a variable is another or changed.
        """
        if self.compression.residency != "cached" or self._needs_grad():
            return Scope(self.build(names))
        state = self._state(values=True)
        if state is None:
            return Scope(self.build(names))
        cached = self.cache  # once: another thread may forget it, or keep what it built for other variables
        if cached is None or not same(cached[0], state):
            self.cache = cached = state.copied(), Scope(self.build())
        return cached[1]


def find_store(model: Any) -> Store | None:
    """Return the store of a compressed model, also if a wrapper holds the whole model, or None."""
    if not isinstance(model, nn.Module):
        return None
    if is_whole(model):
        store: Store = model.__dict__[STORE]
        return store
    match list(model.named_children()):
        case [("module" | "_orig_mod" | "_fsdp_wrapped_module", inner)]:
            return find_store(inner)
    return None


def _in_backward() -> bool:
    """Return whether a backward pass runs: code that checkpointing repeats must not use a graph from outside."""
    return not compiles() and torch._C._current_graph_task_id() != -1


def _thread() -> int:
    """Return the identity of the thread, which Dynamo cannot trace; it traces one only."""
    return 0 if torch.compiler.is_dynamo_compiling() else threading.get_ident()
