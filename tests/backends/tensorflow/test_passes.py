"""How often the weights of Keras models are built, however a model is entered, and that they are never stale."""

import contextlib

import numpy as np
import pytest

import smh as any_smh
from conformance.bits import assert_same_bits

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh  # noqa: E402
from smh.backends.tensorflow import derivatives  # noqa: E402
from smh.core import generate  # noqa: E402

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


@pytest.fixture
def builds(monkeypatch):
    """Return a list of the names that were built, one item for each time."""
    found, materialize = [], generate.materialize

    def counted(kernels, plan, variables, names=None):
        found.append(tuple(names))
        return materialize(kernels, plan, variables, names)

    monkeypatch.setattr(derivatives.generate, "materialize", counted)
    return found


@pytest.fixture
def model():
    keras.utils.set_random_seed(7)
    dense = keras.layers.Dense
    encoder = keras.Sequential([keras.Input((6,)), dense(20, "tanh"), dense(6)], name="encoder")
    return smh.compress(keras.Sequential([keras.Input((6,)), encoder, dense(6)]), ratio=0.5)


WAYS = {
    "model": lambda m: m(X),
    "inner": lambda m: m(X),
    "encoder": lambda m: m.layers[0](X),
    "layer": lambda m: m.layers[1](X),
}


@pytest.mark.parametrize("residency", ["full", "cached"])
@pytest.mark.parametrize("way", WAYS)
def test_one_build_however_a_model_is_entered(builds, model, residency, way):
    expected = WAYS["model" if way == "inner" else way](_outer(smh.materialize(model)))
    model.residency = residency
    builds.clear()
    y = WAYS[way](model)
    assert len(builds) == 1, builds
    assert_same_bits(y.numpy(), expected.numpy())
    if (way, residency) == ("encoder", "full"):
        assert len(builds[0]) == 2  # what the part needs, no more


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_built_builds_once_and_is_never_stale(builds, model, residency):
    expected = smh.materialize(model)(X)
    model.residency = residency
    encoder, decoder = model.layers
    builds.clear()
    with any_smh.built(model):
        for _ in range(3):
            assert_same_bits(decoder(encoder(X)).numpy(), model(X).numpy())
        assert_same_bits(model(X).numpy(), expected.numpy())
        assert len(builds) == 1
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(X) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        assert len(builds) == 1
        keras.optimizers.SGD(0.1).apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        y = model(X)
        assert len(builds) == 2
        assert tf.function(lambda: model(X))().shape == y.shape  # graphs build their own
    assert_same_bits(y.numpy(), smh.materialize(model)(X).numpy())
    builds.clear()
    model(X)
    assert bool(builds) == (residency != "cached")


def test_gradients_within_built_are_those_of_a_pass(model):
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(X) ** 2)
        return [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]

    expected = gradients()
    with smh.built(model):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


def _outer(plain):
    """Return a plain model that has its layers where a compressed one has them."""
    return plain


def test_a_weight_alone_in_a_function_has_the_numbers_and_gradients_of_its_layer(model):
    """As in ``tf.tensordot``, which takes a variable for a tensor."""

    @tf.function
    def loss(layer, x):
        return tf.reduce_sum(layer(x) ** 2)

    def own(x):
        return tf.tensordot(x, model.layers[1].kernel, 1) + model.layers[1].bias

    results = []
    for layer in (own, model.layers[1]):
        with tf.GradientTape() as tape:
            value = loss(layer, tf.constant(X))
        gradients = tape.gradient(value, model.smh_pool.trainable_variables)
        results.append([value, *(g for g in gradients if g is not None)])
    assert len(results[0]) == len(results[1]) > 2
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
