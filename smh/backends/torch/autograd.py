"""The core as differentiable functions of PyTorch (specification, section 7).

First derivatives have the bits of the specification, unless they are fast ones; second ones are those of the same
formulas without rounding. All functions take one flat sequence of tensors, which is what autograd, ``torch.func`` and
the compiler follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.narrow import SINGLE, kernels_for
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError


class _OfPlan(torch.autograd.Function):
    """A function of ``(plan, names, fast, *tensors)``, ``fast`` being whether its gradients are fast ones."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        """Keep the tensors."""
        ctx.plan, ctx.names, ctx.fast, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
        """Run the elements of a batch one after another: the bits of an element cannot depend on the others."""
        plan, names, fast, *batches = args
        tensors = list(zip(batches, in_dims[3:], strict=True))
        rows = [
            cls.apply(plan, names, fast, *(x if dim is None else x.select(dim, i) for x, dim in tensors))
            for i in range(info.batch_size)
        ]
        results = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return results, (0,) * len(results)


class Materialize(_OfPlan):
    """From ``(plan, names, fast, *variables)`` to the weights of those names."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, _, *tensors = _arguments(args)
        if tensors[0].device.type == "meta":  # shapes only
            return tuple(tensors[0].new_empty(tensor.viewed_shape) for tensor in plan.select(names))
        variables = dict(zip(plan.variable_shapes, tensors, strict=True))
        with no_autocast(tensors[0]):
            return tuple(generate.materialize(kernels_for(tensors[0]), plan, variables, names).values())

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Any, ...]:
        """Return the gradients of all variables; an output that was not used has no cotangent."""
        given = {name: g for name, g in zip(ctx.names, cotangents, strict=True) if g is not None}
        if not given:
            return (None,) * (3 + len(ctx.saved_tensors))
        return None, None, None, *Vjp.apply(ctx.plan, tuple(given), ctx.fast, *ctx.saved_tensors, *given.values())


class Promise(Materialize):
    """From ``(plan, names, fast, *variables)`` to placeholders for weights that are built later, one by one.

    A placeholder has the shape of its weight and no memory. What the built weights get as gradients arrives here
    together, so that the variables get the same bits as from :class:`Materialize`.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run nothing."""
        plan, names, _, *variables = _arguments(args)
        zero = variables[0].new_zeros(())
        return tuple(zero.expand(tensor.viewed_shape) for tensor in plan.select(names))


class Redeem(torch.autograd.Function):
    """From a placeholder and its weight, built without autograd, to the weight, whose gradient the placeholder gets."""

    @staticmethod
    def forward(promise: Array, weight: Array) -> Array:
        """Return the weight."""
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array, None]:
        """Hand the gradient to the placeholder."""
        return cotangent, None


class Vjp(_OfPlan):
    """From ``(plan, names, fast, *variables, *cotangents)`` to the gradients of all variables."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, fast, *tensors = _arguments(args)
        if tensors[0].device.type == "meta":
            return tuple(map(torch.empty_like, tensors[: len(plan.variable_shapes)]))
        with no_autocast(tensors[0]):
            if fast:
                return _vjp(SINGLE, plan, names, _on_grid(plan, tensors))
            return _vjp(kernels_for(tensors[0]), plan, names, tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Any, ...]:
        """Differentiate the smooth formulas, at the values on the grid; the result can be differentiated again."""
        plan, names, saved = ctx.plan, ctx.names, ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(saved, cotangents, strict=False))
        with torch.enable_grad(), no_autocast(saved[0]):
            smooth = SINGLE if ctx.fast else kernels_for(saved[0], smooth=True)
            _, pull = torch.func.vjp(lambda *tensors: _vjp(smooth, plan, names, tensors), *_on_grid(plan, saved))
            return None, None, None, *pull(given)


def _vjp(kernels: TorchKernels, plan: Plan, names: tuple[str, ...], tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Return the gradients of all variables; ``tensors`` holds these, and then a cotangent for each name."""
    shapes = plan.variable_shapes
    variables = dict(zip(shapes, tensors[: len(shapes)], strict=True))
    cotangents = dict(zip(names, tensors[len(shapes) :], strict=True))
    return tuple(generate.vjp(kernels, plan, variables, cotangents).values())


def _on_grid(plan: Plan, tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Return the variables with those of the pool on their grids, where rounding has derivative 1; and the rest."""
    variables = dict(zip(plan.variable_shapes, tensors, strict=False))
    with torch.no_grad():
        rounded = generate.on_grid(kernels_for(tensors[0]), plan, variables)
    moved = [rounded[name] + (x - x.detach()) for name, x in variables.items()]
    return *moved, *tensors[len(moved) :]


def no_autocast(x: Array) -> Any:
    """Return a context in which float32 products stay float32."""
    return torch.autocast(x.device.type, enabled=False)


def _arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of ``apply``: where no gradient is needed, Dynamo puts a context before an open list.

    It also does so under the transforms of ``torch.func``, and would then differentiate the roundings: it must not.
    Dynamo cannot trace the question for the level where there is one, and so stops, or leaves the call uncompiled.
    """
    if isinstance(args[0], Plan):
        return args
    if torch._C._functorch.maybe_current_level() is not None:
        raise BackendError(
            "torch.compile does not see the exact gradient under torch.func transforms: "
            "compile with torch.autograd instead, or leave the transform uncompiled"
        )
    return args[1:]
