"""The core on flat sequences of tensors, and as operators that a compiler does not look into.

On the CPU the eager kernels are faster than what a compiler makes of the core: they compute in place, block by block,
with products of bytes where the processor has them. What is exported contains the core itself, and so do programs for
other devices, where this was not measured. A graph names a plan by its JSON, so that a compiled program can be cached
on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smh.backends.switch import Switch
from smh.backends.torch.compilers import compiles
from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.narrow import SINGLE, kernels_for
from smh.core import generate
from smh.core.plan import Plan

Tensors = tuple[torch.Tensor, ...]
ALLOWED = Switch()
"""Whether compilers may call operators; otherwise they trace the core."""


def weights(plan: Plan, names: Sequence[str], variables: Sequence[torch.Tensor]) -> Tensors:
    """Return named weights, given all variables."""
    if are_used(variables[0]):
        from smh.backends.torch import custom  # whose registration imports much

        return tuple(custom.materialize(custom.text_of(plan), _numbers(plan, names), list(variables)))
    given = dict(zip(plan.variable_shapes, variables, strict=True))
    with no_autocast(variables[0]):
        return tuple(generate.materialize(kernels_for(variables[0]), plan, given, names).values())


def gradients(plan: Plan, names: Sequence[str], fast: bool, tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return the gradients of all variables. ``tensors`` contains the variables, then a cotangent for each name."""
    if are_used(tensors[0]):
        from smh.backends.torch import custom

        return tuple(custom.vjp(custom.text_of(plan), _numbers(plan, names), fast, list(tensors)))
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
    return compiles() and ALLOWED.on and not torch.compiler.is_exporting() and x.device.type == "cpu"


def _numbers(plan: Plan, names: Sequence[str]) -> list[int]:
    of = {tensor.name: k for k, tensor in enumerate(plan.tensors)}
    return [of[name] for name in names]
