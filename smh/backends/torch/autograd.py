"""The core as differentiable functions of PyTorch (specification, section 7).

First derivatives have the bits of the specification; second ones are those of the same formulas without rounding. All
functions take one flat sequence of tensors, which is what autograd, ``torch.func`` and the compiler follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from smh.backends.torch.kernels import TorchKernels
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError

KERNELS = TorchKernels()
_SMOOTH = TorchKernels(smooth=True)


class Materialize(torch.autograd.Function):
    """From ``(plan, names, *variables)`` to the weights of those names."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, *variables = _arguments(args)
        with _no_autocast(variables[0]):
            weights = generate.materialize(
                KERNELS, plan, dict(zip(plan.variable_shapes, variables, strict=True)), names
            )
        return tuple(weights.values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        """Keep the variables."""
        ctx.plan, ctx.names, *variables = inputs
        ctx.save_for_backward(*variables)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> tuple[Any, ...]:
        """Return the gradients of all variables; an output that was not used has no cotangent."""
        given = {name: g for name, g in zip(ctx.names, cotangents, strict=True) if g is not None}
        if not given:
            return (None,) * (2 + len(ctx.saved_tensors))
        return None, None, *Vjp.apply(ctx.plan, tuple(given), *ctx.saved_tensors, *given.values())

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
        """Run the elements of a batch one after another."""
        return _one_by_one(Materialize.apply, info.batch_size, in_dims, args)


class Promise(Materialize):
    """From ``(plan, names, *variables)`` to placeholders for weights that are built later, one by one.

    A placeholder has the shape of its weight and no memory. What the built weights get as gradients arrives here
    together, so that the variables get the same bits as from :class:`Materialize`.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run nothing."""
        plan, names, *variables = _arguments(args)
        zero = variables[0].new_zeros(())
        return tuple(zero.expand(tensor.viewed_shape) for tensor in plan.select(names))


class Redeem(torch.autograd.Function):
    """From a placeholder and its weight, built without autograd, to the weight."""

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


class Vjp(torch.autograd.Function):
    """From ``(plan, names, *variables, *cotangents)`` to the gradients of all variables."""

    @staticmethod
    def forward(*args: Any) -> tuple[Array, ...]:
        """Run the core."""
        plan, names, *tensors = _arguments(args)
        check_float64(tensors[0])
        with _no_autocast(tensors[0]):
            return _vjp(KERNELS, plan, names, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        """Keep variables and cotangents."""
        ctx.plan, ctx.names, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> tuple[Any, ...]:
        """Differentiate the smooth formulas, at the values on the grid; the result can be differentiated again."""
        plan, names = ctx.plan, ctx.names
        with torch.enable_grad(), _no_autocast(cotangents[0]):
            tensors = _on_grid(plan, ctx.saved_tensors)
            _, pull = torch.func.vjp(lambda *tensors: _vjp(_SMOOTH, plan, names, tensors), *tensors)
            return None, None, *pull(tuple(cotangents))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
        """Run the elements of a batch one after another."""
        return _one_by_one(Vjp.apply, info.batch_size, in_dims, args)


def _vjp(kernels: TorchKernels, plan: Plan, names: tuple[str, ...], tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Return the gradients of all variables; ``tensors`` holds these, and then a cotangent for each name."""
    shapes = plan.variable_shapes
    variables = dict(zip(shapes, tensors[: len(shapes)], strict=True))
    cotangents = dict(zip(names, tensors[len(shapes) :], strict=True))
    return tuple(generate.vjp(kernels, plan, variables, cotangents).values())


def _on_grid(plan: Plan, tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Return the variables with those of the pool on their grids, where rounding has derivative 1; and the rest."""
    with torch.no_grad():
        rounded = generate.on_grid(KERNELS, plan, dict(zip(plan.variable_shapes, tensors, strict=False)))
    moved = [x + (rounded[name] - x).detach() for name, x in zip(plan.variable_shapes, tensors, strict=False)]
    return *moved, *tensors[len(moved) :]


def check_float64(x: Array) -> None:
    """Raise :class:`~smh.BackendError` where gradients cannot be computed, for lack of float64."""
    if device_type(x) == "mps":
        raise BackendError(
            "gradients need float64, which the device 'mps' does not have: train on the CPU or a CUDA device. "
            "Weights can be generated on 'mps'"
        )


def device_type(x: Array) -> str:
    """Return the type of the device of a tensor."""
    return str(x.device.type)


def _no_autocast(x: Array) -> Any:
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


def _one_by_one(
    apply: Callable[..., tuple[Array, ...]], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """Stack the results of every element of a batch: the bits of an element cannot depend on the others."""
    plan, names, *tensors = args
    dims = in_dims[2:]
    rows = [
        apply(plan, names, *(x if dim is None else x.select(dim, i) for x, dim in zip(tensors, dims, strict=True)))
        for i in range(size)
    ]
    results = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return results, (0,) * len(results)
