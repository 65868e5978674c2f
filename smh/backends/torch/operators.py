"""The core on flat sequences of tensors, and as operators that a compiler does not look into.

On the CPU the eager kernels are faster than what a compiler makes of the core: they compute in place, block by block,
with products of bytes where the processor has them. What is exported contains the core itself, and so do programs for
other devices, where this was not measured. A graph names a plan by its JSON, so that a compiled program can be cached
on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from smh.backends.torch.compilers import compiles
from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.narrow import SINGLE, kernels_for
from smh.core import generate
from smh.core.plan import Plan

Tensors = tuple[torch.Tensor, ...]
_used = True


def weights(plan: Plan, names: Sequence[str], variables: Sequence[torch.Tensor]) -> Tensors:
    """Return named weights, given all variables."""
    if are_used(variables[0]):
        return tuple(_materialize(_text(plan), _numbers(plan, names), list(variables)))
    given = dict(zip(plan.variable_shapes, variables, strict=True))
    with no_autocast(variables[0]):
        return tuple(generate.materialize(kernels_for(variables[0]), plan, given, names).values())


def gradients(plan: Plan, names: Sequence[str], fast: bool, tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return the gradients of all variables. ``tensors`` contains the variables, then a cotangent for each name."""
    if are_used(tensors[0]):
        return tuple(_vjp(_text(plan), _numbers(plan, names), fast, list(tensors)))
    with no_autocast(tensors[0]):
        if fast:
            return pulled(SINGLE, plan, names, on_grid(plan, tensors))
        return pulled(kernels_for(tensors[0]), plan, names, tensors)


def pulled(kernels: TorchKernels, plan: Plan, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return the same with given kernels."""
    shapes = plan.variable_shapes
    variables = dict(zip(shapes, tensors[: len(shapes)], strict=True))
    cotangents = dict(zip(names, tensors[len(shapes) :], strict=True))
    return tuple(generate.vjp(kernels, plan, variables, cotangents).values())


def on_grid(plan: Plan, tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return the variables with the pool on its grids, where rounding has derivative 1, and the rest unchanged."""
    variables = dict(zip(plan.variable_shapes, tensors, strict=False))
    with torch.no_grad():
        rounded = generate.on_grid(kernels_for(tensors[0]), plan, variables)
    moved = [rounded[name] + (x - x.detach()) for name, x in variables.items()]
    return *moved, *tensors[len(moved) :]


def no_autocast(x: torch.Tensor) -> torch.autocast:
    """Return a context in which float32 products stay float32."""
    return torch.autocast(x.device.type, enabled=False)


def are_used(x: torch.Tensor) -> bool:
    """Return whether a compiler is at work, and is to call operators for a tensor."""
    return compiles() and _used and not torch.compiler.is_exporting() and x.device.type == "cpu"


@contextmanager
def traced() -> Iterator[None]:
    """Let compilers trace the core in the place of operators."""
    global _used
    before, _used = _used, False
    try:
        yield
    finally:
        _used = before


@torch.compiler.assume_constant_result
def _text(plan: Plan) -> str:
    """Return a plan as a constant of a graph."""
    return plan.to_json()


_plan = functools.lru_cache(maxsize=64)(Plan.from_json)


def _numbers(plan: Plan, names: Sequence[str]) -> list[int]:
    of = {tensor.name: k for k, tensor in enumerate(plan.tensors)}
    return [of[name] for name in names]


def _names(plan: Plan, numbers: Sequence[int]) -> list[str]:
    return [plan.tensors[k].name for k in numbers]


@torch.library.custom_op("smh::materialize", mutates_args=(), device_types="cpu")
def _materialize(plan: str, numbers: Sequence[int], variables: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    whole = _plan(plan)
    return [x.contiguous() for x in weights(whole, _names(whole, numbers), variables)]


@_materialize.register_fake
def _(plan: str, numbers: Sequence[int], variables: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    tensors = _plan(plan).tensors
    return [variables[0].new_empty(tensors[k].viewed_shape) for k in numbers]


@torch.library.custom_op("smh::vjp", mutates_args=(), device_types="cpu")
def _vjp(plan: str, numbers: Sequence[int], fast: bool, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    whole = _plan(plan)
    return [x.contiguous() for x in gradients(whole, _names(whole, numbers), fast, tensors)]


@_vjp.register_fake
def _(plan: str, numbers: Sequence[int], fast: bool, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.new_empty(x.shape) for x in tensors[: len(_plan(plan).variable_shapes)]]
