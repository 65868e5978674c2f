"""Eager passes and training of Keras models raise where variables are poisoned; other graphs keep NaN."""

import contextlib

import numpy as np
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import smh  # noqa: E402

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


def plain_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(6, name="b")])


def poisoned_model(residency, name):
    model = smh.compress(plain_model(), ratio=0.8, residency=residency)
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
    with pytest.warns(UserWarning, match=match) as found:
        smh.report(model)
    assert found[0].filename == __file__
    assert np.isnan(tf.function(model, autograph=False)(X).numpy()).any()


OPTIONS = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "compiled": {"jit_compile": True},
    "several steps": {"steps_per_execution": 2},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_training_stops_at_the_step_that_diverges(options):
    model = smh.compress(plain_model(), ratio=0.8)
    model.compile(keras.optimizers.SGD(1e-3), "mse", **OPTIONS[options])
    x = np.repeat(X, 4, axis=0)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(step))
    model.fit(x, x, batch_size=2, verbose=0, callbacks=[watch])
    assert seen
    model.optimizer.learning_rate = 1e38
    steps = len(seen)
    with pytest.raises(smh.VariableError, match="training has diverged: .*'pool/left'.*learning rate is too high"):
        model.fit(x, x, batch_size=2, epochs=20, shuffle=False, verbose=0, callbacks=[watch])
    assert len(seen) <= 2 * steps  # within the first epoch


def test_what_is_not_finite_elsewhere_does_not_stop_training():
    model = smh.compress(plain_model(), ratio=0.8)

    def nothing(_, __):
        return tf.constant(np.nan)

    model.compile(keras.optimizers.SGD(1e-3), "mse", metrics=[nothing])
    model.fit(X, X, verbose=0)
    assert np.isnan(model.train_on_batch(X, X, return_dict=True)["nothing"])
