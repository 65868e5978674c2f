"""The part of the array API that the core calls, on TensorFlow: no more, and nothing global is switched on.

TensorFlow brings no namespace of its own. Arguments and results are those of the array API; ``device`` is not used,
because TensorFlow places what it makes beside what it meets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from smh.v2.core.kernels import Array

float32 = tf.float32
float64 = tf.float64
int64 = tf.int64
uint32 = tf.uint32
inf = math.inf
nan = math.nan

abs = tf.abs
any = tf.reduce_any
matmul = tf.matmul
matrix_transpose = tf.linalg.matrix_transpose
ones_like = tf.ones_like
reshape = tf.reshape
round = tf.round  # half to even
stack = tf.stack
sum = tf.reduce_sum
unstack = tf.unstack


def arange(start: int, stop: int | None = None, *, dtype: Any, device: Any = None) -> Array:
    """Return the integers from ``start``, or 0, to ``stop``."""
    return tf.range(start, dtype=dtype) if stop is None else tf.range(start, stop, dtype=dtype)


def asarray(values: Sequence[int], *, dtype: Any, device: Any = None) -> Array:
    """Return an array of given values."""
    return tf.constant(values, dtype)


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


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Return the arrays one after another."""
    return tf.concat(arrays, axis)


def full(shape: Sequence[int], value: float, *, dtype: Any, device: Any = None) -> Array:
    """Return an array of one value."""
    return tf.fill(shape, tf.constant(value, dtype))


def max(x: Array, *, axis: int, keepdims: bool = False) -> Array:
    """Return the largest elements along an axis; NaN where there is one."""
    if _has_gpu():
        return _or_nan(tf.reduce_max(x, axis, keepdims), x, axis, keepdims)
    top, low, far = _extreme_bits(x, axis, keepdims)
    largest = tf.bitcast(tf.where(top < 0, low, top), x.dtype)
    return tf.where(tf.math.is_nan(tf.bitcast(far, x.dtype)), tf.constant(nan, x.dtype), largest)


def min(x: Array, *, axis: int, keepdims: bool = False) -> Array:
    """Return the smallest elements along an axis; NaN where there is one."""
    if _has_gpu():
        return _or_nan(tf.reduce_min(x, axis, keepdims), x, axis, keepdims)
    top, low, far = _extreme_bits(x, axis, keepdims)
    smallest = tf.bitcast(tf.where(far < 0, far, low), x.dtype)
    return tf.where(tf.math.is_nan(tf.bitcast(top, x.dtype)), tf.constant(nan, x.dtype), smallest)


def maximum(x: Array, y: Array) -> Array:
    """Return the larger element of each pair; NaN where one of both is."""
    return tf.where(tf.math.is_nan(x), x, tf.where(tf.math.is_nan(y), y, tf.maximum(x, y)))


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Return ``x`` with its axes in another order."""
    return tf.transpose(x, axes)


def searchsorted(x: Array, values: Array, *, side: str = "left") -> Array:
    """Return where in ``x``, which is in order, the values belong."""
    return tf.searchsorted(x, values, side, tf.int64)


def take(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Return elements along an axis."""
    return tf.gather(x, indices, axis=axis)


def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    """Return elements of ``x`` where the condition holds, else of ``y``; one of them may be a Python number."""
    return tf.where(condition, _like(y, x), _like(x, y))


def zeros(shape: Sequence[int], *, dtype: Any, device: Any = None) -> Array:
    """Return an array of zeros."""
    return tf.zeros(shape, dtype)


_INTEGERS = {tf.float32: (tf.int32, tf.uint32), tf.float64: (tf.int64, tf.uint64)}


def _extreme_bits(x: Array, axis: int, keepdims: bool) -> tuple[Array, Array, Array]:
    """Return the largest and the smallest bits along an axis, and those farthest below zero, all as signed integers.

    Extremes of floats lose NaN in XLA and are slow in columns; those of integers cannot lose a NaN, whose bits lie
    beyond infinity's. The farthest below zero are the largest as unsigned integers, if any float there has a sign.
    Where the largest and the smallest element are both asked for, a graph computes each of the three once.
    """
    signed, unsigned = _INTEGERS[x.dtype]
    bits = tf.bitcast(x, signed)
    far = tf.reduce_max(tf.bitcast(x, unsigned), axis, keepdims)
    return tf.reduce_max(bits, axis, keepdims), tf.reduce_min(bits, axis, keepdims), tf.bitcast(far, signed)


def _or_nan(extreme: Array, x: Array, axis: int, keepdims: bool) -> Array:
    """Return NaN in the place of extremes of lines that hold one."""
    lost = tf.reduce_any(tf.math.is_nan(x), axis, keepdims)
    return tf.where(lost, tf.constant(nan, x.dtype), extreme)


def _has_gpu() -> bool:
    """Say whether the host is not the only device: elsewhere TensorFlow has no extremes of integers."""
    return len(tf.config.list_logical_devices()) > 1


def _like(x: Any, y: Any) -> Array:
    """Return ``y``, a Python number in the type of the array ``x``."""
    return tf.constant(y, x.dtype) if isinstance(y, int | float) else y
