"""The operators of :mod:`smh.backends.torch.operators`. Registering them imports much, so it waits for a compiler."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from smh.backends.torch.operators import gradients, weights
from smh.core.plan import Plan

_plan = functools.lru_cache(maxsize=64)(Plan.from_json)


@torch.compiler.assume_constant_result
def text_of(plan: Plan) -> str:
    """Return a plan as a constant of a graph."""
    return plan.to_json()


def _names(plan: Plan, numbers: Sequence[int]) -> list[str]:
    return [plan.tensors[k].name for k in numbers]


@torch.library.custom_op("smh::materialize", mutates_args=(), device_types="cpu")
def materialize(plan: str, numbers: Sequence[int], variables: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the weights of the tensors with some numbers in the plan."""
    whole = _plan(plan)
    return [x.contiguous() for x in weights(whole, _names(whole, numbers), variables)]


@materialize.register_fake
def _(plan: str, numbers: Sequence[int], variables: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    tensors = _plan(plan).tensors
    return [variables[0].new_empty(tensors[k].viewed_shape) for k in numbers]


@torch.library.custom_op("smh::vjp", mutates_args=(), device_types="cpu")
def vjp(plan: str, numbers: Sequence[int], fast: bool, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of all variables."""
    whole = _plan(plan)
    return [x.contiguous() for x in gradients(whole, _names(whole, numbers), fast, tensors)]


@vjp.register_fake
def _(plan: str, numbers: Sequence[int], fast: bool, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.new_empty(x.shape) for x in tensors[: len(_plan(plan).variable_shapes)]]
