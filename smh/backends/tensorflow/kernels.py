"""TensorFlow's kernels: hash words in int64, sums by segment, and ranges one after another."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from smh.backends.block_kernels import BlockKernels
from smh.backends.tensorflow import namespace as xp
from smh.core.kernels import Array

_MOST_TILES = 16  # keeps graphs small


class TensorflowKernels(BlockKernels):
    """Kernels for tensors on any device, eagerly and in graphs.

    The factors of float32 products are signed integers of at most 8 bits, which TF32 and bfloat16 hold exactly, so no
    precision setting for products changes a bit.
    """

    tile_elements = 1 << 20
    """The minimum number of virtual weights of a hash pool computed at a time."""
    smooth_elements = 1 << 23
    """More than other frameworks: TensorFlow uses memory again, and sums over blocks take longer."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(xp, smooth)

    @property
    def word_dtype(self) -> Any:
        """int64: unsigned tensors have no operators."""
        return tf.int64

    def device(self, x: Array) -> None:
        """Return None: TensorFlow places new tensors."""
        return None

    def alone(self, fn: Callable[..., Any], *arrays: Any) -> Any:
        """Wait for the sums of the previous call, which are among the arrays."""
        if tf.executing_eagerly():
            return fn(*arrays)
        with tf.control_dependencies(tf.nest.flatten(arrays)):
            return fn(*arrays)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in any order: sums of these float64 integers are exact."""
        return tf.math.unsorted_segment_sum(x, segments, size)

    def counts(self, x: Array, size: int) -> Array:
        """Count by index."""
        ones = tf.ones_like(x, tf.int32)
        return tf.cast(tf.math.unsorted_segment_sum(ones, tf.cast(x, tf.int32), size), tf.float32)

    def tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Join a few ranges."""
        return tf.concat(list(self._one_by_one(fn, start, stop)), 0)

    def sum_tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Add a few ranges."""
        return functools.reduce(operator.add, self._one_by_one(fn, start, stop))

    def _one_by_one(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Iterator[Array]:
        """Yield a few ranges. Each waits for the previous range, whose temporaries are then free."""
        step = max(self.tile_elements, -(-(stop - start) // _MOST_TILES))
        before: list[Array] = []
        for first in range(start, stop, step):
            with tf.control_dependencies(before):
                before = [fn(first, min(first + step, stop))]
            yield before[0]
