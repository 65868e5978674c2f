"""Frozen layers keep their weights, bit for bit, or freezing them is refused."""

import contextlib

import numpy as np
import pytest

import smh as any_smh

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
layers = keras.layers
X, Y = np.ones((8, 6), np.float32), np.zeros((8, 3), np.float32)


def compressed():
    keras.utils.set_random_seed(7)
    encoder = keras.Sequential([keras.Input((6,)), layers.Dense(20, name="a"), layers.Dense(20, name="b")], name="e")
    model = keras.Sequential([keras.Input((6,)), encoder, layers.BatchNormalization(), layers.Dense(3, name="c")])
    return smh.compress(model, ratio=0.3)


def train(model):
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)


FREEZE_SOME = {
    "a layer": lambda m: setattr(m.get_layer("e").get_layer("a"), "trainable", False),
    "a model within": lambda m: setattr(m.get_layer("e"), "trainable", False),
    "all but one": lambda m: [setattr(layer, "trainable", layer.name == "c") for layer in m.layers],
}
USES = {
    "trainable_variables": lambda m: m.trainable_variables,
    "trainable_weights": lambda m: m.trainable_weights,
    "a call in training": lambda m: m(X, training=True),
    "a call within another": lambda m: keras.Sequential([keras.Input((6,)), m])(X, training=True),
    "fit": train,
}


@pytest.mark.parametrize("freeze", FREEZE_SOME)
def test_freezing_some_of_the_layers_of_a_pool_is_refused(freeze):
    model = compressed()
    digest = smh.digest(model)
    FREEZE_SOME[freeze](model)
    for use in USES.values():
        with pytest.raises(any_smh.VariableError, match="freeze layers before smh.compress"):
            use(model)
    assert smh.digest(model) == digest
    assert model(X).shape == (8, 3)
    model.trainable = False
    model.trainable = True
    assert len(model.trainable_variables) == len(compressed().trainable_variables)


FREEZE_ALL = {
    "the model": lambda m: setattr(m, "trainable", False),
    "all layers": lambda m: [setattr(layer, "trainable", False) for layer in m.layers],
    "all but the norm": lambda m: [setattr(m.get_layer(name), "trainable", False) for name in ("e", "c")],
}


@pytest.mark.parametrize("freeze", FREEZE_ALL)
def test_all_frozen_keep_their_bits_and_can_be_trained_again(freeze, tmp_path):
    model = compressed()
    digest, count = smh.digest(model), len(model.trainable_variables)
    FREEZE_ALL[freeze](model)
    outer = keras.Sequential([keras.Input((6,)), model, layers.Dense(3)])
    train(outer)
    assert smh.digest(model) == digest
    pool = {id(x) for x in model.smh_pool.variables}
    for m in (model, outer):
        assert not pool & {id(x) for x in m.trainable_variables}
        assert pool <= {id(x) for x in m.non_trainable_variables}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    for m in (model, loaded):
        m.trainable = False  # Keras passes on what differs only
        m.trainable = True
        assert len(m.trainable_variables) == count
        train(m)
        assert smh.digest(m) != digest


def test_frozen_before_is_kept_as_it_was():
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(20, name="a"), layers.Dense(20), layers.Dense(3)])
    plain.layers[0].trainable = False
    before = plain.layers[0].get_weights()
    model = smh.compress(plain, ratio=0.3)
    train(model)
    for x, y in zip(model.get_layer("a").get_weights(), before, strict=True):
        assert x.tobytes() == y.tobytes()
