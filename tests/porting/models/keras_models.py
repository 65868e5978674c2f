"""The architectures in Keras: sequential, functional and subclassed models."""

import keras
import numpy as np
from keras import layers

from smh.backends import tensorflow as smh
from smh.backends.tensorflow import keras_tensors
from tests.porting.models import BATCH, IMAGES, RATE, STILL_FROM, batches


def conv(filters, name, size=3, stride=1):
    """Return a convolution; one with a stride needs its images padded as PyTorch pads them."""
    padding = "valid" if stride > 1 else "same"
    return layers.Conv2D(filters, size, strides=stride, padding=padding, use_bias=False, name=name)


def batch_norm(name=None):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def layer_norm(name):
    return layers.LayerNormalization(epsilon=1e-5, name=name)


def mlp():
    hidden = [layers.Dense(80, activation="relu", name=f"dense{k}") for k in (1, 2, 3)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, name="head")])


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            batch_norm(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            batch_norm(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )


def separable():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.ZeroPadding2D(1)(layers.ReLU()(batch_norm("bn")(conv(16, "conv")(x))))
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, use_bias=False, name="block1_depthwise")(x)
    x = layers.ReLU()(batch_norm("block1_bn1")(x))
    x = conv(64, "block1_pointwise", size=1)(x)
    x = layers.ReLU()(batch_norm("block1_bn2")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="block2_depthwise")(x)
    x = layers.ReLU()(batch_norm("block2_bn1")(x))
    x = layers.ReLU()(batch_norm("block2_bn2")(conv(128, "block2_pointwise", size=1)(x)))
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


class ResidualBlock(layers.Layer):
    def __init__(self, channels, outputs, stride=1, **options):
        super().__init__(**options)
        self.channels, self.outputs, self.stride = channels, outputs, stride
        self.padding = layers.ZeroPadding2D(1) if stride > 1 else None
        self.conv1 = conv(outputs, "conv1", stride=stride)
        self.bn1 = batch_norm("bn1")
        self.conv2 = conv(outputs, "conv2")
        self.bn2 = batch_norm("bn2")
        self.projected = stride > 1 or channels != outputs
        if self.projected:
            self.shortcut = conv(outputs, "shortcut_conv", size=1, stride=stride)
            self.shortcut_bn = batch_norm("shortcut_bn")

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "outputs": self.outputs, "stride": self.stride}

    def build(self, shape):
        after = (*(None if n is None else n // self.stride for n in shape[:3]), self.outputs)
        padded = shape if self.padding is None else self.padding.compute_output_shape(shape)
        self.conv1.build(padded)
        self.conv2.build(after)
        for norm in (self.bn1, self.bn2):
            norm.build(after)
        if self.projected:
            self.shortcut.build(shape)
            self.shortcut_bn.build(after)

    def call(self, x, training=False):
        y = self.conv1(x if self.padding is None else self.padding(x))
        y = keras.ops.relu(self.bn1(y, training=training))
        y = self.bn2(self.conv2(y), training=training)
        return keras.ops.relu(y + (self.shortcut_bn(self.shortcut(x), training=training) if self.projected else x))


class ResNet(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = conv(8, "conv")
        self.bn = batch_norm("bn")
        self.layer1 = ResidualBlock(8, 8, name="layer1")
        self.layer2 = ResidualBlock(8, 16, stride=2, name="layer2")
        self.layer3 = ResidualBlock(16, 32, stride=2, name="layer3")
        self.pool = layers.GlobalAveragePooling2D()
        self.fc = layers.Dense(10, name="fc")

    def call(self, x, training=False):
        x = keras.ops.relu(self.bn(self.conv(x), training=training))
        for block in (self.layer1, self.layer2, self.layer3):
            x = block(x, training=training)
        return self.fc(self.pool(x))


def resnet():
    model = ResNet()
    model(np.zeros((1, 8, 8, 1), np.float32))
    return model


def gru():
    return keras.Sequential([keras.Input((8, 8)), layers.GRU(56, name="gru"), layers.Dense(10)])


def lstm():
    return keras.Sequential([keras.Input((8, 8)), layers.LSTM(48), layers.Dense(10)])


class Position(layers.Layer):
    """Adds a learned vector to each token."""

    def build(self, shape):
        self.position = self.add_weight(shape[1:], keras.initializers.RandomNormal(0, 0.1), name="embeddings")

    def call(self, x):
        return x + self.position


def encoder_layer(x, width, heads, name):
    y = layer_norm(f"{name}_norm1")(x)
    x = x + layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_mlp1")(layer_norm(f"{name}_norm2")(x))
    return x + layers.Dense(width, name=f"{name}_mlp2")(y)


def transformer():
    x = inputs = keras.Input((8, 8))
    x = Position(name="position")(layers.Dense(32, name="embed")(x))
    for name in ("layer_0", "layer_1"):
        x = encoder_layer(x, 32, 4, name)
    x = layers.GlobalAveragePooling1D()(layer_norm("norm")(x))
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


_MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "separable": separable,
    "resnet": resnet,
    "gru": gru,
    "lstm": lstm,
    "transformer": transformer,
}


def make(architecture):
    """Return a plain, built model with fresh weights that are the same at every call."""
    keras.utils.set_random_seed(0)
    model = _MODELS[architecture]()
    model.architecture = architecture
    return model


def compress(model, ratio, include=None):
    """Return a compressed copy."""
    return _labelled(smh.compress(model, ratio=ratio, optimizer="adam", include=include), model.architecture)


def train(model, images, labels, steps):
    """Train a model in place, and return it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.PiecewiseConstantDecay([STILL_FROM], [RATE, 0.0]))
    optimizer.build(model.trainable_variables)  # else the step is traced twice
    model.compile(optimizer, loss, jit_compile=False)  # XLA takes longer to compile a step than all steps run
    x, y = (np.concatenate(parts) for parts in zip(*batches(images, labels, steps), strict=True))
    model.fit(_inputs(model, x), y, batch_size=BATCH, shuffle=False, verbose=0)
    return model


def logits(model, images):
    """Return what a model, compressed or not, computes in inference mode."""
    return np.asarray(model(_inputs(model, images), training=False))


def materialize(model):
    """Return a plain model with the weights that a compressed one generates."""
    return _labelled(smh.materialize(model), model.architecture)


def tensors(model):
    """Return all tensors of a plain model by name."""
    names = keras_tensors.names_of(model)
    return {name: np.asarray(x) for name, x in zip(names, model.weights, strict=True)}


def put(model, values):
    """Set all tensors of a plain model, and return it."""
    for name, x in zip(keras_tensors.names_of(model), model.weights, strict=True):
        x.assign(values[name])
    return model


def save(path, model):
    """Write a checkpoint, and return the digest."""
    return smh.save(path, model)


def load(path, model):
    """Return a compressed model with what a file holds, given a plain one."""
    return _labelled(smh.load(path, model), model.architecture)


def digest(model):
    """Return the digest of the weights that a compressed model generates."""
    return smh.digest(model)


def module_of(model):
    """Return what :func:`smh.porting.match` is told of a model."""
    return model


def _labelled(model, architecture):
    model.architecture = architecture
    return model


def _inputs(model, images):
    if model.architecture == "mlp":
        return images.reshape(len(images), 64)
    return images[..., None] if model.architecture in IMAGES else images
