"""The core as differentiable functions of TensorFlow (specification, section 7).

Exact first derivatives have the bits of the specification. Second derivatives are those of the same formulas without
rounding. Tapes must record only the functions of this module, not the operations of the core: the gradients of rounding
would be wrong, and tapes keep everything they record. The core therefore receives tensors without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import tensorflow as tf

from smh.backends.tensorflow.kernels import TensorflowKernels
from smh.backends.tensorflow.narrow import SINGLE, kernels
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])
_LOST = "smh: the exact gradient was lost on the way; take gradients inside of tf.vectorized_map, not around it"

as_written: Callable[[F], F] = tf.autograph.experimental.do_not_convert
"""Keeps AutoGraph of a user's ``tf.function`` from converting a function. The core branches on Python values only."""


def build(plan: Plan, names: tuple[str, ...], *flat: Array, fast: bool = False) -> tuple[Array, ...]:
    """Return the named weights from all variables, in the order of the plan, with exact or fast gradients."""

    @tf.custom_gradient
    def smh_materialize(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., tuple[Array, ...]]]:
        def pull(*cotangents: Array) -> tuple[Array, ...]:
            return gradients(plan, names, *variables, *cotangents, fast=fast)

        with _beside(variables[0]):
            named = dict(zip(plan.variable_shapes, _unseen(variables), strict=True))
            return tuple(generate.materialize(kernels(), plan, named, names).values()), pull

    return tuple(smh_materialize(*(tf.convert_to_tensor(x) for x in flat)))


def gradients(plan: Plan, names: tuple[str, ...], *tensors: Array, fast: bool = False) -> tuple[Array, ...]:
    """Return the gradients of all variables. ``tensors`` contains the variables, then a cotangent for each name."""

    @tf.custom_gradient
    def smh_vjp(*tensors: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
        def pull(*cotangents: Array) -> Any:
            with _beside(tensors[0]), tf.GradientTape(watch_accessed_variables=False) as tape:
                moved = _on_grid(plan, tensors)
                tape.watch(moved)
                results = _vjp(kernels(smooth=True), plan, names, moved)
            return tape.gradient(results, moved, cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        with _beside(tensors[0]):
            return _vjp(kernels(), plan, names, _unseen(tensors)), pull

    # In graphs, shapes may be unknown, and gradients of embeddings are sparse.
    tensors = tuple(map(tf.convert_to_tensor, tensors))
    shapes = [*plan.variable_shapes.values(), *(tensor.viewed_shape for tensor in plan.select(names))]
    pairs = zip(tensors, shapes, strict=True)
    shaped = [x if x.shape.is_fully_defined() else tf.ensure_shape(x, shape) for x, shape in pairs]
    if fast:
        with _beside(tensors[0]):
            return _vjp(SINGLE, plan, names, _on_grid(plan, shaped))
    return tuple(smh_vjp(*shaped))


def _vjp(kernels: TensorflowKernels, plan: Plan, names: tuple[str, ...], tensors: Sequence[Array]) -> tuple[Array, ...]:
    shapes = plan.variable_shapes
    variables = dict(zip(shapes, tensors[: len(shapes)], strict=True))
    cotangents = dict(zip(names, tensors[len(shapes) :], strict=True))
    return tuple(generate.vjp(kernels, plan, variables, cotangents).values())


def _on_grid(plan: Plan, tensors: Sequence[Array]) -> list[Array]:
    """Return the variables with the pool on its grids, where rounding has derivative 1, and the rest unchanged."""
    shapes = plan.variable_shapes
    rounded = generate.on_grid(kernels(), plan, dict(zip(shapes, _unseen(tensors[: len(shapes)]), strict=True)))
    moved = [rounded[name] + (x - tf.stop_gradient(x)) for name, x in zip(shapes, tensors, strict=False)]
    return [*moved, *map(tf.identity, tensors[len(shapes) :])]


def _unseen(tensors: Sequence[Array]) -> list[Array]:
    """Return tensors without gradients. Asking a graph for a gradient through them raises an error."""
    if tf.executing_eagerly():
        return [tf.stop_gradient(x) for x in tensors]
    return [tf.raw_ops.PreventGradient(input=x, message=_LOST) for x in tensors]


def _beside(x: Array) -> Any:
    """Return a context that places operations on the device of an eager tensor. TensorFlow places graphs."""
    return tf.device(x.device) if tf.executing_eagerly() else nullcontext()
