"""Training steps of compressed Keras models in JAX and TensorFlow, relative to the plain model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Case, Row, steps
from benchmarks.shapes import RESNET34


def measure_step(backend: str, names: Iterable[str], ratios: Iterable[float], rounds: int) -> Iterator[Row]:
    """Iterate over the results of training steps of 32 images."""
    os.environ["KERAS_BACKEND"] = backend
    make, mode = {"jax": (jax_step, "jit"), "tensorflow": (tensorflow_step, "function")}[backend]
    return steps(make, mode, names, ratios, rounds)


def jax_step(name: str, ratio: float | None, **options: Any) -> Case:
    """Return a step of ``jax.jit`` on the variables of a Keras model, with SGD of Optax, momentum 0.9."""
    import jax
    import jax.numpy as jnp
    import optax

    from smh import jax as smh

    model = network(name)
    params = {x.path: jnp.asarray(x.value) for x in model.trainable_variables}
    kept = [x.value for x in model.non_trainable_variables]
    trained: Any = params if ratio is None else smh.compress(params, ratio, **options)
    optimizer = optax.sgd(1e-3, momentum=0.9)
    images, labels = jnp.asarray(inputs(model)), jnp.arange(32) % 10

    def loss(trained: Any) -> Any:
        weights = trained if ratio is None else smh.materialize(trained)
        weights = [weights[x.path] for x in model.trainable_variables]
        logits, _ = model.stateless_call(weights, kept, images, training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(trained: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(trained), state)
        return optax.apply_updates(trained, updates), state

    compiled, now = jax.jit(step), [trained, optimizer.init(trained)]

    def run() -> None:
        now[:] = jax.block_until_ready(compiled(*now))

    return lambda: run


def tensorflow_step(name: str, ratio: float | None, **options: Any) -> Case:
    """Return a step of Keras' ``train_on_batch``, a graph of TensorFlow, with SGD, momentum 0.9."""
    import keras

    from smh import keras as smh

    model = network(name)
    x, labels = inputs(model), np.arange(32) % 10
    if ratio is not None:
        model = smh.compress(model, ratio, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, jit_compile=False)
    return lambda: lambda: model.train_on_batch(x, labels)


def inputs(model: Any) -> np.ndarray:
    """Return 32 images for a model."""
    return np.random.default_rng(0).standard_normal((32, *model.input_shape[1:]), dtype=np.float32)


def network(name: str) -> Any:
    """Return ResNet-34 or the MLP of experiments/, for images of the size at the end of the name."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    kind, size = name.split()[0], int(name.rpartition("x")[2])
    if kind == "mlp":
        hidden = [layers.Dense(1000, activation="relu") for _ in range(2)]
        return keras.Sequential([keras.Input((size, size, 1)), layers.Flatten(), *hidden, layers.Dense(10)])
    if kind != "resnet34":
        raise SystemExit(f"the network must be resnet34 or mlp with this backend; got {kind!r}")
    images = keras.Input((size, size, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(layers.ReLU()(_convolution(images, 64, 7, 2)))
    for channels, blocks in RESNET34:
        for _ in range(blocks):
            stride = 1 if x.shape[-1] == channels else 2
            y = _convolution(layers.ReLU()(_convolution(x, channels, 3, stride)), channels)
            x = layers.ReLU()(layers.Add()([y, x if stride == 1 else _convolution(x, channels, 1, 2)]))
    return keras.Model(images, layers.Dense(1000)(layers.GlobalAveragePooling2D()(x)))


def _convolution(x: Any, channels: int, window: int = 3, stride: int = 1) -> Any:
    """Return a convolution with batch norm."""
    from keras import layers

    x = layers.Conv2D(channels, window, stride, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)
