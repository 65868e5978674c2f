"""Where a model reaches the memory of its parameters a second way: there a generated weight would go stale."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from smh.errors import PlanError

_REGISTERS = {"_parameters", "_buffers", "_modules", "_flat_weights", "_compiled_call_impl"}
_LEAVES = (str, bytes, int, float, complex, type(None), type, types.ModuleType, types.CodeType, types.FrameType)
_ALSO = (weakref.ref, torch.optim.Optimizer, torch.dtype, torch.device, torch.Generator)


def held_outside(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the objects that modules hold outside their registers, at any depth, and the attribute that leads there.

    Of what the code of their classes holds, these are tensors only.
    """
    own = {id(module) for module in model.modules()}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _REGISTERS:
                continue
            place, todo = f"{prefix}.{attribute}" if prefix else attribute, [value]
            while todo:
                x = todo.pop()
                if isinstance(x, _LEAVES) or isinstance(x, _ALSO) or id(x) in seen:
                    continue
                seen.add(id(x))
                yield place, x
                if id(x) not in own:
                    todo += _parts(x)
    for cls in dict.fromkeys(cls for module in model.modules() for cls in type(module).__mro__):
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from _held_by_class(cls)


def _held_by_class(cls: type) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors in attributes of a class, and in global variables that its methods and their helpers name."""
    todo: list[tuple[str, Any]] = [(f"{cls.__name__}.{name}", x) for name, x in vars(cls).items()]
    seen: set[int] = set()
    while todo:
        place, x = todo.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            yield place, x
        elif isinstance(x, dict | list | tuple | set):
            todo += [(place, y) for y in (x.values() if isinstance(x, dict) else x)]
        elif isinstance(x, property | staticmethod | classmethod):
            todo.append((place, x.fget if isinstance(x, property) else x.__func__))
        elif isinstance(x, types.FunctionType) and x.__module__ == cls.__module__:
            todo += [(place, vars(x).get("__wrapped__"))]
            names = {name: x.__globals__[name] for name in _names(x.__code__) if name in x.__globals__}
            todo += names.items()
            for name, module in names.items():
                if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] != "torch":
                    found = {part: vars(module)[part] for part in _names(x.__code__) if part in vars(module)}
                    todo += [(f"{name}.{part}", y) for part, y in found.items()]


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in code, and in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _parts(x: Any) -> Iterable[Any]:
    if isinstance(x, torch.Tensor):
        return ()
    if isinstance(x, types.FunctionType):  # not what its module has
        defaults = (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values(), *vars(x).values())
        return (*defaults, *(x.__closure__ or ()))
    return gc.get_referents(x)


def second_ways(model: nn.Module, registered: Iterable[tuple[torch.Tensor, str]]) -> dict[int, str]:
    """Return why parameters cannot be generated that are reachable outside of the registers, by their identity.

    ``registered`` are all parameters and buffers, once each, and their names.
    """
    places = [(x, f"it shares memory with {name!r}", id(x)) for x, name in registered]
    parameters = {id(x): x for x, _, _ in places if isinstance(x, nn.Parameter)}
    reasons: dict[int, str] = {}
    for place, x in held_outside(model):
        if not isinstance(x, torch.Tensor):
            continue
        why = f"it is also held in {place!r}, outside of the registered parameters"
        places.append((x, why, 0))
        reasons |= {key: f"what {place!r} holds is computed from it" for key in _sources(x) if key in parameters}
    by_storage: dict[int, list[tuple[int, int, str, int]]] = {}
    for x, why, key in places:
        if storage := _storage(x):
            extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            end = x.data_ptr() + extent * x.element_size()
            by_storage.setdefault(storage, []).append((x.data_ptr(), end, why, key))
    for shared in by_storage.values():
        for start, end, _, key in shared if len(shared) > 1 else ():
            for other_start, other_end, why, other in shared:
                if key in parameters and other != key and start < other_end and other_start < end:
                    reasons[key] = why
    return reasons


def left_behind(model: nn.Module, copied: nn.Module) -> tuple[str, str] | None:
    """Return where a copy of a model holds a part of the original, or a tensor made of its parameters, and its type."""
    originals = {id(x) for x in (*model.modules(), *model.parameters())}
    memory = set(map(_storage, model.parameters())) - {0}
    for place, x in held_outside(copied):
        made = isinstance(x, torch.Tensor) and (_storage(x) in memory or not originals.isdisjoint(_sources(x)))
        if made or id(x) in originals:
            return place, type(x).__name__
    return None


def _storage(x: torch.Tensor) -> int:
    """Return the address of the memory of a plain tensor that has one, or 0."""
    plain = type(x) in (torch.Tensor, nn.Parameter) and x.layout == torch.strided and x.numel() and x.data_ptr()
    return x.untyped_storage().data_ptr() if plain else 0


def _sources(x: torch.Tensor) -> Iterator[int]:
    """Yield the identities of the parameters that autograd saw a tensor come from."""
    todo, seen = [x.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                yield id(node.variable)
            todo += [following for following, _ in node.next_functions]


def instances(cls: type) -> list[Any]:
    """Return all objects of a class that there are."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, cls)}
    return [x for x in objects if type(x) in kinds]


def check_alone(model: nn.Module, changed: set[nn.Module]) -> None:
    """Raise :class:`~smh.PlanError` where a module outside of a model holds a changed part of it, and not the model.

    Its ``parameters()`` would lose the generated weights.
    """
    own = {id(module) for module in model.modules()}
    parts = {id(module) for module in changed if module is not model}
    parameters = {id(x) for module in changed for x in module._parameters.values()} - {id(None)}

    def found() -> list[nn.Module]:
        others = [x for x in instances(nn.Module) if id(x) not in own and "_modules" in vars(x)]
        held = [
            x
            for x in others
            if not parts.isdisjoint(map(id, x._modules.values()))
            or not parameters.isdisjoint(map(id, x._parameters.values()))
        ]
        around = [part for x in others if held and model in x._modules.values() for part in x.modules()]
        return [x for x in held if all(x is not part for part in around)]

    if not found():
        return
    gc.collect()  # remains of deleted models must not count
    for other in found()[:1]:
        raise PlanError(
            f"{type(other).__name__}, which is not part of the model, holds layers of it, and would lose their "
            "weights: compress a model that contains both, or a copy with smh.compress"
        )
