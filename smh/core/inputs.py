"""Whether the arrays that a caller gives are those of a plan."""

from __future__ import annotations

from collections.abc import Mapping

from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import VariableError, near_names


def check_variables(kernels: Kernels, plan: Plan, variables: Mapping[str, Array]) -> None:
    """Raise :class:`~smh.VariableError` unless the variables are exactly those of the plan."""
    shapes = plan.variable_shapes
    for name in variables:
        if name not in shapes:
            raise VariableError(f"the plan has no variable {name!r}: {near_names(str(name), shapes)}")
    for name, shape in shapes.items():
        if name not in variables:
            raise VariableError(f"variable {name!r} is missing: the plan needs it with shape {shape}, float32")
        _check_array(kernels, f"variable {name!r}", variables[name], shape)


def check_cotangents(kernels: Kernels, plan: Plan, cotangents: Mapping[str, Array]) -> None:
    """Raise unless every cotangent is that of a tensor, in its viewed shape."""
    for tensor in plan.select(cotangents):
        _check_array(kernels, f"the cotangent of {tensor.name!r}", cotangents[tensor.name], tensor.viewed_shape)


def _check_array(kernels: Kernels, what: str, x: Array, shape: tuple[int, ...]) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise VariableError(f"{what} must be an array of this backend, float32; got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise VariableError(f"{what} must have shape {shape}; got {tuple(x.shape)}")
    if x.dtype != kernels.xp.float32:
        raise VariableError(f"{what} must be float32; got {x.dtype}: convert it first")
