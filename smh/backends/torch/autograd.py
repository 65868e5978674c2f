"""The core as differentiable functions of PyTorch (specification, section 7).

Exact first derivatives have the bits of the specification. Second derivatives are those of the same formulas without
rounding. All functions accept one flat sequence of tensors, which autograd, ``torch.func`` and the compiler can trace.
"""

from __future__ import annotations

from typing import Any

import torch

from smh.backends.torch import operators
from smh.backends.torch.narrow import SINGLE, kernels_for
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError


class _OfPlan(torch.autograd.Function):
    """A function of ``(plan, names, fast, *tensors)``, where ``fast`` selects fast gradients."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        """Save the tensors for the backward pass."""
        ctx.plan, ctx.names, ctx.fast, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
        """Run the elements of a batch one after another, so the bits of an element do not depend on the batch."""
        plan, names, fast, *batches = args
        tensors = list(zip(batches, in_dims[3:], strict=True))
        rows = [
            cls.apply(plan, names, fast, *(x if dim is None else x.select(dim, i) for x, dim in tensors))
            for i in range(info.batch_size)
        ]
        results = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return results, (0,) * len(results)


class Materialize(_OfPlan):
    """Maps ``(plan, names, fast, *variables)`` to the named weights."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, _, *tensors = _arguments(args)
        if tensors[0].device.type == "meta":  # shapes only
            return tuple(tensors[0].new_empty(tensor.viewed_shape) for tensor in plan.select(names))
        return operators.weights(plan, names, tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Any, ...]:
        """Return the gradients of all variables. Unused outputs have no cotangent."""
        given = {name: g for name, g in zip(ctx.names, cotangents, strict=True) if g is not None}
        if not given:
            return (None,) * (3 + len(ctx.saved_tensors))
        return None, None, None, *Vjp.apply(ctx.plan, tuple(given), ctx.fast, *ctx.saved_tensors, *given.values())


class Promise(Materialize):
    """Maps ``(plan, names, fast, *variables)`` to placeholders for weights that are built later, one by one.

    A placeholder has the shape of its weight and no memory. The gradients of all built weights arrive here together, so
    the gradients of variables have the bits of :class:`Materialize`.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Return placeholders without running the core."""
        plan, names, _, *variables = _arguments(args)
        zero = variables[0].new_zeros(())
        return tuple(zero.expand(tensor.viewed_shape) for tensor in plan.select(names))


class Redeem(torch.autograd.Function):
    """Maps a placeholder and its weight, built without autograd, to the weight; gradients go to the placeholder."""

    @staticmethod
    def forward(promise: Array, weight: Array) -> Array:
        """Return the weight."""
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        """Save nothing."""

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array, None]:
        """Pass the gradient to the placeholder."""
        return cotangent, None


class Vjp(_OfPlan):
    """Maps ``(plan, names, fast, *variables, *cotangents)`` to the gradients of all variables."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, fast, *tensors = _arguments(args)
        if tensors[0].device.type == "meta":
            return tuple(map(torch.empty_like, tensors[: len(plan.variable_shapes)]))
        return operators.gradients(plan, names, fast, tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Any, ...]:
        """Differentiate the smooth formulas at the values on the grid. The result can be differentiated again."""
        plan, names, saved = ctx.plan, ctx.names, ctx.saved_tensors
        given = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(saved, cotangents, strict=False))
        with torch.enable_grad(), operators.no_autocast(saved[0]):
            smooth = SINGLE if ctx.fast else kernels_for(saved[0], smooth=True)
            at = operators.on_grid(plan, saved)
            _, pull = torch.func.vjp(lambda *tensors: operators.pulled(smooth, plan, names, tensors), *at)
            return None, None, None, *pull(given)


def _arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of ``apply``. If no gradient is needed, Dynamo puts a context before a list of arguments.

    Dynamo also does so under the transforms of ``torch.func``, and would then wrongly differentiate the roundings. It
    cannot trace the query for the transform level, and therefore stops or leaves the call uncompiled.
    """
    if isinstance(args[0], Plan):
        return args
    if torch._C._functorch.maybe_current_level() is not None:
        raise BackendError(
            "torch.compile does not support exact gradients under torch.func transforms: "
            "compile with torch.autograd instead, or leave the transform uncompiled"
        )
    return args[1:]
