"""The rate in Keras: value and gradients, in graphs, and ``fit`` towards small files."""

import contextlib

import numpy as np
import pytest

from tests.backends.rates import (
    OPTIONS,
    STEPS,
    WEIGHT,
    WIDTHS,
    assert_gradients,
    assert_kept_gradient,
    data,
    kept_bits_in,
    kept_values,
    packed_bits,
)

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402


def compressed(**options):
    return smh.compress(keras.Sequential([keras.Input((20,)), keras.layers.Dense(30)]), **(OPTIONS | options))


def variables_of(model):
    return {name: np.asarray(x) for name, x in model.smh_source.variables.items()}


@pytest.mark.parametrize("options", [None, {}, {"jit_compile": True}], ids=["eager", "function", "xla"])
def test_value_and_gradients(options):
    model = compressed()
    variables = model.smh_source.variables

    def run():
        with tf.GradientTape() as tape:
            rate = smh.rate(model)
        return rate, tape.gradient(rate, [variables["pool/left"].value, variables["pool/right"].value])

    rate, gradients = (run if options is None else tf.function(run, **options))()
    assert (rate.dtype, rate.shape) == (tf.float32, ())
    assert float(rate) == pytest.approx(packed_bits(smh.plan_of(model), variables_of(model)), rel=1e-4)
    named = dict(zip(("pool/left", "pool/right"), gradients, strict=True))
    assert_gradients(smh.plan_of(model), variables_of(model), named)


def test_fit_with_the_rate_in_the_loss_takes_fewer_bits():
    x, y = data()
    found = {}
    for weight in (0.0, WEIGHT):
        model = compressed()

        def loss(y_true, y_pred, model=model, weight=weight):
            return keras.losses.mean_squared_error(y_true, y_pred) + weight * smh.rate(model)

        model.compile(keras.optimizers.Adam(0.03), loss)
        model.fit(x, y, batch_size=len(x), epochs=STEPS, verbose=0)
        found[weight] = packed_bits(smh.plan_of(model), variables_of(model))
    assert found[WEIGHT] < 0.7 * found[0.0]


def network(dtype="float32"):
    """Return a compressed network with batch norms, and with dropout, whose seed is an integer."""
    layers = [keras.Input((16, 16, 3))]
    for layer, width in enumerate(WIDTHS):
        layers.append(keras.layers.Conv2D(width, 3, name=f"conv{layer}", dtype=dtype))
        layers.append(keras.layers.BatchNormalization(name=f"norm{layer}", dtype=dtype))
        layers.append(keras.layers.Dropout(0.1, dtype=dtype))
    model = smh.compress(keras.Sequential(layers), **OPTIONS)
    for layer, values in kept_values().items():
        model.get_layer(f"norm{layer}").set_weights(values)
    return model


def kept_rate(model, bits):
    return smh.rate(model, kept_bits=bits) - smh.rate(model)


@pytest.mark.parametrize("options", [None, {}, {"jit_compile": True}], ids=["eager", "function", "xla"])
@pytest.mark.parametrize("bits", [8, 16])
def test_kept_weights_count_as_in_a_packed_file(tmp_path, options, bits):
    model = network()
    weights = {x.path: x for x in model.trainable_weights if "norm" in x.path}

    def run():
        with tf.GradientTape() as tape:
            rate = kept_rate(model, bits)
        return rate, tape.gradient(rate, {name: x.value for name, x in weights.items()})

    rate, gradients = (run if options is None else tf.function(run, **options))()
    assert (rate.dtype, rate.shape) == (tf.float32, ())
    smh.save(tmp_path / "model", model, packed=True, kept_bits=bits)
    assert float(rate) == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
    rounded = smh.load(tmp_path / "model").rounded
    for name in ("norm1/beta", "norm2/beta"):
        assert_kept_gradient(weights[name], rounded[name].exponent, rounded[name].bits, gradients[name])
    assert not np.any(gradients["norm1/gamma"])  # which has no negative values
    assert gradients["norm0/beta"] is None  # 16 values, which are not coded


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kept_weights_in_half_precision(tmp_path, dtype):
    model = network(dtype)
    beta = model.get_layer("norm1").beta
    with tf.GradientTape() as tape:
        rate = kept_rate(model, 8)
    smh.save(tmp_path / "model", model, packed=True, kept_bits=8)
    assert float(rate) == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
    assert tf.math.count_nonzero(tape.gradient(rate, beta.value)) > 100


def test_fit_with_the_rate_in_the_loss_makes_kept_weights_small(tmp_path):
    x, found = np.zeros((4, 16, 16, 3), np.float32), {}
    for weight in (0.0, 0.1):
        model = network()
        before = [(w, np.asarray(w)) for w in model.trainable_weights if "norm" in w.path]

        def loss(y_true, y_pred, model=model, weight=weight, before=before):
            moved = sum(tf.reduce_sum((w.value - x) ** 2) for w, x in before)
            return tf.reduce_mean(y_pred**2) + moved + weight * smh.rate(model, kept_bits=8)

        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(x, x, epochs=STEPS, verbose=0)
        smh.save(tmp_path / "model", model, packed=True, kept_bits=8)
        found[weight] = kept_bits_in(tmp_path / "model")
    assert found[0.1] < 0.9 * found[0.0]


def test_a_kept_weight_that_is_not_finite_has_no_rate():
    model = network()
    model.get_layer("norm0").moving_variance.assign([np.nan] * WIDTHS[0])
    assert tf.math.is_nan(smh.rate(model, kept_bits=8))
    assert tf.math.is_finite(smh.rate(model))


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="kept_bits must be 8 or 16, or None to store kept tensors as they are; got 4"):
        smh.rate(compressed(), kept_bits=4)
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate(keras.Sequential([keras.Input((20,)), keras.layers.Dense(30)]))
