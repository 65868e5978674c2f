"""The part of the array API that the core calls, on TensorFlow: no more, and nothing global is switched on.

TensorFlow brings no namespace of its own. Arguments and results are those of the array API, save that words are int64
and ``device`` is not used: TensorFlow places what it makes beside what it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from smh.core.kernels import Array

float32 = tf.float32
float64 = tf.float64
int64 = tf.int64
uint32 = tf.uint32

abs = tf.abs
all = tf.reduce_all
isfinite = tf.math.is_finite
matmul = tf.matmul
matrix_transpose = tf.linalg.matrix_transpose
max = tf.reduce_max  # may lose a NaN: the core looks for those itself
reshape = tf.reshape
round = tf.round  # half to even
sum = tf.reduce_sum


def arange(start: int, stop: int | None = None, *, dtype: Any, device: Any = None) -> Array:
    """Return the integers from ``start``, or 0, to ``stop``."""
    return tf.range(start, dtype=dtype) if stop is None else tf.range(start, stop, dtype=dtype)


def asarray(x: Any, *, dtype: Any, device: Any = None) -> Array:
    """Return numbers, or an array of the type, as an array."""
    return tf.convert_to_tensor(x, dtype)


def astype(x: Array, dtype: Any) -> Array:
    """Return ``x`` in another type, rounded to nearest even."""
    return tf.cast(x, dtype)


def bitwise_and(x: Array, y: Array | int) -> Array:
    """Return the bits that both have."""
    return tf.bitwise.bitwise_and(x, _like(x, y))


def bitwise_left_shift(x: Array, y: Array | int) -> Array:
    """Return ``x`` with its bits moved up."""
    return tf.bitwise.left_shift(x, _like(x, y))


def bitwise_right_shift(x: Array, y: Array | int) -> Array:
    """Return ``x`` with its bits moved down."""
    return tf.bitwise.right_shift(x, _like(x, y))


def bitwise_xor(x: Array, y: Array | int) -> Array:
    """Return the bits that one of both has."""
    return tf.bitwise.bitwise_xor(x, _like(x, y))


def clip(x: Array, low: float, high: float) -> Array:
    """Return ``x`` with its elements moved into a range; NaN stays."""
    return where(x < low, low, where(x > high, high, x))


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Return the arrays one after another."""
    return tf.concat(arrays, axis)


def full(shape: Sequence[int], value: float, *, dtype: Any, device: Any = None) -> Array:
    """Return an array of one value."""
    return tf.fill(shape, tf.constant(value, dtype))


def ones(shape: Sequence[int], *, dtype: Any, device: Any = None) -> Array:
    """Return an array of ones."""
    return tf.ones(shape, dtype)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Return ``x`` with its axes in another order."""
    return tf.transpose(x, axes)


def stack(arrays: Sequence[Array], *, axis: int = 0) -> Array:
    """Return arrays along a new axis."""
    return tf.stack(arrays, axis)


def take(x: Array, indices: Array) -> Array:
    """Return elements of an array of one axis."""
    return tf.gather(x, indices)


def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    """Return elements of ``x`` where the condition holds, else of ``y``; one of them may be a Python number."""
    return tf.where(condition, _like(y, x), _like(x, y))


def zeros(shape: Sequence[int], *, dtype: Any, device: Any = None) -> Array:
    """Return an array of zeros."""
    return tf.zeros(shape, dtype)


def _like(x: Any, y: Any) -> Array:
    """Return ``y``, a Python number in the type of the array ``x``."""
    return tf.constant(y, x.dtype) if isinstance(y, int | float) else y
