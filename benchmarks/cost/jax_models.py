"""Models in JAX: parameters and statistics as dicts, and one compiled function for a step and for a forward pass."""

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cost.architectures import ARCHITECTURES, classes, input_shape
from smh.backends import jax as smh

Array = Any
RATE, MOMENTUM, EPSILON = 0.01, 0.9, 1e-5


@dataclass(frozen=True)
class Model:
    """A model by name and size, with its parameters, compressed or not, and the statistics of batch normalisation."""

    name: str
    size: int
    params: Any
    statistics: dict[str, Array]


class _Layers:
    """The layers of JAX, with parameters that are given, or made where they are missing."""

    def __init__(self, params: dict[str, Array], statistics: dict[str, Array], *, training: bool) -> None:
        self.params, self.statistics, self.training = params, statistics, training
        self.moved: dict[str, Array] = {}
        self._rng = np.random.default_rng(0)

    def conv(self, name: str, x: Array, channels: int, kernel: int, stride: int = 1, *, bias: bool = False) -> Array:
        y = self._convolve(x, self._weight(name, kernel, kernel, x.shape[-1], channels), stride, 1)
        return y + self._vector(f"{name}/bias", channels) if bias else y

    def depthwise(self, name: str, x: Array, kernel: int, stride: int = 1) -> Array:
        channels = x.shape[-1]
        return self._convolve(x, self._weight(name, kernel, kernel, 1, channels), stride, channels)

    def norm(self, name: str, x: Array) -> Array:
        channels = x.shape[-1]
        gain, bias = self._vector(f"{name}/gain", channels, 1.0), self._vector(f"{name}/bias", channels)
        mean = self._statistic(f"{name}/mean", channels, 0.0)
        var = self._statistic(f"{name}/var", channels, 1.0)
        if self.training:
            old = {f"{name}/mean": mean, f"{name}/var": var}
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            new = {f"{name}/mean": mean, f"{name}/var": var}
            self.moved |= {key: MOMENTUM * old[key] + (1 - MOMENTUM) * new[key] for key in old}
        return (x - mean) * (lax.rsqrt(var + EPSILON) * gain) + bias

    def dense(self, name: str, x: Array, units: int) -> Array:
        return x @ self._weight(name, x.shape[-1], units) + self._vector(f"{name}/bias", units)

    def relu(self, x: Array) -> Array:
        return jax.nn.relu(x)

    def sigmoid(self, x: Array) -> Array:
        return jax.nn.sigmoid(x)

    def pool(self, x: Array) -> Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), _around(3, (0, 1, 1, 0)))

    def mean(self, x: Array) -> Array:
        return jnp.mean(x, (1, 2), keepdims=True)

    def flatten(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def _convolve(self, x: Array, weight: Array, stride: int, groups: int) -> Array:
        around = _around(weight.shape[0], (1, 1))
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, weight, (stride, stride), around, dimension_numbers=names, feature_group_count=groups
        )

    def _weight(self, name: str, *shape: int) -> Array:
        key = f"{name}/kernel"
        if key not in self.params:
            deviation = (2 / np.prod(shape[:-1])) ** 0.5
            self.params[key] = deviation * self._rng.standard_normal(shape, dtype=np.float32)
        return self.params[key]

    def _vector(self, key: str, length: int, value: float = 0.0) -> Array:
        return self.params.setdefault(key, np.full(length, value, np.float32))

    def _statistic(self, key: str, length: int, value: float) -> Array:
        return self.statistics.setdefault(key, np.full(length, value, np.float32))


def make(model: str, size: int) -> Model:
    """Return a model with the same initial values every time."""
    layers = _Layers({}, {}, training=False)
    one = jax.ShapeDtypeStruct((1, *input_shape(model, size)), jnp.float32)
    jax.eval_shape(lambda x: ARCHITECTURES[model](layers, x, size), one)
    return Model(model, size, *jax.tree.map(jnp.asarray, (layers.params, layers.statistics)))


def compress(model: Model, ratio: float, arithmetic: str, residency: str = "full") -> Model:
    """Return a compressed copy."""
    params = smh.compress(model.params, ratio=ratio, arithmetic=arithmetic, residency=residency)
    return Model(model.name, model.size, params, model.statistics)


def plan_of(model: Model) -> smh.Plan:
    """Return the plan of a compressed model."""
    return smh.plan_of(model.params)


def inputs(model: str, size: int, batch: int) -> tuple[Array, Array]:
    """Return a batch of random images, or rows, and labels."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, *input_shape(model, size)), dtype=np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(classes(model, size), size=batch, dtype=np.int32))


def train(mode: str, model: Model, x: Array, y: Array) -> Callable[[], Any]:
    """Return a training step: forward, backward, and plain gradient descent."""
    # The step takes its arguments for its results; the model that was given stays as it is.
    state = jax.tree.map(jnp.copy, (model.params, model.statistics))

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(_step(model.name, model.size, *state, x, y))

    return run


def infer(mode: str, model: Model, x: Array) -> Callable[[], Any]:
    """Return a forward pass; the weights of ``cached`` are looked up outside of what is compiled."""
    cached = isinstance(model.params, smh.Compressed) and model.params.residency == "cached"

    def run() -> Array:
        params = smh.materialize(model.params) if cached else model.params
        return jax.block_until_ready(_forward(model.name, model.size, params, model.statistics, x))

    return run


def save(path: str, model: Model) -> None:
    """Write a model as it is."""
    with Path(path).open("wb") as file:
        pickle.dump(model, file)


def load(path: str) -> Model:
    """Read what :func:`save` wrote, one array at a time."""
    with Path(path).open("rb") as file:
        found: Model = pickle.load(file)
    return found


def _around(kernel: int, axes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return how much padding is before and after the axes that are marked by a one."""
    return [(kernel // 2 * axis, kernel // 2 * axis) for axis in axes]


def _weights(params: Any) -> dict[str, Array]:
    weights: dict[str, Array] = smh.materialize(params) if isinstance(params, smh.Compressed) else params
    return weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(name: str, size: int, params: Any, statistics: dict[str, Array], x: Array) -> Array:
    return ARCHITECTURES[name](_Layers(_weights(params), statistics, training=False), x, size)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    name: str, size: int, params: Any, statistics: dict[str, Array], x: Array, y: Array
) -> tuple[Any, dict[str, Array]]:
    def loss(params: Any) -> tuple[Array, dict[str, Array]]:
        layers = _Layers(_weights(params), statistics, training=True)
        logits = jax.nn.log_softmax(ARCHITECTURES[name](layers, x, size))
        return -jnp.mean(jnp.take_along_axis(logits, y[:, None], 1)), layers.moved

    gradients, moved = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), moved
