"""Where a module is a compressed model: how it becomes one, and finding its store again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from smh.backends.torch.discovery import parts_of
from smh.backends.torch.generated import NAMES, STORE, generated_class
from smh.backends.torch.store import Site, Store
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import Compression


def find_store(model: Any) -> Store | None:
    """Return the store of a compressed model, also from within what wraps a whole model, or None."""
    inner = model
    while isinstance(inner, nn.Module):
        store: Store | None = inner.__dict__.get(STORE)
        if store is not None and store.root is inner:
            return store
        wrapped = dict(inner.named_children())
        if len(wrapped) != 1 or next(iter(wrapped)) not in ("module", "_orig_mod"):
            break
        (inner,) = wrapped.values()
    return None


def install(model: nn.Module, compression: Compression, sites: Mapping[str, list[Site]]) -> Store:
    """Put parameters for variables, all zero, in the place of those that are generated."""
    plan = compression.plan
    first = {tensor.name: sites[tensor.name][0] for tensor in plan.tensors}
    slots = {
        f"pool/{name}": (model, f"pool_{name}".replace("/", "_").replace(".", "_"))
        for name in plan.pool.variable_shapes()
    }
    packed = _packed(plan, sites)
    whole = {part: name for name, parts in packed.items() for part in parts}
    for tensor in plan.tensors:
        module, attribute = first[tensor.name]
        part = f"_{tensor.name.rpartition('.')[2]}" if tensor.name in whole else ""
        if tensor.learn_scale:
            slots[tensor.scale_variable] = module, f"{attribute}{part}_scale"
    for module, attribute in slots.values():
        if hasattr(module, attribute):
            what = f"{type(module).__name__} has an attribute {attribute!r}, which a variable needs"
            raise PlanError(f"{what}: rename it, or exclude the tensor")
    read: dict[nn.Module, dict[str, str]] = {model: {}}
    for tensor in plan.tensors:
        for module, attribute in sites[tensor.name]:
            read.setdefault(module, {})[attribute] = whole.get(tensor.name, tensor.name)
    example = first[plan.tensors[0].name]
    like = example[0]._parameters[example[1]]
    store = Store(
        root=model,
        compression=compression,
        slots=slots,
        order={module: tuple(module._parameters) for module in read},
        packed=packed,
    )
    for module, names in read.items():
        for attribute in names:
            del module._parameters[attribute]
        module.__dict__.pop("_flat_weights", None)  # the list of parameters that a recurrent layer keeps
    for name, (module, attribute) in slots.items():
        shape = plan.variable_shapes[name] or (1,)  # libraries that shard parameters take none without axes
        module.register_parameter(attribute, nn.Parameter(like.detach().new_zeros(shape)))
    for module, names in read.items():
        module.__dict__[STORE] = store
        if names:
            module.__dict__[NAMES] = names
        cls: Any = type(module)
        module.__class__ = generated_class(cls, tuple(names), module is model)
    return store


def _packed(plan: Plan, sites: Mapping[str, list[Site]]) -> dict[str, tuple[str, ...]]:
    """Return, for every parameter that holds several generated matrices, their names in its order."""
    planned = {tensor.name for tensor in plan.tensors}
    packed = {}
    for tensor in plan.tensors:
        name, _, part = tensor.name.rpartition(".")
        parts = tuple(f"{name}.{other}" for other in parts_of(*sites[tensor.name][0]))
        if tensor.name in parts:
            packed[name] = parts
            if missing := [other for other in parts if other not in planned]:
                what = f"{name!r} is one parameter of {len(parts)} matrices, all of which are generated or none"
                raise PlanError(f"{what}; the plan has {part!r} and lacks {', '.join(map(repr, missing))}")
    return packed
