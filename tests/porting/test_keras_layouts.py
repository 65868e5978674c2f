"""What the graph of a Keras model tells of the order of features, and what it leaves open."""

import inspect
import os
import subprocess
import sys

import pytest

from smh.porting.matching import describe

pytest.importorskip("tensorflow", reason="graphs of Keras need TensorFlow")

import keras

L = keras.layers
IMAGE = (6, 5, 2)
ARGUMENTS = {
    "Activation": ["relu"],
    "AveragePooling2D": [2],
    "CenterCrop": [3, 3],
    "Cropping2D": [1],
    "Dropout": [0.1],
    "GaussianNoise": [0.1],
    "Rescaling": [2.0],
    "Resizing": [3, 5],
    "SpatialDropout2D": [0.1],
}
LAYERS = [name for name in dir(L) if name.endswith("2D") and name == getattr(L, name).__name__]  # not the short names
LAYERS = [name for name in LAYERS if "Conv" not in name and "Adaptive" not in name]
LAYERS += ["Activation", "CenterCrop", "Dropout", "GaussianNoise", "LeakyReLU", "RandomFlip", "Rescaling", "Resizing"]


def dense(x, units=5, name="fc"):
    return L.Dense(units, name=name)(x)


def conv(x):
    return L.Conv2D(4, 3, name="conv")(x)


def flat(x):
    return L.Flatten()(conv(x))


class Unknown(L.Layer):
    """Flattens, in an order that is its own business."""

    def call(self, x):
        return keras.ops.reshape(x, (-1, 48))

    def compute_output_shape(self, shape):
        return (shape[0], 48)


UNCLEAR = {
    "features beside an image": lambda x, y: dense(L.Concatenate()([flat(x), y])),
    "an image added to inputs": lambda x, y: dense(L.Add()([flat(x), L.Concatenate()([y] * 12)])),
    "height and width exchanged": lambda x, y: dense(L.Flatten()(L.Permute((2, 1, 3))(conv(x)))) + dense(y, name="a"),
    "axes exchanged": lambda x, y: dense(L.Flatten()(keras.ops.swapaxes(conv(x), 1, 2))) + dense(y, name="a"),
    "dense on channels": lambda x, y: dense(L.Flatten()(dense(conv(x), 4, "b"))) + dense(y, name="a"),
    "rows as steps": lambda x, y: dense(L.LSTM(3, name="rnn")(L.Reshape((4, 12))(conv(x)))) + dense(y, name="a"),
    "a layer of the user's": lambda x, y: dense(Unknown()(conv(x))) + dense(y, name="a"),
    "a part of an image": lambda x, y: dense(flat(x)[:, :20]) + dense(y, name="a"),
    "images of frames": lambda x, y: (
        dense(L.LSTM(3)(L.TimeDistributed(L.Flatten())(L.TimeDistributed(L.Conv1D(4, 3))(x)))) + dense(y, name="a")
    ),
    "a pooled sequence": lambda x, y: (
        dense(L.Flatten()(L.MaxPooling1D()(L.LSTM(3, return_sequences=True)(L.TimeDistributed(L.Flatten())(x)))))
        + dense(y, name="a")
    ),
    "a layer with two inputs": lambda x, y: (
        (fc := L.Dense(5, name="fc"))(L.Flatten()(x)) + fc(L.Concatenate()([y] * 15))
    ),
    "a decoder of several": lambda x, y: L.Conv2D(3, 2, name="conv")(
        L.Reshape((4, 3, 4))(L.Concatenate()([dense(y, 40), dense(y, 8, "a")]))
    ),
    "groups of a flattened image": lambda x, y: dense(L.GroupNormalization(4)(flat(x))) + dense(y, name="a"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_the_graph_leaves_open_is_told(case):
    x, y = keras.Input(IMAGE), keras.Input((4,))
    structure = describe(keras.Model([x, y], UNCLEAR[case](x, y)))
    unclear = {layer.name for layer in structure.layers if isinstance(layer.reads or layer.gives, str)}
    turned = {layer.name: layer.reads for layer in structure.layers if layer.kind == "group_norm"}
    assert unclear or turned == {"group_normalization": (4, 4, 3)}
    assert all(layer.kind not in ("conv", "batch_norm") for layer in structure.layers if layer.name in unclear)


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_layers_without_weights_keep_an_image_an_image(order):
    def told(name):
        layer = getattr(L, name)
        options = {"data_format": order} if "data_format" in inspect.signature(layer.__init__).parameters else {}
        first = keras.Input((4, 6, 6) if order == "channels_first" else (6, 6, 4))
        x = layer(*ARGUMENTS.get(name, ()), **options)(L.Conv2D(4, 3, padding="same", data_format=order)(first))
        model = keras.Model(first, dense(L.Flatten(data_format=order)(x)))
        return next(layer.reads for layer in describe(model).layers if layer.name == "fc"), x.shape

    for name in LAYERS:
        image, shape = told(name)
        sizes = sorted(shape[1:]) if len(shape) > 2 else []
        assert isinstance(image, tuple), name
        assert sorted(image) == sizes, name


OTHER_BACKEND = """
import keras, torch, smh
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")], name="small")
for models in ((model, torch.nn.Linear(4, 3)), (torch.nn.Linear(4, 3), model)):
    try:
        smh.porting.match(*models)
    except smh.BackendError as error:
        print(error)
"""


def test_a_model_of_keras_on_another_backend_is_refused():
    pytest.importorskip("torch", reason="Keras is to run on it")
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", OTHER_BACKEND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (
        done.stdout.count("'small' is a Sequential of Keras, which runs on torch here and must run on TensorFlow") == 2
    )
