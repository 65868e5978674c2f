"""Fast gradients of TensorFlow: close to the exact ones, in float32, below weights whose bits do not change."""

import contextlib

import numpy as np
import pytest

from conformance.bits import assert_same_bits
from tests.backends.fast_gradients import PLANS, assert_close, example

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from smh.backends import tensorflow as smh  # noqa: E402
from smh.backends.tensorflow import derivatives  # noqa: E402
from smh.errors import PlanError  # noqa: E402


def gradients_of(plan, variables, cotangents, fast):
    with tf.GradientTape() as tape:
        tape.watch(variables)
        weights = derivatives.build(plan, tuple(cotangents), *variables, fast=fast)
    return tape.gradient(weights, variables, list(cotangents.values()))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_fast_gradients_are_close_to_exact_ones_and_need_no_float64(plan):
    variables, cotangents, exact = example(plan)
    flat = [tf.constant(x) for x in variables.values()]
    given = {name: tf.constant(g) for name, g in cotangents.items()}
    found = gradients_of(plan, flat, given, fast=True)
    assert_close({name: x.numpy() for name, x in zip(variables, found, strict=True)}, exact)
    for fast in (True, False):
        graph = tf.function(derivatives.gradients, autograph=False)
        nodes = graph.get_concrete_function(plan, tuple(given), *flat, *given.values(), fast=fast).graph.as_graph_def()
        wide = [n for n in nodes.node if n.attr["T"].type == tf.float64.as_datatype_enum]
        assert bool(wide) is not fast, [n.name for n in wide]


def test_second_derivatives():
    plan = PLANS["matmul"]
    variables, cotangents, _ = example(plan)
    flat = [tf.constant(x) for x in variables.values()]
    found = []
    for fast in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(flat)
            total = tf.add_n([tf.reduce_sum(x) for x in gradients_of(plan, flat, cotangents, fast)])
        second = tape.gradient(total, flat, unconnected_gradients="zero")
        found.append({name: x.numpy() for name, x in zip(variables, second, strict=True)})
    assert_close(*found)


def models(residency="full"):
    keras.utils.set_random_seed(7)
    plain = keras.Sequential([keras.Input((20,)), keras.layers.Dense(30, "relu"), keras.layers.Dense(7)])
    exact = smh.compress(plain, ratio=0.3)
    fast = smh.compress(plain, plan=smh.plan_of(exact), gradients="fast", residency=residency)
    return exact, fast, np.linspace(-1, 1, 100, dtype=np.float32).reshape(5, 20)


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_models(residency, how):
    exact, fast, x = models(residency)

    def gradients(model):
        def step():
            with tf.GradientTape() as tape:
                y = model(x)
                loss = tf.reduce_sum(y**2)
            return y, tape.gradient(loss, model.trainable_variables)

        run = step if how == "eager" else tf.function(step, jit_compile=how == "xla")
        y, found = run()
        return y.numpy(), {v.path: g.numpy() for v, g in zip(model.trainable_variables, found, strict=True)}

    (y, expected), (z, found) = gradients(exact), gradients(fast)
    np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-6)
    assert_close(dict(zip(expected, found.values(), strict=True)), expected)
    for a, b in zip(smh.materialize(fast).get_weights(), smh.materialize(exact).get_weights(), strict=True):
        assert_same_bits(a, b)


def test_fit_and_a_choice_that_changes():
    exact, fast, x = models()
    for model in (exact, fast):
        model.compile("sgd", "mse")
        model.fit(x, np.ones((5, 7), np.float32), epochs=1, verbose=0)
    pairs = zip(exact.trainable_variables, fast.trainable_variables, strict=True)
    assert_close(*(dict(enumerate(v.numpy() for v in of)) for of in reversed(list(zip(*pairs, strict=True)))))
    assert fast.gradients == "fast"
    assert "gradients 'fast'" in str(smh.report(fast))
    assert type(fast).from_config(fast.get_config()).gradients == "fast"
    fast.gradients = "exact"
    assert fast.train_function is None
    with pytest.raises(PlanError, match="gradients must be one of 'exact', 'fast'; got 'quick'"):
        fast.gradients = "quick"
