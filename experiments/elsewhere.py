"""The MLP and the CNN in JAX and in Keras, trained as :mod:`experiments.training` trains them in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smh
from experiments import data
from experiments.errors import ExperimentError
from experiments.settings import Settings
from experiments.training import MOMENTUM

_UNITS = 1000, 1000  # of the MLP
_CHANNELS, _DENSE = (32, 64, 64), 216  # of the CNN
_BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


def run(framework: str, settings: Settings, folder: Path | None = None) -> dict[str, Any]:
    """Train and test a network, dense or with generated weights; return accuracies in percent, and whether it diverged.

    Raises
    ------
    ExperimentError
        For another network, method or framework.
    """
    trainers = {"jax": _jax, "keras": _keras}
    if framework not in trainers or settings.model not in ("mlp", "cnn") or settings.method not in ("dense", "matmul"):
        raise ExperimentError(
            f"only mlp and cnn, dense or matmul, run in {', '.join(trainers)}; got {framework}, {settings}"
        )
    loaded = data.load(settings.data, folder, settings.training, settings.validation)
    sets = {name: getattr(loaded, name) for name in ("training", "validation", "test")}
    arrays = {name: (_array(images.x, settings.model), images.y.numpy()) for name, images in sets.items()}
    loss, predict = trainers[framework](settings, *arrays["training"], loaded.classes)
    found = {f"{name}_accuracy": 100 * float(np.mean(predict(x) == y)) for name, (x, y) in arrays.items()}
    return {**found, "diverged": not np.isfinite(loss), "training_loss": loss if np.isfinite(loss) else None}


def _array(images: torch.Tensor, model: str) -> np.ndarray:
    """Return rows for the MLP, images with channels last for the CNN."""
    return (images.flatten(1) if model == "mlp" else images.movedim(1, -1).contiguous()).numpy()


def _options(s: Settings) -> dict[str, Any]:
    return {"ratio": s.ratio, "optimizer": "sgd" if s.optimizer == "sgd" else "adam", "seed": s.seed}


def _orders(s: Settings, count: int) -> Iterator[np.ndarray]:
    """Iterate over the numbers of the images of each batch, those that PyTorch gets with the same seed."""
    generator = torch.Generator().manual_seed(s.seed)
    for _ in range(s.epochs):
        order = torch.randperm(count, generator=generator).numpy()
        yield from order[: count // s.batch * s.batch].reshape(-1, s.batch)


def _jax(s: Settings, x: np.ndarray, y: np.ndarray, classes: int) -> tuple[float, Any]:
    import jax
    import optax
    from flax import linen

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool) -> Any:
            if s.model == "mlp":
                for units in _UNITS:
                    x = linen.relu(linen.Dense(units)(x))
                return linen.Dense(classes)(x)
            for channels in _CHANNELS:
                x = linen.Conv(channels, (3, 3), strides=2, padding=1, use_bias=False)(x)
                x = linen.relu(linen.BatchNorm(not train, **_BATCH_NORM)(x))
            x = linen.relu(linen.Dense(_DENSE, use_bias=False)(x.reshape(len(x), -1)))
            return linen.Dense(classes)(x)

    model = Network()
    params = dict(model.init(jax.random.key(s.seed), x[:1], train=False))
    averages = {"batch_stats": params.pop("batch_stats", {})}
    if s.method != "dense":
        params = smh.compress(params, **_options(s))
    rate = optax.cosine_decay_schedule(s.lr, s.epochs * (len(x) // s.batch))
    optimizer = optax.sgd(rate, momentum=MOMENTUM) if s.optimizer == "sgd" else optax.adam(rate)
    state = optimizer.init(params)

    def plain(params: Any) -> Any:
        return params if s.method == "dense" else smh.materialize(params)

    def loss_of(params: Any, averages: Any, x: Any, y: Any) -> Any:
        logits, new = model.apply({**plain(params), **averages}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), {**averages, **new}

    @jax.jit
    def step(params: Any, averages: Any, state: Any, x: Any, y: Any) -> Any:
        (loss, averages), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, averages, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), averages, state, loss

    losses = []
    for indices in _orders(s, len(x)):
        params, averages, state, loss = step(params, averages, state, x[indices], y[indices])
        losses.append(loss)
    predict = jax.jit(lambda x: model.apply({**plain(params), **averages}, x, train=False).argmax(1))
    return float(np.mean(losses[-(len(x) // s.batch) :])), lambda x: np.asarray(predict(x))


def _keras(s: Settings, x: np.ndarray, y: np.ndarray, classes: int) -> tuple[float, Any]:
    import keras

    keras.utils.set_random_seed(s.seed)
    layers: list[Any] = [keras.layers.Dense(units, activation="relu") for units in _UNITS]
    if s.model == "cnn":
        layers = []
        for channels in _CHANNELS:
            layers += [keras.layers.ZeroPadding2D(1), keras.layers.Conv2D(channels, 3, strides=2, use_bias=False)]
            layers += [keras.layers.BatchNormalization(**_BATCH_NORM), keras.layers.ReLU()]
        layers += [keras.layers.Flatten(), keras.layers.Dense(_DENSE, activation="relu", use_bias=False)]
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers, keras.layers.Dense(classes)])
    if s.method != "dense":
        model = smh.compress(model, **_options(s))
    rate = keras.optimizers.schedules.CosineDecay(s.lr, s.epochs * (len(x) // s.batch))
    sgd = s.optimizer == "sgd"
    optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM) if sgd else keras.optimizers.Adam(rate)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = np.concatenate(list(_orders(s, len(x))))
    done = model.fit(x[order], y[order], batch_size=s.batch, shuffle=False, verbose=0)
    return float(done.history["loss"][-1]), lambda x: model.predict(x, verbose=0).argmax(1)
