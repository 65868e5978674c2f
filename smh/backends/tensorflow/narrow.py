"""TensorFlow's kernels by device: without float64 if there is a TPU, or on request."""

from __future__ import annotations

import tensorflow as tf

from smh.backends.float64 import float64_allowed
from smh.backends.tensorflow.kernels import TensorflowKernels
from smh.core.kernels import Array
from smh.core.narrow import NarrowKernels


class NarrowTensorflowKernels(NarrowKernels, TensorflowKernels):
    """Kernels for tensors on any device, eagerly and in graphs."""

    def bits(self, x: Array) -> Array:
        """Return the bits of float32 numbers, int32."""
        return tf.bitcast(x, tf.int32)

    def of_bits(self, x: Array) -> Array:
        """Return the float32 numbers with these bits."""
        return tf.bitcast(x, tf.float32)


KERNELS, NARROW = TensorflowKernels(), NarrowTensorflowKernels()
_SMOOTH, SINGLE = TensorflowKernels(smooth=True), NarrowTensorflowKernels(smooth=True)


def kernels(smooth: bool = False) -> TensorflowKernels:
    """Return the kernels for the available devices."""
    if float64_allowed() and not tf.config.list_logical_devices("TPU"):
        return _SMOOTH if smooth else KERNELS
    return SINGLE if smooth else NARROW
