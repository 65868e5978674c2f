"""The core as differentiable functions of TensorFlow (specification, section 7).

First derivatives have the bits of the specification, unless they are fast ones; second ones are those of the same
formulas without rounding.
Tapes must not see the operations of the core, only the functions here: the gradients of rounding are not those of the
specification, and what a tape sees it keeps. So the core gets tensors through which no gradient flows.
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
"""Makes a user's ``tf.function`` leave a function alone: the core's loops and branches are of Python's values."""


def build(plan: Plan, names: tuple[str, ...], *flat: Array, fast: bool = False) -> tuple[Array, ...]:
    """Return the weights of some names from all variables, in the plan's order, with exact or fast gradients."""

    @tf.custom_gradient
    def smh_materialize(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., tuple[Array, ...]]]:
        def pull(*cotangents: Array) -> tuple[Array, ...]:
            return gradients(plan, names, *variables, *cotangents, fast=fast)

        with _beside(variables[0]):
            named = dict(zip(plan.variable_shapes, _unseen(variables), strict=True))
            return tuple(generate.materialize(kernels(), plan, named, names).values()), pull

    return tuple(smh_materialize(*(tf.convert_to_tensor(x) for x in flat)))


def gradients(plan: Plan, names: tuple[str, ...], *tensors: Array, fast: bool = False) -> tuple[Array, ...]:
    """Return the gradients of all variables; ``tensors`` holds these, and then a cotangent for each name."""

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

    # Graphs may not know the shapes of what layers compute, and have sparse gradients of embeddings.
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
    """Return the variables with those of the pool on their grids, where rounding has derivative 1; and the rest."""
    shapes = plan.variable_shapes
    rounded = generate.on_grid(kernels(), plan, dict(zip(shapes, _unseen(tensors[: len(shapes)]), strict=True)))
    moved = [rounded[name] + (x - tf.stop_gradient(x)) for name, x in zip(shapes, tensors, strict=False)]
    return [*moved, *map(tf.identity, tensors[len(shapes) :])]


def _unseen(tensors: Sequence[Array]) -> list[Array]:
    """Return tensors through which no gradient flows; a graph that comes to ask for one stops with an error."""
    if tf.executing_eagerly():
        return [tf.stop_gradient(x) for x in tensors]
    return [tf.raw_ops.PreventGradient(input=x, message=_LOST) for x in tensors]


def _beside(x: Array) -> Any:
    """Return a context that places operations on the device of an eager tensor; graphs are placed by TensorFlow."""
    return tf.device(x.device) if tf.executing_eagerly() else nullcontext()
