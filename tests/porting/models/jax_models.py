"""The architectures in JAX: those with batch norm or attention in Flax NNX, the others in Equinox."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from smh.backends import jax as smh
from smh.backends.jax import pytrees
from tests.porting.models import IMAGES, RATE, STILL_FROM, batches

SYMMETRIC = ((1, 1), (1, 1))
"""Padding of a strided convolution as PyTorch has it; "SAME" would put more at the end."""
STORED = (nnx.Param, nnx.BatchStat)
QUICK = {"xla_backend_optimization_level": 0}
"""For the compiler: nothing here runs for long."""


class Mlp(eqx.Module):
    layers: list

    def __init__(self, key):
        sizes = (64, 80, 80, 80, 10)
        keys = jax.random.split(key, 4)
        self.layers = [eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class GatedCell(eqx.Module):
    """A GRU cell with all biases; the gates are in the order of Keras, update, reset, new."""

    weight_ih: jax.Array
    weight_hh: jax.Array
    bias_ih: jax.Array
    bias_hh: jax.Array

    def __init__(self, inputs, units, key):
        keys = jax.random.split(key)
        self.weight_ih = jax.random.normal(keys[0], (3 * units, inputs)) * inputs**-0.5
        self.weight_hh = jax.random.normal(keys[1], (3 * units, units)) * units**-0.5
        self.bias_ih = jnp.zeros(3 * units)
        self.bias_hh = jnp.zeros(3 * units)

    def __call__(self, x, state):
        z, r, n = jnp.split(self.weight_ih @ x + self.bias_ih, 3)
        hidden_z, hidden_r, hidden_n = jnp.split(self.weight_hh @ state + self.bias_hh, 3)
        update = jax.nn.sigmoid(z + hidden_z)
        new = jnp.tanh(n + jax.nn.sigmoid(r + hidden_r) * hidden_n)
        return update * state + (1 - update) * new


class Gru(eqx.Module):
    cell: GatedCell
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.cell = GatedCell(8, 56, keys[0])
        self.head = eqx.nn.Linear(56, 10, key=keys[1])

    def __call__(self, x):
        return self.head(jax.lax.scan(lambda state, row: (self.cell(row, state), None), jnp.zeros(56), x)[0])


class Lstm(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(8, 48, key=keys[0])
        self.head = eqx.nn.Linear(48, 10, key=keys[1])

    def __call__(self, x):
        start = (jnp.zeros(48), jnp.zeros(48))
        return self.head(jax.lax.scan(lambda state, row: (self.cell(row, state), None), start, x)[0][0])


def conv(inputs, outputs, rngs, size=3, stride=1, groups=1):
    padding = SYMMETRIC if size == 3 else "VALID"
    options = {"strides": stride, "padding": padding, "feature_group_count": groups, "use_bias": False}
    return nnx.Conv(inputs, outputs, (size, size), rngs=rngs, **options)


def batch_norm(channels, rngs):
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = conv(1, 16, rngs)
        self.bn1 = batch_norm(16, rngs)
        self.conv2 = conv(16, 32, rngs)
        self.bn2 = batch_norm(32, rngs)
        self.linear = nnx.Linear(4 * 4 * 32, 32, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.bn1(self.conv1(x))), (2, 2), strides=(2, 2))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return self.head(nnx.relu(self.linear(x.reshape(len(x), -1))))


class SeparableBlock(nnx.Module):
    def __init__(self, channels, outputs, rngs, multiplier=1, stride=1):
        middle = channels * multiplier
        self.depthwise = conv(channels, middle, rngs, stride=stride, groups=channels)
        self.bn1 = batch_norm(middle, rngs)
        self.pointwise = conv(middle, outputs, rngs, size=1)
        self.bn2 = batch_norm(outputs, rngs)

    def __call__(self, x):
        return nnx.relu(self.bn2(self.pointwise(nnx.relu(self.bn1(self.depthwise(x))))))


class Separable(nnx.Module):
    def __init__(self, rngs):
        self.conv = conv(1, 16, rngs)
        self.bn = batch_norm(16, rngs)
        self.block1 = SeparableBlock(16, 64, rngs, multiplier=2, stride=2)
        self.block2 = SeparableBlock(64, 128, rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block2(self.block1(nnx.relu(self.bn(self.conv(x))))).mean((1, 2)))


class ResidualBlock(nnx.Module):
    def __init__(self, channels, outputs, rngs, stride=1):
        self.conv1 = conv(channels, outputs, rngs, stride=stride)
        self.bn1 = batch_norm(outputs, rngs)
        self.conv2 = conv(outputs, outputs, rngs)
        self.bn2 = batch_norm(outputs, rngs)
        self.projected = stride > 1 or channels != outputs
        if self.projected:
            self.shortcut = nnx.Sequential(conv(channels, outputs, rngs, 1, stride), batch_norm(outputs, rngs))

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.shortcut(x) if self.projected else x))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = conv(1, 8, rngs)
        self.bn = batch_norm(8, rngs)
        self.layer1 = ResidualBlock(8, 8, rngs)
        self.layer2 = ResidualBlock(8, 16, rngs, stride=2)
        self.layer3 = ResidualBlock(16, 32, rngs, stride=2)
        self.fc = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = self.layer3(self.layer2(self.layer1(nnx.relu(self.bn(self.conv(x))))))
        return self.fc(x.mean((1, 2)))


class EncoderLayer(nnx.Module):
    def __init__(self, width, heads, rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.mlp1 = nnx.Linear(width, 2 * width, rngs=rngs)
        self.mlp2 = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp2(nnx.gelu(self.mlp1(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(8, 32, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (8, 32)) * 0.1)
        self.layers = nnx.List([EncoderLayer(32, 4, rngs), EncoderLayer(32, 4, rngs)])
        self.norm = nnx.LayerNorm(32, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


_MODELS = {
    "mlp": Mlp,
    "cnn": Cnn,
    "separable": Separable,
    "resnet": ResNet,
    "gru": Gru,
    "lstm": Lstm,
    "transformer": Transformer,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """The parameters of a model, compressed or not."""

    architecture: str
    params: object


@functools.cache
def _fresh(architecture):
    """Return a module and its parameters; neither is ever changed."""
    made = _MODELS[architecture]
    if issubclass(made, eqx.Module):
        module = eqx.filter_jit(made)(jax.random.key(0))
        return module, module
    graph = nnx.graphdef(nnx.eval_shape(lambda: made(nnx.Rngs(0))))
    module = nnx.merge(graph, jax.jit(lambda: nnx.state(made(nnx.Rngs(0))), compiler_options=QUICK)())
    return module, nnx.state(module, STORED)


@functools.cache
def _graph(architecture):
    graph, _, rest = nnx.split(_fresh(architecture)[0], STORED, ...)
    return graph, rest


def _apply(architecture, params, x, training):
    """Return logits, and the statistics of batches by name."""
    if isinstance(params, eqx.Module):
        return jax.vmap(params)(x), {}
    graph, rest = _graph(architecture)
    module = nnx.merge(graph, params, rest)
    module.train() if training else module.eval()
    y = module(x)
    # Names as those of all tensors: what else is there has other names.
    return y, pytrees.flatten(nnx.state(module, nnx.BatchStat))[1]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _infer(architecture, params, x):
    return _apply(architecture, params, x, False)[0]


_OPTIMIZER = optax.adam(optax.piecewise_constant_schedule(RATE, {STILL_FROM: 0.0}))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _step(architecture, params, state, x, y):
    def loss(params):
        logits, statistics = _apply(architecture, smh.materialize(params), x, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), statistics

    gradients, statistics = jax.grad(loss, has_aux=True)(params)
    updates, state = _OPTIMIZER.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return dataclasses.replace(params, kept={**params.kept, **statistics}), state


def make(architecture):
    """Return a plain model with fresh weights that are the same at every call."""
    return Model(architecture, _fresh(architecture)[1])


def compress(model, ratio):
    """Return a compressed copy."""
    return dataclasses.replace(model, params=smh.compress(model.params, ratio=ratio, optimizer="adam"))


def train(model, images, labels, steps):
    """Return a trained model."""
    params, state = model.params, _OPTIMIZER.init(model.params)
    for x, y in batches(images, labels, steps):
        params, state = _step(model.architecture, params, state, _inputs(model, x), y)
    return dataclasses.replace(model, params=params)


def logits(model, images):
    """Return what a model, compressed or not, computes in inference mode."""
    params = smh.materialize(model.params) if isinstance(model.params, smh.Compressed) else model.params
    return np.asarray(_infer(model.architecture, params, _inputs(model, images)))


def materialize(model):
    """Return a plain model with the weights that a compressed one generates."""
    return dataclasses.replace(model, params=smh.materialize(model.params))


def tensors(model):
    """Return all tensors of a plain model by name."""
    return {name: np.asarray(x) for name, x in pytrees.flatten(model.params)[1].items() if eqx.is_array(x)}


def put(model, values):
    """Return a plain model with other tensors."""
    treedef, named = pytrees.flatten(model.params)
    leaves = [jnp.asarray(values[name]) if eqx.is_array(x) else x for name, x in named.items()]
    return dataclasses.replace(model, params=jax.tree.unflatten(treedef, leaves))


def save(path, model):
    """Write a checkpoint, and return the digest."""
    return smh.save(path, model.params)


def load(path, model):
    """Return a compressed model with what a file holds, given a plain one."""
    return dataclasses.replace(model, params=smh.load(path, model.params))


def digest(model):
    """Return the digest of the weights that a compressed model generates."""
    return smh.digest(model.params)


def module_of(model):
    """Return what :func:`smh.porting.match` is told: the module, for parameters do not know what epsilon is."""
    return _fresh(model.architecture)[0]


def _inputs(model, images):
    if model.architecture == "mlp":
        return images.reshape(len(images), 64)
    return images[..., None] if model.architecture in IMAGES else images
