"""The ways in which people run TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from smh.backends.protocol import Function, Mode


def _traced(**options: Any) -> Any:
    """Return what makes a graph of a function; one without code of its own is not taken for one that retraces."""
    return lambda fn: tf.function(functools.partial(fn), autograph=False, **options)


def _of_variables(fn: Function) -> Function:
    return lambda *args: fn(*(tf.Variable(x) for x in args))


def _vectorized(fn: Function) -> Function:
    """Run a batch of one: gradients, where there are any, are taken inside."""

    def run(*args: Any) -> Any:
        batch = tf.vectorized_map(lambda args: fn(*args), tuple(x[None] for x in args))
        return tf.nest.map_structure(lambda x: x[0], batch)

    traced: Function = _traced()(run)
    return traced


def _other_precision(fn: Function) -> Function:
    """Run with TF32 for float32 products, which NVIDIA GPUs have, switched off where it is on, on where it is off."""

    def run(*args: Any) -> Any:
        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(not before)
        try:
            return fn(*args)
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)

    return run


MODES = (
    Mode("precision", "TF32 switched off, or on where it was off", around=_other_precision),
    Mode("function", "a whole call in tf.function", around=_traced(), slowness=4),
    Mode("function-within", "weights built by a tf.function", within=_traced(), slowness=4),
    Mode("xla", "a whole call in tf.function(jit_compile=True)", around=_traced(jit_compile=True), slowness=20),
    Mode(
        "xla-within", "weights built by a tf.function(jit_compile=True)", within=_traced(jit_compile=True), slowness=20
    ),
    Mode("recompute", "tf.recompute_grad", within=tf.recompute_grad),
    Mode("variables", "variables are tf.Variable", around=_of_variables),
    Mode("vectorized", "tf.vectorized_map of a whole call, in tf.function", around=_vectorized, slowness=4),
)
