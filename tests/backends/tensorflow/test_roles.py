"""What is generated of a Keras model: kernels, by their layers, and nothing else."""

import keras
import numpy as np
import pytest
from keras import layers

from smh import keras as smh
from smh.backends.tensorflow.keras_tensors import _axes

NORMS = {
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=[1, 2, 3]),
    "GroupNormalization": lambda: layers.GroupNormalization(2),
    "RMSNormalization": lambda: layers.RMSNormalization(axis=[1, 2, 3]),
    "PReLU": lambda: layers.PReLU(),
}


def around(layer, shape=(4, 4, 6)):
    return keras.Sequential([keras.Input(shape), layer, layers.Dense(6, name="out")])


@pytest.mark.filterwarnings("ignore:the fitted weights")
@pytest.mark.parametrize("name", NORMS)
def test_norms_keep_their_bits(name):
    model = around(NORMS[name]())
    draw = np.random.default_rng(0)
    model.layers[0].set_weights([draw.random(x.shape, np.float32) for x in model.layers[0].get_weights()])
    for made in (smh.compress(model, ratio=0.9), smh.fit(model, ratio=0.9)[0]):
        generated = [line.name for line in smh.report(made).tensors if line.generated]
        assert generated == ["out/kernel"]
        before, after = model.layers[0].get_weights(), smh.materialize(made).layers[0].get_weights()
        assert all(np.array_equal(x.view("uint32"), y.view("uint32")) for x, y in zip(before, after, strict=True))


def test_all_norms_of_keras_are_tried():
    names = {name for name in dir(layers) if name.endswith("Normalization")}
    without = {"Normalization", "SpectralNormalization", "UnitNormalization"}  # statistics, a wrapper, no weights
    assert names - without <= NORMS.keys()


def test_vectors_and_matrices_with_an_axis_of_size_one():
    class Token(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, 6), name="class_part")

        def call(self, x):
            return x + self.token

    model = keras.Sequential([keras.Input((5, 6)), Token(), layers.Dense(9), layers.Dense(1, name="out")])
    lines = smh.report(smh.compress(model, ratio=0.9)).tensors
    assert [line.generated for line in lines] == [False, True, False, True, False]
    assert lines[0].why == "fewer than two axes of more than one element"


def test_heads_are_a_stack():
    attention = layers.MultiHeadAttention(4, 8)
    attention.build((1, 5, 32), (1, 5, 32))
    query, out = attention._query_dense, attention._output_dense
    assert _axes(query, query.kernel) == "i s o"
    assert len(set(_axes(out, out.kernel).split()) - {"s"}) == 3
