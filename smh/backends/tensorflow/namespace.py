"""The part of the array API that the core calls, for TensorFlow, without global settings.

TensorFlow has no array-API namespace. Arguments and results follow the array API, except that words are int64 and
``device`` is ignored: TensorFlow places new tensors with their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from smh.core.kernels import Array

float32 = tf.float32
float64 = tf.float64
int8 = tf.int8
int32 = tf.int32
int64 = tf.int64
uint32 = tf.uint32

abs = tf.abs
all = tf.reduce_all
astype = tf.cast  # to nearest even
floor = tf.floor
isfinite = tf.math.is_finite
log = tf.math.log
matmul = tf.matmul
matrix_transpose = tf.linalg.matrix_transpose
max = tf.reduce_max  # may lose a NaN: the core checks for NaN itself
permute_dims = tf.transpose
reshape = tf.reshape
round = tf.round  # half to even
stack = tf.stack
sum = tf.reduce_sum
take = tf.gather


def _with_numbers(operate: Callable[[Array, Array], Array]) -> Callable[[Array, Array | int], Array]:
    """Let the second operand be a Python number."""
    return lambda x, y: operate(x, _like(x, y))


def _anywhere(make: Callable[..., Array]) -> Callable[..., Array]:
    """Accept and ignore a device, as TensorFlow places tensors itself."""
    return lambda *args, device=None, **options: make(*args, **options)


arange = _anywhere(tf.range)
asarray = _anywhere(tf.convert_to_tensor)
ones = _anywhere(tf.ones)
zeros = _anywhere(tf.zeros)
bitwise_and = _with_numbers(tf.bitwise.bitwise_and)
bitwise_left_shift = _with_numbers(tf.bitwise.left_shift)
bitwise_or = tf.bitwise.bitwise_or
bitwise_right_shift = _with_numbers(tf.bitwise.right_shift)
bitwise_xor = _with_numbers(tf.bitwise.bitwise_xor)
floor_divide = _with_numbers(tf.math.floordiv)


def clip(x: Array, low: float, high: float) -> Array:
    """Return ``x`` clipped to a range. NaN stays NaN."""
    return where(x < low, low, where(x > high, high, x))


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Return the arrays one after another."""
    return tf.concat(arrays, axis)


def full(shape: Sequence[int], value: float, *, dtype: Any, device: Any = None) -> Array:
    """Return an array of one value."""
    return tf.fill(shape, tf.constant(value, dtype))


def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    """Return elements of ``x`` where the condition holds, else of ``y``. One of them may be a Python number."""
    return tf.where(condition, _like(y, x), _like(x, y))


def _like(x: Any, y: Any) -> Array:
    """Return ``y``, a Python number in the type of the array ``x``."""
    return tf.constant(y, x.dtype) if isinstance(y, int | float) else y
