"""Models in Keras, in its functional style, trained by ``train_on_batch`` and asked by ``predict_on_batch``."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cost.architectures import ARCHITECTURES, classes, input_shape
from smh.backends import tensorflow as smh

Array = Any
layers = keras.layers


class _Layers:
    """The layers of Keras."""

    def conv(self, name: str, x: Array, channels: int, kernel: int, stride: int = 1, *, bias: bool = False) -> Array:
        return layers.Conv2D(channels, kernel, stride, padding="same", use_bias=bias, name=name)(x)

    def depthwise(self, name: str, x: Array, kernel: int, stride: int = 1) -> Array:
        return layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=name)(x)

    def norm(self, name: str, x: Array) -> Array:
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    def dense(self, name: str, x: Array, units: int) -> Array:
        return layers.Dense(units, name=name)(x)

    def relu(self, x: Array) -> Array:
        return keras.ops.relu(x)

    def sigmoid(self, x: Array) -> Array:
        return keras.ops.sigmoid(x)

    def pool(self, x: Array) -> Array:
        return layers.MaxPooling2D(3, 2, padding="same")(x)

    def mean(self, x: Array) -> Array:
        return layers.GlobalAveragePooling2D(keepdims=True)(x)

    def flatten(self, x: Array) -> Array:
        return layers.Flatten()(x)


def make(model: str, size: int) -> keras.Model:
    """Return a model with the same initial values every time."""
    keras.utils.set_random_seed(0)
    x = keras.Input(input_shape(model, size))
    return keras.Model(x, ARCHITECTURES[model](_Layers(), x, size))


def compress(model: keras.Model, ratio: float, arithmetic: str, residency: str = "full") -> keras.Model:
    """Return a compressed copy."""
    return smh.compress(model, ratio=ratio, arithmetic=arithmetic, residency=residency)


def plan_of(model: keras.Model) -> smh.Plan:
    """Return the plan of a compressed model."""
    return smh.plan_of(model)


def inputs(model: str, size: int, batch: int) -> tuple[Array, Array]:
    """Return a batch of random images, or rows, and labels."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, *input_shape(model, size)), dtype=np.float32)
    return tf.constant(x), tf.constant(rng.integers(classes(model, size), size=batch))


def train(mode: str, model: keras.Model, x: Array, y: Array) -> Callable[[], Any]:
    """Return a training step: forward, backward, and plain gradient descent."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=mode == "xla")
    return lambda: model.train_on_batch(x, y)


def infer(mode: str, model: keras.Model, x: Array) -> Callable[[], Any]:
    """Return a forward pass."""
    if mode == "eager":
        return lambda: model(x, training=False)
    model.compile(jit_compile=mode == "xla")
    return lambda: model.predict_on_batch(x)


def save(path: str, model: keras.Model) -> None:
    """Write a model as it is."""
    model.save(path)


def load(path: str) -> keras.Model:
    """Read what :func:`save` wrote."""
    return keras.saving.load_model(path)
