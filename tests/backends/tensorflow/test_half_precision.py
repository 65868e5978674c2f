"""Keras models with bfloat16 or float16 variables: float32 weights, rounded once to the type of the variable."""

import contextlib

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh_tf  # noqa: E402


def make(dtype):
    keras.utils.set_random_seed(7)
    layers = keras.layers
    return keras.Sequential([keras.Input((20,)), layers.Dense(30, name="a", dtype=dtype), layers.Dense(10, name="b")])


@pytest.mark.parametrize(("residency", "dtype"), [("full", "bfloat16"), ("cached", "float16"), ("layer", "bfloat16")])
def test_weights_are_rounded(tmp_path, residency, dtype):
    plain = make(dtype)
    model = smh_tf.compress(plain, ratio=0.5, residency=residency)
    plan = smh_tf.plan_of(model)
    variables = {name: x.numpy() for name, x in model.smh_source.variables.items()}
    assert {x.dtype for x in variables.values()} == {np.dtype("float32")}
    weights = smh.materialize(plan, variables)
    kernel = model.get_layer("a").kernel
    rounded = weights["a/kernel"].astype(kernel.value.dtype.as_numpy_dtype)
    for found in (kernel.value, smh_tf.materialize(model).get_layer("a").kernel.value):
        assert found.dtype == dtype
        assert np.array_equal(found.numpy().view(np.uint16), rounded.view(np.uint16))
    assert_same_bits(model.get_layer("b").kernel.value.numpy(), weights["b/kernel"], "b/kernel")
    cotangent = tf.cast(tf.random.stateless_normal((20, 30), (1, 2)), dtype)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(model.get_layer("a").kernel.value * cotangent, "float32"))
        return tape.gradient(loss, [x.value for x in model.smh_source.variables.values()])

    expected = smh.vjp(plan, variables, {"a/kernel": cotangent.numpy().astype(np.float32)})
    for run in (gradients, tf.function(gradients)):
        for found, (name, x) in zip(run(), expected.items(), strict=True):
            assert_same_bits(found.numpy(), x, name)
    digest = smh_tf.save(tmp_path / "x", model)
    loaded = smh_tf.load(tmp_path / "x", make(dtype))
    assert digest == smh.digest(plan, variables) == smh_tf.digest(loaded)
    assert loaded.get_layer("a").kernel.value.dtype == dtype


def test_models_train_and_fit():
    x, y = np.ones((8, 20), dtype=np.float32), np.ones((8, 10), dtype=np.float32)
    model = smh_tf.compress(make("bfloat16"), ratio=0.5, scale="match", optimizer="adam")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert smh.fit(make("float16"), ratio=0.9)[1].error < 0.5


def test_a_model_around_a_compressed_one_says_where_it_is():
    inner = smh_tf.compress(make("float32"), ratio=0.5)
    inputs = keras.Input((20,))
    outer = keras.Model(inputs, inner(inputs))
    for call in (smh.digest, smh.report, smh.materialize, lambda model: smh.save("/nowhere", model)):
        with pytest.raises(smh.PlanError, match=r"has compressed models in it: 'sequential.*model.get_layer\('seq"):
            call(outer)
    assert smh.digest(outer.get_layer(inner.name)) == smh.digest(inner)
