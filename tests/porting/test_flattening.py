"""Flattened images: frameworks with channels first and last order their pixels differently, and only images."""

import numpy as np
import pytest

import smh
from smh.porting import match

torch = pytest.importorskip("torch", reason="ports of flattened images need torch")
pytest.importorskip("jax", reason="ports of flattened images need JAX")
pytest.importorskip("tensorflow", reason="ports of flattened images need TensorFlow")
nnx = pytest.importorskip("flax.nnx", reason="ports of flattened images need Flax")

import keras  # noqa: E402
from torch import nn  # noqa: E402

from tests.porting.models.faces import Jax, Keras, Torch, assert_same_outputs, carry, randomised, values  # noqa: E402

L = keras.layers
IMAGE = (6, 5, 2)
EPSILON = {"epsilon": 1e-5}
BATCH_NORM = {"epsilon": 1e-5, "momentum": 0.9}


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def functional(call, *shapes, dtype="float32"):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    return Keras(None, model=keras.Model(inputs if len(inputs) > 1 else inputs[0], call(*inputs)))


def conv(x):
    return L.Conv2D(4, 3, name="conv")(x)


def flat(x):
    return L.Flatten()(conv(x))


def dense(x, units=5, name="fc"):
    return L.Dense(units, name=name)(x)


def convolved(features=48, call=lambda m, x: m.fc(m.conv(x).flatten(1)), **layers):
    return Torch(Net(call, conv=nn.Conv2d(2, 4, 3), **layers, fc=nn.Linear(features, 5)))


def decoded(*between):
    """Return a decoder: a vector, some layers, an image of 4 channels, a convolution."""

    def call(x):
        x = dense(x, 48)
        for layer in between:
            x = layer(x)
        return L.Conv2DTranspose(3, 2, name="up")(L.Reshape((4, 3, 4))(x))

    return functional(call, (7,))


def decoder(**between):
    def call(m, x):
        x = m.fc(x)
        for name in between:
            x = getattr(m, name)(x)
        return m.up(x.unflatten(1, (4, 4, 3)))

    return Torch(Net(call, fc=nn.Linear(7, 48), **between, up=nn.ConvTranspose2d(4, 3, 2)))


def images(*shape):
    return (values(2, *(shape or IMAGE)),)


CASES = {
    "tokens": lambda: (
        (np.array([[1, 3, 0, 2, 2, 5]], dtype=np.int32),),
        functional(lambda x: dense(L.Flatten()(L.Embedding(30, 8, name="emb")(x))), (6,), dtype="int32"),
        Torch(Net(lambda m, x: m.fc(m.emb(x).flatten(1)), emb=nn.Embedding(30, 8), fc=nn.Linear(48, 5))),
    ),
    "steps of an LSTM": lambda: (
        images(6, 4),
        functional(lambda x: dense(L.Flatten()(L.LSTM(8, return_sequences=True, name="rnn")(x))), (6, 4)),
        Torch(
            Net(lambda m, x: m.fc(m.rnn(x)[0].flatten(1)), rnn=nn.LSTM(4, 8, batch_first=True), fc=nn.Linear(48, 5)),
            images=False,
        ),
    ),
    "channels put first": lambda: (
        images(),
        functional(lambda x: dense(L.Flatten()(L.Permute((3, 1, 2))(conv(x)))), IMAGE),
        convolved(),
    ),
    "an image": lambda: (images(), functional(lambda x: dense(flat(x)), IMAGE), convolved()),
    "a reshaped image": lambda: (
        images(),
        functional(lambda x: dense(L.Reshape((-1,))(L.ReLU()(conv(x)))), IMAGE),
        convolved(call=lambda m, x: m.fc(m.conv(x).relu().flatten(1))),
    ),
    "an operation": lambda: (
        images(),
        functional(lambda x: dense(keras.ops.relu(keras.ops.reshape(conv(x), (-1, 48)))), IMAGE),
        convolved(call=lambda m, x: m.fc(m.conv(x).relu().flatten(1))),
    ),
    "a signal": lambda: (
        images(9, 2),
        functional(lambda x: dense(L.Flatten()(L.Conv1D(4, 3, name="conv")(x))), (9, 2)),
        Torch(Net(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv1d(2, 4, 3), fc=nn.Linear(28, 5))),
    ),
    "a pooled image": lambda: (
        images(),
        functional(lambda x: dense(L.Flatten()(L.GlobalAveragePooling2D(keepdims=True)(conv(x)))), IMAGE),
        convolved(4, lambda m, x: m.fc(m.conv(x).mean((2, 3)))),
    ),
    "layer norm": lambda: (
        images(),
        functional(lambda x: dense(L.LayerNormalization(**EPSILON, name="norm")(flat(x))), IMAGE),
        convolved(call=lambda m, x: m.fc(m.norm(m.conv(x).flatten(1))), norm=nn.LayerNorm(48)),
    ),
    "batch norm": lambda: (
        images(),
        functional(lambda x: dense(L.Dropout(0.1)(L.BatchNormalization(**BATCH_NORM, name="norm")(flat(x)))), IMAGE),
        convolved(call=lambda m, x: m.fc(m.norm(m.conv(x).flatten(1))), norm=nn.BatchNorm1d(48)),
    ),
    "PReLU": lambda: (
        images(),
        functional(lambda x: dense(L.PReLU(name="act")(flat(x))), IMAGE),
        convolved(call=lambda m, x: m.fc(m.act(m.conv(x).flatten(1))), act=nn.PReLU(48)),
    ),
    "norms behind a dense layer": lambda: (
        images(),
        functional(lambda x: dense(L.LayerNormalization(**EPSILON, name="norm")(dense(flat(x), 48, "a"))), IMAGE),
        convolved(
            call=lambda m, x: m.fc(m.norm(m.a(m.conv(x).flatten(1)))), a=nn.Linear(48, 48), norm=nn.LayerNorm(48)
        ),
    ),
    "two branches": lambda: (
        (values(2, 192), values(2, 8, 8, 3)),
        functional(lambda x, y: dense(x, name="a") + dense(L.Flatten()(y), name="b"), (192,), (8, 8, 3)),
        Torch(Net(lambda m, x, y: m.a(x) + m.b(y.flatten(1)), a=nn.Linear(192, 5), b=nn.Linear(192, 5))),
    ),
    "a sum": lambda: (
        (values(2, *IMAGE), values(2, 7)),
        functional(lambda x, y: dense(L.Add()([flat(x), dense(y, 48, "a")])), IMAGE, (7,)),
        convolved(call=lambda m, x, y: m.fc(m.conv(x).flatten(1) + m.a(y)), a=nn.Linear(7, 48)),
    ),
    "channels beside one another": lambda: (
        images(),
        functional(lambda x: dense(L.Flatten()(L.Concatenate()([y := conv(x), y * 2]))), IMAGE),
        convolved(96, lambda m, x: m.fc(torch.cat([m.conv(x), m.conv(x) * 2], 1).flatten(1))),
    ),
    "a model in a model": lambda: (
        images(),
        functional(
            lambda x: dense(keras.Sequential([keras.Input(IMAGE), L.Conv2D(4, 3, name="conv"), L.Flatten()])(x)), IMAGE
        ),
        convolved(),
    ),
    "a decoder": lambda: (images(7), decoded(), decoder()),
    "a decoder with a norm": lambda: (
        images(7),
        decoded(L.BatchNormalization(**BATCH_NORM, name="norm"), L.ReLU()),
        decoder(norm=nn.BatchNorm1d(48), act=nn.ReLU()),
    ),
    "an image and features from one layer": lambda: (
        images(7),
        functional(
            lambda x: (
                dense(L.Flatten()(L.Conv2D(4, 3, name="conv")(L.Reshape((4, 3, 4))(y := dense(x, 48, "a")))))
                + dense(y, name="b")
            ),
            (7,),
        ),
        Torch(
            Net(
                lambda m, x: m.fc(m.conv((y := m.a(x)).unflatten(1, (4, 4, 3))).flatten(1)) + m.b(y),
                **{"a": nn.Linear(7, 48), "conv": nn.Conv2d(4, 4, 3), "fc": nn.Linear(8, 5), "b": nn.Linear(48, 5)},
            )
        ),
    ),
    "classes as images": lambda: (
        (np.array([1, 0], dtype=np.int32),),
        functional(
            lambda x: L.Conv2D(3, 2, name="conv")(L.Reshape((4, 3, 4))(L.Embedding(3, 48, name="emb")(x))),
            (),
            dtype="int32",
        ),
        Torch(
            Net(lambda m, x: m.conv(m.emb(x).unflatten(1, (4, 4, 3))), emb=nn.Embedding(3, 48), conv=nn.Conv2d(4, 3, 2))
        ),
    ),
    "tokens of an image": lambda: (
        images(),
        functional(lambda x: dense(L.GlobalAveragePooling1D()(dense(L.Reshape((12, 4))(conv(x)), 6, "token"))), IMAGE),
        convolved(6, lambda m, x: m.fc(m.token(m.conv(x).flatten(2).transpose(1, 2)).mean(1)), token=nn.Linear(4, 6)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_graph_of_a_keras_model_tells_what_is_flattened(case):
    inputs, one, other = CASES[case]()
    for source, target in ((one, other), (other, one)):
        randomised(source)
        found = match(source.model, target.model)
        assert not found.notes
        carry(source, target, found.mapping)
        assert_same_outputs(source, target, inputs)


class Flax(nnx.Module):
    """The same in Flax, with images flattened as they are there."""

    def __init__(self, call, **layers):
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer(nnx.Rngs(0)))

    def __call__(self, *inputs):
        return self.call(self, *inputs)


def flax_conv(rngs, inputs=2):
    return nnx.Conv(inputs, 4, (3, 3), padding="VALID", rngs=rngs)


def flax_dense(inputs, units=5):
    return lambda rngs: nnx.Linear(inputs, units, rngs=rngs)


def flax_norm(cls, features, **options):
    return lambda rngs: cls(features, epsilon=1e-5, rngs=rngs, **options)


def flat_flax(m, x):
    return m.conv(x).reshape(len(x), -1)


FIRST = {"fc": (4, 4, 3)}
ASKED = {
    "layer norm": lambda: (
        (images(), FIRST | {"norm": (4, 4, 3)}, {}),
        CASES["layer norm"]()[2],
        Flax(
            lambda m, x: m.fc(m.norm(flat_flax(m, x))),
            **{"conv": flax_conv, "norm": flax_norm(nnx.LayerNorm, 48), "fc": flax_dense(48)},
        ),
    ),
    "batch norm": lambda: (
        (images(), FIRST | {"norm": (4, 4, 3)}, {}),
        CASES["batch norm"]()[2],
        Flax(
            lambda m, x: m.fc(m.norm(flat_flax(m, x))),
            conv=flax_conv,
            norm=flax_norm(nnx.BatchNorm, 48, momentum=0.9, use_running_average=True),
            fc=flax_dense(48),
        ),
    ),
    "two branches": lambda: (
        ((values(2, *IMAGE), values(2, 48)), FIRST | {"a": None}, {}),
        convolved(call=lambda m, x, y: m.fc(m.conv(x).flatten(1)) + m.a(y), a=nn.Linear(48, 5)),
        Flax(
            lambda m, x, y: m.fc(flat_flax(m, x)) + m.a(y),
            **{"conv": flax_conv, "a": flax_dense(48), "fc": flax_dense(48)},
        ),
    ),
    "features beside an image": lambda: (
        ((values(2, *IMAGE), values(2, 10)), {"fc": None}, {}),
        beside(),
        Flax(lambda m, x, y: m.fc(np.concatenate([flat_flax(m, x), y], 1)), conv=flax_conv, fc=flax_dense(58)),
    ),
    "rows as steps": lambda: (
        (images(), {"rnn.0": (4, 3)}, {}),
        Torch(
            Net(
                lambda m, x: m.fc(m.rnn(m.conv(x).permute(0, 2, 1, 3).flatten(2))[0][:, -1]),
                **{"conv": nn.Conv2d(2, 4, 3), "rnn": nn.LSTM(12, 6, batch_first=True), "fc": nn.Linear(6, 5)},
            )
        ),
        Flax(
            lambda m, x: m.fc(m.rnn(m.conv(x).reshape(len(x), 4, 12))[:, -1]),
            conv=flax_conv,
            rnn=lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(12, 6, rngs=rngs)),
            fc=flax_dense(6),
        ),
    ),
    "a decoder with a norm": lambda: (
        (images(7), {"norm": (4, 4, 3)}, FIRST),
        CASES["a decoder with a norm"]()[2],
        Flax(
            lambda m, x: m.up(nnx.relu(m.norm(m.fc(x))).reshape(-1, 4, 3, 4)),
            fc=flax_dense(7, 48),
            norm=flax_norm(nnx.BatchNorm, 48, momentum=0.9, use_running_average=True),
            up=lambda rngs: nnx.ConvTranspose(4, 3, (2, 2), padding="VALID", rngs=rngs),
        ),
    ),
}


def beside():
    """Return a network whose dense layer reads a flattened image, channels last, and other features."""
    return convolved(58, lambda m, x, y: m.fc(torch.cat([m.conv(x).permute(0, 2, 3, 1).flatten(1), y], 1)))


@pytest.mark.parametrize("case", ASKED)
def test_what_no_graph_tells_is_asked(case):
    (inputs, flatten, unflatten), one, module = ASKED[case]()
    for source, target in ((one, other := Jax(module, lambda m, *x: m(*x))), (other, one)):
        randomised(source)
        options = {"hints": {"a": "a", "fc": "fc"} if "a" in flatten else {}}
        questions = [case for case in match(source.model, target.model, **options).ambiguous if "?" in case.why]
        asked = [name for case in questions for name in (case.sources if source is one else case.targets)]
        assert sorted(asked) == sorted([*flatten, *unflatten])
        found = match(source.model, target.model, flatten=flatten, unflatten=unflatten, **options)
        carry(source, target, found.mapping)
        assert_same_outputs(source, target, inputs)


def test_features_beside_an_image_are_asked_about():
    one = functional(lambda x, y: dense(L.Concatenate()([flat(x), y])), IMAGE, (10,))
    other = beside()
    for source, target in ((one, other), (other, one)):
        randomised(source)
        (question,) = match(source.model, target.model).ambiguous
        assert question.targets == question.sources == ("fc",)
        assert "the order of its 58 inputs is unclear: a flattened image lies beside other features" in question.why
        carry(source, target, match(source.model, target.model, flatten={"fc": None}).mapping)
        assert_same_outputs(source, target, (values(2, *IMAGE), values(2, 10)))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"flatten": {"conv2": (4, 4, 3)}}, "a layer of neither model"),
        ({"flatten": {"emb": (4, 2)}}, r"flatten for 'emb' changes nothing, .* its kind \(embedding\): leave it out"),
        ({"unflatten": {"norm": (4, 4, 3)}}, r"unflatten for 'norm' changes nothing, .* its kind \(layer_norm\)"),
        ({"flatten": {"fc": 48}}, "must give channels and sizes for 'fc'"),
        ({"flatten": {"fc": (4, 0, 3)}}, "must give channels and sizes for 'fc'"),
        ({"flatten": {"fc": (4, 4, 4)}}, "does not have the 48 inputs"),
    ],
)
def test_answers_without_an_effect_are_errors(answers, message):
    layers = {"emb": nn.Embedding(3, 8), "conv": nn.Conv2d(2, 4, 3), "norm": nn.LayerNorm(48), "fc": nn.Linear(48, 5)}
    flax = Flax(
        None,
        emb=lambda rngs: nnx.Embed(3, 8, rngs=rngs),
        conv=flax_conv,
        norm=flax_norm(nnx.LayerNorm, 48),
        fc=flax_dense(48),
    )
    with pytest.raises(smh.PortError, match=message):
        _ = match(nn.ModuleDict(layers), flax, **answers).mapping


def test_flattening_changes_nothing_between_models_of_one_order():
    with pytest.raises(smh.PortError, match="both models order images alike"):
        match(convolved().model, convolved().model, flatten={"fc": (4, 4, 3)})
