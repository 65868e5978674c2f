"""The rate in Keras: value and gradients, in graphs, and ``fit`` towards small files."""

import contextlib

import numpy as np
import pytest

from tests.backends.rates import OPTIONS, STEPS, WEIGHT, assert_gradients, data, packed_bits

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


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate(keras.Sequential([keras.Input((20,)), keras.layers.Dense(30)]))
