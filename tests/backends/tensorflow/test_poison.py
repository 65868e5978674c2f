"""Eager passes of Keras models raise where variables are poisoned; graphs keep NaN, and what writes names them."""

import contextlib

import numpy as np
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import smh  # noqa: E402

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


def poisoned_model(residency, name):
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(6, name="b")])
    model = smh.compress(plain, ratio=0.8, residency=residency)
    assert np.isfinite(model(X).numpy()).all()
    variable = model.smh_source.variables[name]
    x = np.array(variable.numpy())
    x.reshape(-1)[-1] = np.nan
    variable.assign(x)
    return model


@pytest.mark.parametrize("name", ["pool/right", "scale/b/kernel"])
@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_eager_passes_raise_and_graphs_do_not(residency, name, tmp_path):
    model = poisoned_model(residency, name)
    match = f"training has diverged: '{name}' .*learning rate is too high"
    for use in (lambda: model(X), lambda: smh.digest(model), lambda: smh.save(tmp_path / "m", model)):
        with pytest.raises(smh.VariableError, match=match):
            use()
    with tf.GradientTape(), pytest.raises(smh.VariableError, match=match):
        model(X)
    with pytest.warns(UserWarning, match=match):
        smh.report(model)
    assert np.isnan(tf.function(model, autograph=False)(X).numpy()).any()


def test_training_without_graphs_stops():
    model = poisoned_model("full", "pool/left")
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(smh.VariableError, match="'pool/left'"):
        model.fit(X, X, verbose=0)
