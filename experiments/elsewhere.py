"""The MLP in JAX and in Keras, trained as :mod:`experiments.training` trains it in PyTorch."""

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

_UNITS = 1000, 1000


def run(framework: str, settings: Settings, folder: Path | None = None) -> dict[str, Any]:
    """Train and test an MLP, dense or with generated weights; return accuracies in percent, and whether it diverged.

    Raises
    ------
    ExperimentError
        For another network, method or framework.
    """
    trainers = {"jax": _jax, "keras": _keras}
    if framework not in trainers or settings.model != "mlp" or settings.method not in ("dense", "matmul"):
        raise ExperimentError(
            f"only the mlp, dense or matmul, runs in {', '.join(trainers)}; got {framework}, {settings}"
        )
    loaded = data.load(settings.data, folder, settings.training, settings.validation)
    sets = {name: getattr(loaded, name) for name in ("training", "validation", "test")}
    arrays = {name: (images.x.flatten(1).numpy(), images.y.numpy()) for name, images in sets.items()}
    loss, predict = trainers[framework](settings, *arrays["training"], loaded.classes)
    found = {f"{name}_accuracy": 100 * float(np.mean(predict(x) == y)) for name, (x, y) in arrays.items()}
    return {**found, "diverged": not np.isfinite(loss), "training_loss": loss if np.isfinite(loss) else None}


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

    model = linen.Sequential(
        [linen.Dense(_UNITS[0]), linen.relu, linen.Dense(_UNITS[1]), linen.relu, linen.Dense(classes)]
    )
    params = model.init(jax.random.key(s.seed), x[:1])
    if s.method != "dense":
        params = smh.compress(params, **_options(s))
    rate = optax.cosine_decay_schedule(s.lr, s.epochs * (len(x) // s.batch))
    optimizer = optax.sgd(rate, momentum=MOMENTUM) if s.optimizer == "sgd" else optax.adam(rate)
    state = optimizer.init(params)

    def plain(params: Any) -> Any:
        return params if s.method == "dense" else smh.materialize(params)

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        logits = model.apply(plain(params), x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for indices in _orders(s, len(x)):
        params, state, loss = step(params, state, x[indices], y[indices])
        losses.append(loss)
    predict = jax.jit(lambda x: model.apply(plain(params), x).argmax(1))
    return float(np.mean(losses[-(len(x) // s.batch) :])), lambda x: np.asarray(predict(x))


def _keras(s: Settings, x: np.ndarray, y: np.ndarray, classes: int) -> tuple[float, Any]:
    import keras

    keras.utils.set_random_seed(s.seed)
    layers = [keras.layers.Dense(units, activation="relu") for units in _UNITS]
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
