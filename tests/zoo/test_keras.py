"""Networks of keras.applications, from compression over training and files to plain models, bit for bit."""

import contextlib

import numpy as np
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow", reason="the tensorflow backend needs TensorFlow")
keras = pytest.importorskip("keras")

import smh as core  # noqa: E402
from smh import keras as smh  # noqa: E402
from tests.zoo.keras_models import FAMILIES, SHAPE  # noqa: E402
from tests.zoo.learning import assert_keeps_up  # noqa: E402

# Keras's own conversion of variables to arrays, when it writes files
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")

X = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)


def made(name, seed=7):
    keras.utils.set_random_seed(seed)
    return FAMILIES[name]()


def arrays(model):
    return [np.array(v) for v in model.variables]


def assert_same(found, expected, what=""):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=what)


def loss_of(model):
    keras.utils.set_random_seed(3)
    return tf.reduce_mean((model(X, training=True) - 1) ** 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, tmp_path):
    fresh = made(name)
    before = arrays(fresh)
    model = smh.compress(fresh, ratio=0.2)
    plan = smh.plan_of(model)
    weights = core.materialize(plan, {n: v.numpy() for n, v in model.smh_source.variables.items()})
    bits = {x.tobytes() for x in weights.values()}
    plain = smh.materialize(model)
    after = arrays(plain)
    assert sum(x.tobytes() in bits for x in after) == len(weights) > 0
    for i, (x, old) in enumerate(zip(after, before, strict=True)):
        assert x.shape == old.shape
        if x.tobytes() not in bits:
            assert x.tobytes() == old.tobytes(), f"what is kept has changed: {fresh.variables[i].path}"

    y = model(X)
    assert_same(y, plain(X), "outputs of the plain model")
    for residency in ("cached", "layer", "full"):
        model.residency = residency
        assert_same(model(X), y, residency)

    # One step: every variable has a gradient, and the pool moves.
    with tf.GradientTape() as tape:
        loss = loss_of(model)
    gradients = tape.gradient(loss, model.trainable_variables)
    pool = [model.smh_source.variables[f"pool/{name}"] for name in plan.pool.variable_shapes()]
    moved = [v.numpy() for v in pool]
    assert all(g is not None and np.isfinite(g).all() for g in gradients)
    keras.optimizers.SGD(0.1).apply(gradients, model.trainable_variables)
    for variable, old in zip(pool, moved, strict=True):
        assert not np.array_equal(variable.numpy(), old), variable.path
    assert not np.array_equal(model(X), y)

    path = tmp_path / "model.safetensors"
    digest = smh.save(path, model)
    loaded = smh.load(path, made(name, seed=8))
    assert smh.digest(loaded) == digest == smh.digest(model)
    assert_same(loaded(X), model(X), "outputs of the loaded model")
    for x, old in zip(arrays(fresh), before, strict=True):
        assert x.tobytes() == old.tobytes(), "the model that was given has changed"


IMAGES = np.random.default_rng(2).normal(size=(8, *SHAPE)).astype(np.float32)
LABELS = np.arange(8) % 4


def losses_of(model):
    """Return the first and the last loss of a model that learns eight images by heart."""
    keras.utils.set_random_seed(3)
    optimizer, measure = keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = measure(LABELS, model(IMAGES, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(21)]
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_learning_keeps_up_with_the_dense_model(name):
    plain = made(name)
    compressed = smh.compress(plain, ratio=0.5, optimizer="adam")
    assert_keeps_up(losses_of(plain), losses_of(compressed))


def test_wrong_initial_values_show():
    plain = made("resnet")
    compressed = smh.compress(plain, ratio=0.5, optimizer="adam")
    for variable, x in compressed.smh_source.variables.items():
        if variable.startswith("scale/"):
            x.assign(30 * x)
    with pytest.raises(AssertionError, match="the loss starts"):
        assert_keeps_up(losses_of(plain), losses_of(compressed))
