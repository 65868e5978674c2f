"""Frozen models: integers in buffers, in the place of the parameters of a pool."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smh.backends.torch.adapter import backend
from smh.core.integers import Exponents, stored_arrays
from smh.core.plan import Plan
from smh.errors import CheckpointError
from smh.files.integers import Integers
from smh.models.compression import check_fingerprint, fingerprint

if TYPE_CHECKING:
    from smh.backends.torch.store import Store

_NONE = -128
"""The exponent, in a state, of an array whose integers are all 0."""


def no_exponents(plan: Plan) -> Exponents:
    """Return the exponents of a pool whose integers are all 0."""
    return {name.removeprefix("pool/"): None for name in stored_arrays(plan)}


def buffers(plan: Plan, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return buffers for all variables of a frozen model, all 0."""
    stored = stored_arrays(plan)
    return {
        name: like.new_zeros(stored[name][1], dtype=getattr(torch, stored[name][0]))
        if name in stored
        else like.new_zeros(shape or (1,))
        for name, shape in plan.variable_shapes.items()
    }


def frozen_copy(model: nn.Module, integers: Integers) -> nn.Module:
    """Return a frozen copy of a compressed model, given the integers of its pool."""
    copied: Any = copy.deepcopy(model)
    from smh.backends.torch.store import find_store

    store: Any = find_store(copied)
    for name, x in store.parameters().items():
        module, attribute = store.slots[name]
        new = backend.asarray(integers.arrays[name], x.device) if name in integers.arrays else x.detach()
        del module._parameters[attribute]
        module.register_buffer(attribute, new)
    store.compression = replace(store.compression, frozen=True, gradients="exact")
    store.exponents = integers.exponents
    store.cache = store.packed = None
    return finished(copied)


def finished(model: nn.Module) -> nn.Module:
    """Return a model for inference: nothing in it has gradients."""
    nn.Module.requires_grad_(model, False)
    return model.eval()


def fill(store: Store, scales: Mapping[str, Any], integers: Integers) -> None:
    """Copy the values of a file into the buffers of a frozen model."""
    with torch.no_grad():
        for name, x in store.parameters().items():
            given = integers.arrays[name] if name in integers.arrays else scales[name]
            x.copy_(backend.asarray(given, "cpu").reshape(x.shape))
    store.exponents = integers.exponents
    store.cache = store.packed = None


def state(plan: Plan, exponents: Exponents) -> torch.Tensor:
    """Return what the state of a frozen model names: the fingerprint of the plan, and the exponents; uint8."""
    numbers = [(_NONE if e is None else e) % 256 for e in exponents.values()]
    return torch.tensor([*fingerprint(plan).tolist(), *numbers], dtype=torch.uint8, device="cpu")


def exponents_of(plan: Plan, x: Any) -> Exponents:
    """Return the exponents that a state names."""
    signed = [number - 256 if number > 127 else number for number in x.tolist()[32:]]
    return {name: None if e == _NONE else e for name, e in zip(no_exponents(plan), signed, strict=True)}


def check_state(plan: Plan, frozen: bool, x: Any, advice: str) -> None:
    """Raise :class:`~smh.CheckpointError` unless what a state names is the plan of a model, frozen or not."""
    is_name = isinstance(x, torch.Tensor) and x.dtype == torch.uint8 and x.ndim == 1
    is_frozen = is_name and len(x) > 32
    if is_name and len(x) >= 32 and is_frozen != frozen:
        own, other = ("frozen", "not frozen") if frozen else ("not frozen", "frozen")
        raise CheckpointError(
            f"the saved state is of a model that is {other}, and this model is {own}: load it into a model like the "
            "one that it is from; smh.freeze(model) makes a frozen model"
        )
    fits = is_name and len(x) == 32 + frozen * len(stored_arrays(plan))
    check_fingerprint(plan, bytes(x.tolist()[:32]) if fits else None, advice)
