"""The core as differentiable functions of TensorFlow: first derivatives exact, second ones fast (section 7).

Tapes must not see the operations of the core, only the functions here: the gradients of rounding are not those of the
specification, and what a tape sees it keeps. So the core gets tensors through which no gradient flows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

from smh.v2.backends.tensorflow.ops import TensorFlowOps
from smh.v2.core import generate
from smh.v2.core.kernels import Array
from smh.v2.core.plan import Plan

OPS = TensorFlowOps()
_LOST = "smh: the exact gradient was lost on the way; take gradients inside of tf.vectorized_map, not around it"


def build(plan: Plan, names: tuple[str, ...], *flat: Array) -> tuple[Array, ...]:
    """Return the weights of some names from all variables, in the plan's order."""

    @tf.custom_gradient
    def smh_materialize(*variables: Array) -> tuple[tuple[Array, ...], Callable[..., tuple[Array, ...]]]:
        def pull(*cotangents: Array) -> tuple[Array, ...]:
            return gradients(plan, names, *variables, *cotangents)

        with _beside(variables[0]):
            named = dict(zip(plan.variable_shapes, _unseen(variables), strict=True))
            return tuple(generate.materialize(OPS, plan, named, names).values()), pull

    results: tuple[Array, ...] = smh_materialize(*(tf.convert_to_tensor(x) for x in flat))
    return results


def gradients(plan: Plan, names: tuple[str, ...], *tensors: Array) -> tuple[Array, ...]:
    """Return the gradients of all variables; ``tensors`` holds these, and then a cotangent for each name."""

    @tf.custom_gradient
    def smh_vjp(*tensors: Array) -> tuple[tuple[Array, ...], Callable[..., Any]]:
        def pull(*cotangents: Array) -> Any:
            fast = dataclasses.replace(plan, arithmetic="fast")
            with _beside(tensors[0]), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(tensors)
                results = _vjp(fast, names, tensors)
            return tape.gradient(results, tensors, cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        with _beside(tensors[0]):
            return _vjp(plan, names, _unseen(tensors)), pull

    results: tuple[Array, ...] = smh_vjp(*tensors)
    return results


def without_cotangents(plan: Plan, flat: Sequence[Array]) -> dict[str, Array]:
    """Return the gradients where no weight has a cotangent: zeros times variables that need not be finite."""
    with _beside(flat[0]):
        return generate.vjp(OPS, plan, dict(zip(plan.variable_shapes, _unseen(flat), strict=True)), {})


def _vjp(plan: Plan, names: tuple[str, ...], tensors: Sequence[Array]) -> tuple[Array, ...]:
    shapes = plan.variable_shapes
    variables = dict(zip(shapes, tensors[: len(shapes)], strict=True))
    cotangents = dict(zip(names, tensors[len(shapes) :], strict=True))
    return tuple(generate.vjp(OPS, plan, variables, cotangents).values())


def _unseen(tensors: Sequence[Array]) -> list[Array]:
    """Return tensors through which no gradient flows; a graph that comes to ask for one stops with an error."""
    if tf.executing_eagerly():
        return [tf.stop_gradient(x) for x in tensors]
    return [tf.raw_ops.PreventGradient(input=x, message=_LOST) for x in tensors]


def _beside(x: Array) -> AbstractContextManager[Any]:
    """Return a context that places operations on the device of an eager tensor; graphs are placed by TensorFlow."""
    if not tf.executing_eagerly():
        return nullcontext()
    place: AbstractContextManager[Any] = tf.device(x.device)
    return place
