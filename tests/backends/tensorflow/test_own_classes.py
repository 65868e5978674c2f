"""A compressed Keras model is of the user's class, trains by its step, and is never trained without its pool."""

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

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
layers = keras.layers
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


class Own(keras.Model):
    """A model with a step, a method, a metric, and an attribute named as what smh calls its own."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.pool = layers.Dense(units, name="hidden")
        self.out = layers.Dense(3, name="out")
        self.error = keras.metrics.Mean(name="error")

    def build(self, shape):
        self.pool.build(shape)
        self.out.build((None, self.units))
        self.built = True

    def call(self, x):
        return self.out(self.encode(x))

    def encode(self, x):
        return keras.ops.tanh(self.pool(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(abs(self.out(self.encode(x)) - y))  # not that of `compile`, and by parts
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.error.update_state(loss)
        return {"error": self.error.result()}


class OwnFunctional(keras.Model):
    def __init__(self, units=8, **kwargs):
        x = keras.Input((6,))
        y = layers.Dense(3, name="out")(layers.Dense(units, name="hidden")(x))
        super().__init__(x, y, **kwargs)
        self.units = units
        self.error = keras.metrics.Mean(name="error")

    def get_config(self):
        return {"units": self.units, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def encode(self, x):
        return self.get_layer("hidden")(x)

    train_step = Own.train_step


OwnFunctional.out = property(lambda self: self.get_layer("out"))


class OwnSequential(keras.Sequential):
    error = None
    units = 8

    def encode(self, x):
        return self.layers[0](x)

    def train_step(self, data):
        return {"error": super().train_step(data)["loss"]}


def own(cls):
    if issubclass(cls, OwnSequential):
        model = cls([keras.Input((6,)), layers.Dense(8, name="hidden"), layers.Dense(3, name="out")])
    else:
        model = cls()
        model(X)
    return model


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


def dense():
    return keras.Sequential([keras.Input((6,)), layers.Dense(20, name="a"), layers.Dense(3, name="b")])


def snapshot(model):
    return [x.numpy().tobytes() for x in model.variables]


@pytest.mark.parametrize("cls", [Own, OwnFunctional, OwnSequential])
def test_the_step_of_the_class_trains_the_pool(cls, tmp_path):
    model = smh.compress(own(cls), ratio=0.4)
    assert isinstance(model, cls)
    assert isinstance(model, smh.Compressed)
    assert model.units == 8
    assert_same_bits(model.encode(X).numpy(), smh.materialize(model).encode(X).numpy())
    before = model.smh_pool.weights[0].numpy()
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    history = model.fit(X, Y, epochs=3, verbose=0).history
    assert list(history) == ["error"]
    assert history["error"][-1] < history["error"][0]
    assert (model.smh_pool.weights[0].numpy() != before).any()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={cls.__name__: cls})
    assert isinstance(again, cls)
    assert smh.digest(again) == smh.digest(model)
    assert type(smh.materialize(again)) is cls


def test_names_that_smh_needs_are_refused():
    class Home(OwnSequential):
        residency = "here"

    plain = own(Home)
    with pytest.raises(any_smh.PlanError, match="'residency': rename"):
        smh.compress(plain, ratio=0.3)


def test_inputs_and_outputs_are_those_of_the_class():
    x = keras.Input((6,))
    plain = keras.Model(x, layers.Dense(3)(layers.Dense(20)(x)))
    model = smh.compress(plain, ratio=0.3)
    assert model.input.shape == (None, 6)
    assert model.output.shape == model.output_shape == (None, 3)
    assert model.input_shape == (None, 6)
    assert len(model.inputs) == len(model.outputs) == 1


def test_a_model_of_some_layers_is_not_trained_without_the_pool():
    model = smh.compress(dense(), ratio=0.3)
    features = keras.Model(model.inputs[0], model.get_layer("a").output)
    assert_same_bits(features(X).numpy(), smh.materialize(model).layers[0](X).numpy())
    features.compile("sgd", "mse", jit_compile=False)
    before = snapshot(model)
    with pytest.raises(any_smh.VariableError, match="layer 'a' has weights that a pool generates"):
        features.fit(X, np.zeros((16, 20)), verbose=0)
    assert snapshot(model) == before
    features.trainable = False
    head = keras.Sequential([keras.Input((6,)), features, layers.Dense(3)])
    head.compile("sgd", "mse", jit_compile=False)
    head.fit(X, Y, verbose=0)
    assert snapshot(model) == before


def test_a_model_around_one_that_uses_its_parts_trains_the_pool():
    class Around(keras.Model):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def call(self, x):
            return self.model.layers[1](self.model.layers[0](x))

    model = smh.compress(dense(), ratio=0.3)
    around = Around(model)
    around.compile("sgd", "mse", jit_compile=False)
    before = model.smh_pool.weights[0].numpy()
    around.fit(X, Y, verbose=0)
    assert (model.smh_pool.weights[0].numpy() != before).any()


def test_losses_of_regularizers_are_there_before_a_call_after_fit_and_in_it():
    plain = keras.Sequential(
        [keras.Input((6,)), layers.Dense(20, kernel_regularizer="l2", bias_regularizer="l1"), layers.Dense(3)]
    )
    model = smh.compress(plain, ratio=0.3)

    def assert_right():
        expected = sorted(float(x) for x in smh.materialize(model).losses)
        assert sorted(float(x) for x in model.losses) == pytest.approx(expected, rel=1e-6)
        assert len(expected) == 2

    assert_right()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)
    assert_right()
    model(X)
    assert_right()


class Clipping(keras.Layer):
    """A layer that changes its weight when it is called in training."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 20), name="kernel")

    def call(self, x, training=False):
        if training:
            self.kernel.assign(keras.ops.clip(self.kernel, -1e-3, 1e-3))
        return keras.ops.matmul(x, self.kernel)


WRITERS = {
    "spectral dense": lambda: layers.SpectralNormalization(layers.Dense(20)),
    "spectral conv": lambda: keras.Sequential(
        [layers.Reshape((6, 1)), layers.SpectralNormalization(layers.Conv1D(8, 3)), layers.Flatten()]
    ),
    "custom": Clipping,
    "custom within": lambda: keras.Sequential([layers.Dense(8), Clipping()]),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_that_their_layer_changes_are_kept(writer):
    plain = keras.Sequential([keras.Input((6,)), WRITERS[writer](), layers.Dense(30, name="b"), layers.Dense(3)])
    before = snapshot(plain)
    model = smh.compress(plain, ratio=0.4)
    assert snapshot(plain) == before
    whys = [line.why for line in smh.report(model).tensors if not line.generated]
    assert whys.count("is changed by its layer in training") == 1
    copy = smh.materialize(model)
    for x in (X, 2 * X):
        assert_same_bits(model(x, training=True).numpy(), copy(x, training=True).numpy())
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)


def test_a_weight_that_changes_unseen_refuses_in_training():
    class Unseen(keras.Model):
        def __init__(self):
            super().__init__()
            self.clip = Clipping()

        def call(self, x, training=False):
            return self.clip(x, training=training)

    plain = Unseen()
    plain(X)
    model = smh.compress(plain, ratio=0.4)
    before = snapshot(model)
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(any_smh.VariableError, match=r"exclude=\['clipping\w*/kernel'\]"):
        model.fit(X, np.zeros((16, 20)), verbose=0)
    assert snapshot(model)[: len(before)] == before


@pytest.mark.parametrize(("residency", "compiled"), [("full", False), ("cached", False), ("layer", True)])
def test_a_transformer_trains_in_graphs(residency, compiled):
    tokens = keras.Input((None,), dtype="int32")
    y = layers.Embedding(30, 8, name="tokens")(tokens)
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True))
    y = layers.LayerNormalization()(y + layers.Dense(8)(layers.Dense(16, activation="gelu")(y)))
    model = smh.compress(keras.Model(tokens, layers.Dense(30)(y)), ratio=0.4, residency=residency)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=compiled)
    x = np.arange(20).reshape(4, 5) % 30
    history = model.fit(x, (x + 1) % 30, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    plan, variables = smh.plan_of(model), {k: v.numpy() for k, v in model.smh_source.variables.items()}
    for name, weight in any_smh.materialize(plan, variables).items():
        assert_same_bits(model.smh_source.weights[name].numpy(), weight, name)
