"""What Keras layers derive, or store in ways of their own, is that of the plain model by all routes."""

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
WORDS = ["the cat sat", "a dog", "the dog ran", "sat sat"]
NUMBERS = np.random.default_rng(0).normal(3, 2, (16, 6)).astype(np.float32)


class Scaled(keras.Layer):
    """A layer with a weight, a derived number, and a table that is no variable."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.table = np.zeros(4, np.float32)
        self.finalize()

    def finalize(self):
        self.norm = float(tf.reduce_sum(abs(self.kernel.value)))

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table = np.asarray(store["table"])
        super().load_own_variables({"0": store["0"]})
        self.finalize()

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) / self.norm + self.table


def normalization():
    layer = layers.Normalization()
    layer.adapt(NUMBERS)
    return keras.Sequential([keras.Input((6,)), layer, layers.Dense(20), layers.Dense(3)]), NUMBERS


def discretization():
    layer = layers.Discretization(num_bins=4, output_mode="one_hot")
    layer.adapt(NUMBERS[:, :1])
    return keras.Sequential([keras.Input((1,)), layer, layers.Dense(20), layers.Dense(3)]), NUMBERS[:, :1]


def vectorization(mode="int"):
    layer = layers.TextVectorization(output_mode=mode, output_sequence_length=4 if mode == "int" else None)
    layer.adapt(WORDS)
    words = keras.Input((), dtype="string")
    y = layer(words)
    y = layers.Flatten()(layers.Embedding(12, 8)(y)) if mode == "int" else layers.Dense(20)(y)
    return keras.Model(words, layers.Dense(3)(y)), tf.constant(WORDS)


def lookup():
    layer = layers.IntegerLookup()
    layer.adapt(np.array([7, 7, 9, 40]))
    x = keras.Input((2,), dtype="int64")
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Embedding(12, 8)(layer(x))))), tf.constant([[7, 40]])


def spectral():
    model = keras.Sequential(
        [keras.Input((6,)), layers.SpectralNormalization(layers.Dense(8)), layers.Dense(20), layers.Dense(3)]
    )
    model(NUMBERS, training=True)
    return model, NUMBERS


def quantized():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(20), layers.Dense(3)])
    model.layers[0].quantize("int8")
    return model, NUMBERS


def lora():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(20), layers.Dense(3)])
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 8)))
    return model, NUMBERS


def custom():
    model = keras.Sequential([keras.Input((6,)), Scaled(), layers.Dense(20), layers.Dense(3)])
    model.layers[0].table = np.arange(4, dtype=np.float32)
    return model, NUMBERS


def tf_idf():
    return vectorization("tf_idf")


MODELS = (normalization, discretization, vectorization, tf_idf, lookup, spectral, quantized, lora, custom)
LOSSY = {"lora"}  # Keras merges what it stores


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def case(request):
    keras.utils.set_random_seed(7)
    plain, x = request.param()
    return request.param.__name__, plain, x


def with_weights_of(plain, model):
    """Return the plain model with the weights of a compressed one, by names."""
    weights = any_smh.materialize(smh.plan_of(model), {k: v.numpy() for k, v in model.smh_source.variables.items()})
    for name, variable in zip(model.smh_source.weights, plain.weights, strict=True):
        if name in weights:
            variable.assign(weights[name])
    return plain


def test_all_routes_keep_the_state_of_layers(case, tmp_path):
    name, plain, x = case
    before = plain(x).numpy()
    model = smh.compress(plain, ratio=0.3)
    assert_same_bits(plain(x).numpy(), before)
    model.smh_pool.weights[0].assign_add(np.ones(model.smh_pool.weights[0].shape) / 3)
    dense = smh.materialize(model)
    smh.save(tmp_path / "model.safetensors", model)
    model.save(tmp_path / "model.keras")
    routes = {
        "materialize": dense,
        "load": smh.load(tmp_path / "model.safetensors", smh.compress(plain, ratio=0.3)),
        "load into a plain model": smh.load(tmp_path / "model.safetensors", plain),
        "keras": keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Scaled": Scaled}),
    }
    expected = with_weights_of(plain, model)(x).numpy()
    assert_same_bits(model(x).numpy(), expected, "compress")
    for route, other in routes.items():
        if name in LOSSY and route == "keras":
            np.testing.assert_allclose(other(x).numpy(), expected, rtol=1e-5)
        elif route.startswith("load"):  # the file holds integers of the pool
            assert smh.digest(other) == smh.digest(model), route
            assert_same_bits(other(x).numpy(), expected, route)
        else:
            assert_same_bits(other(x).numpy(), expected, route)


def test_a_file_carries_statistics_and_vocabularies_or_is_refused(tmp_path):
    plain, x = custom()
    model = smh.compress(plain, ratio=0.3)
    smh.save(tmp_path / "model", model)
    fresh, _ = custom()
    fresh.layers[0].table[:] = 9
    loaded = smh.load(tmp_path / "model", fresh)
    assert_same_bits(loaded(x).numpy(), model(x).numpy())
    plain, x = vectorization()
    smh.save(tmp_path / "model", smh.compress(plain, ratio=0.3))
    other = keras.models.clone_model(plain)  # without a vocabulary
    with pytest.raises(any_smh.CheckpointError, match=r"text_vectorization.*vocabulary\.txt"):
        smh.load(tmp_path / "model", other)


def test_random_states_go_on_where_they_were():
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(20), layers.Dropout(0.5, seed=3), layers.Dense(3)])
    plain(NUMBERS, training=True)
    model = smh.compress(plain, ratio=0.3)
    dense = smh.materialize(model)
    for _ in range(2):
        assert_same_bits(model(NUMBERS, training=True).numpy(), dense(NUMBERS, training=True).numpy())
    states = [m.layers[1].seed_generator.state.numpy().tolist() for m in (plain, model)]
    assert states[0][1] + 2 == states[1][1]


class Unnamed(keras.Layer):
    """A layer that names no weight, as the layer scale of ConvNeXt."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) * self.gain


def test_weights_without_names_have_the_same_ones_in_every_model(tmp_path):
    """Keras calls them ``variable_7``, by a counter that goes on through the life of a process."""

    def make():
        return keras.Sequential([keras.Input((6,)), Unnamed(name="a"), layers.Dense(20), Unnamed(name="b")])

    model = smh.compress(make(), ratio=0.3)
    names = [line.name for line in smh.report(model).tensors]
    assert names[:2] + names[4:] == ["a/variable", "a/variable_1", "b/variable", "b/variable_1"]
    digest = smh.save(tmp_path / "model.safetensors", model)
    loaded = smh.load(tmp_path / "model.safetensors", make())
    assert smh.digest(loaded) == digest
    assert_same_bits(loaded(NUMBERS).numpy(), model(NUMBERS).numpy())


@pytest.mark.parametrize("make", [normalization, vectorization, tf_idf, lookup])
@pytest.mark.parametrize("fit", [smh.fit, any_smh.fit], ids=["smh.keras", "smh"])
def test_fitting_keeps_statistics_and_vocabularies(make, fit):
    keras.utils.set_random_seed(7)
    plain, x = make()
    fitted, _ = fit(plain, ratio=0.9)
    kept, expected = (
        next(layer for layer in model.layers if hasattr(layer, "adapt"))(x).numpy() for model in (fitted, plain)
    )
    assert kept.any()
    assert np.array_equal(kept, expected)
    assert_same_bits(fitted(x).numpy(), with_weights_of(plain, fitted)(x).numpy())
