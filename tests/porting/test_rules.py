"""The rules of porting: one layer of each kind, in every framework that has it, computes the same after a port."""

import itertools

import numpy as np
import pytest

import smh
from smh.porting import match

torch = pytest.importorskip("torch", reason="rules of porting need torch")
jax = pytest.importorskip("jax", reason="rules of porting need JAX")
pytest.importorskip("tensorflow", reason="rules of porting need TensorFlow")
eqx = pytest.importorskip("equinox", reason="rules of porting need Equinox")
nnx = pytest.importorskip("flax.nnx", reason="rules of porting need Flax")
linen = pytest.importorskip("flax.linen", reason="rules of porting need Flax")

import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
from torch import nn  # noqa: E402

from smh.backends import torch as smh_torch  # noqa: E402
from smh.backends.jax import pytrees  # noqa: E402
from tests.porting.models.faces import Jax, Keras, Torch, assert_same_outputs, carry, randomised, values  # noqa: E402

KEY = jax.random.key(0)


def rngs():
    return nnx.Rngs(0)


def each(module, x):
    """Call an Equinox module, which takes one example with its channels first."""
    return jnp.moveaxis(jax.vmap(module)(jnp.moveaxis(x, -1, 1)), 1, -1)


def scanned(module, x):
    """Run a cell of Equinox or NNX over sequences, and return all outputs."""
    size = next(s for n, s in Jax(module).tensors().items() if "hh" in n or n in ("dense_h/kernel", "hi/kernel")).shape
    hidden = min(size)

    def one(sequence):
        state = jnp.zeros(hidden)
        outputs = []
        carry = (state, state)
        for step in sequence:
            if isinstance(module, nnx.Module):
                carry, y = module(carry if "LSTM" in type(module).__name__ else carry[0], step)
                carry = carry if isinstance(carry, tuple) else (carry, carry)
            elif "LSTM" in type(module).__name__:
                carry = module(step, carry)
                y = carry[0]
            else:
                y = module(step, carry[0])
                carry = (y, y)
            outputs.append(y)
        return jnp.stack(outputs)

    return jnp.stack([one(sequence) for sequence in x])


L = keras.layers
CASES = {
    "dense": lambda: (
        (values(2, 5),),
        Torch(nn.Sequential(nn.Linear(5, 4))),
        Keras((5,), L.Dense(4)),
        Jax(nnx.Linear(5, 4, rngs=rngs())),
        Jax(eqx.nn.Linear(5, 4, key=KEY), lambda m, x: jax.vmap(m)(x)),
    ),
    "conv1d": lambda: (
        (values(2, 7, 4),),
        Torch(nn.Sequential(nn.Conv1d(4, 6, 3, padding=1))),
        Keras((7, 4), L.Conv1D(6, 3, padding="same")),
        Jax(nnx.Conv(4, 6, (3,), rngs=rngs())),
        Jax(eqx.nn.Conv1d(4, 6, 3, padding=1, key=KEY), each),
    ),
    "conv2d": lambda: (
        (values(2, 6, 5, 3),),
        Torch(nn.Sequential(nn.Conv2d(3, 4, (2, 3)))),
        Keras((6, 5, 3), L.Conv2D(4, (2, 3))),
        Jax(nnx.Conv(3, 4, (2, 3), padding="VALID", rngs=rngs())),
        Jax(eqx.nn.Conv2d(3, 4, (2, 3), key=KEY), each),
    ),
    "conv3d": lambda: (
        (values(1, 4, 5, 4, 2),),
        Torch(nn.Sequential(nn.Conv3d(2, 3, (2, 3, 1)))),
        Keras((4, 5, 4, 2), L.Conv3D(3, (2, 3, 1))),
        Jax(nnx.Conv(2, 3, (2, 3, 1), padding="VALID", rngs=rngs())),
        Jax(eqx.nn.Conv3d(2, 3, (2, 3, 1), key=KEY), each),
    ),
    "grouped": lambda: (
        (values(2, 6, 5, 4),),
        Torch(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))),
        Keras((6, 5, 4), L.Conv2D(6, 3, groups=2)),
        Jax(nnx.Conv(4, 6, (3, 3), feature_group_count=2, padding="VALID", rngs=rngs())),
        Jax(eqx.nn.Conv2d(4, 6, 3, groups=2, key=KEY), each),
    ),
    "depthwise": lambda: (
        (values(2, 6, 5, 3),),
        Torch(nn.Sequential(nn.Conv2d(3, 6, (3, 2), groups=3))),
        Keras((6, 5, 3), L.DepthwiseConv2D((3, 2), depth_multiplier=2)),
        Jax(nnx.Conv(3, 6, (3, 2), feature_group_count=3, padding="VALID", rngs=rngs())),
        Jax(eqx.nn.Conv2d(3, 6, (3, 2), groups=3, key=KEY), each),
    ),
    "depthwise1d": lambda: (
        (values(2, 7, 3),),
        Torch(nn.Sequential(nn.Conv1d(3, 6, 2, groups=3))),
        Keras((7, 3), L.DepthwiseConv1D(2, depth_multiplier=2)),
        Jax(nnx.Conv(3, 6, (2,), feature_group_count=3, padding="VALID", rngs=rngs())),
    ),
    "separable": lambda: (
        (values(2, 6, 5, 3),),
        Torch(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 5, 1))),
        Keras((6, 5, 3), L.SeparableConv2D(5, 3, depth_multiplier=2)),
    ),
    "transposed1d": lambda: (
        (values(2, 4, 3),),
        Torch(nn.Sequential(nn.ConvTranspose1d(3, 2, 3, stride=2))),
        Keras((4, 3), L.Conv1DTranspose(2, 3, strides=2)),
        Jax(nnx.ConvTranspose(3, 2, (3,), strides=2, padding="VALID", rngs=rngs())),
        Jax(eqx.nn.ConvTranspose1d(3, 2, 3, stride=2, key=KEY), each),
    ),
    "transposed2d": lambda: (
        (values(2, 4, 3, 3),),
        Torch(nn.Sequential(nn.ConvTranspose2d(3, 2, (2, 3), stride=2))),
        Keras((4, 3, 3), L.Conv2DTranspose(2, (2, 3), strides=2)),
        Jax(nnx.ConvTranspose(3, 2, (2, 3), strides=(2, 2), padding=[(1, 1), (2, 2)], rngs=rngs())),
        Jax(eqx.nn.ConvTranspose2d(3, 2, (2, 3), stride=2, key=KEY), each),
    ),
    "transposed, kernel too": lambda: (
        (values(2, 4, 3, 3),),
        Torch(nn.Sequential(nn.ConvTranspose2d(3, 2, 3, stride=2))),
        Jax(nnx.ConvTranspose(3, 2, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=rngs())),
    ),
    "transposed in groups": lambda: (
        (values(2, 4, 3, 4),),
        Torch(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2))),
        Jax(eqx.nn.ConvTranspose2d(4, 6, 3, groups=2, key=KEY), each),
    ),
    "embedding": lambda: (
        (np.array([[1, 3, 0]], dtype=np.int32),),
        Torch(nn.Sequential(nn.Embedding(5, 4)), images=False),
        Keras((3,), L.Embedding(5, 4), dtype="int32"),
        Jax(nnx.Embed(5, 4, rngs=rngs())),
        Jax(eqx.nn.Embedding(5, 4, key=KEY), lambda m, x: jax.vmap(jax.vmap(m))(x)),
    ),
    "batch norm": lambda: (
        (values(2, 4, 3, 5),),
        Torch(nn.Sequential(nn.BatchNorm2d(5, eps=1e-3, momentum=0.05))),
        Keras((4, 3, 5), L.BatchNormalization(epsilon=1e-3, momentum=0.95)),
        Jax(nnx.BatchNorm(5, epsilon=1e-3, momentum=0.95, use_running_average=True, rngs=rngs())),
    ),
    "layer norm": lambda: (
        (values(2, 4, 5),),
        Torch(nn.Sequential(nn.LayerNorm(5, eps=1e-4)), images=False),
        Keras((4, 5), L.LayerNormalization(epsilon=1e-4)),
        Jax(nnx.LayerNorm(5, epsilon=1e-4, rngs=rngs())),
        Jax(eqx.nn.LayerNorm(5, eps=1e-4), lambda m, x: jax.vmap(jax.vmap(m))(x)),
    ),
    "group norm": lambda: (
        (values(2, 4, 3, 6),),
        Torch(nn.Sequential(nn.GroupNorm(2, 6, eps=1e-4))),
        Keras((4, 3, 6), L.GroupNormalization(2, epsilon=1e-4)),
        Jax(nnx.GroupNorm(6, num_groups=2, epsilon=1e-4, rngs=rngs())),
        Jax(eqx.nn.GroupNorm(2, 6, eps=1e-4), each),
    ),
    "rms norm": lambda: (
        (values(2, 5),),
        Torch(nn.Sequential(nn.RMSNorm(5, eps=1e-4))),
        Keras((5,), L.RMSNormalization(epsilon=1e-4)),
        Jax(nnx.RMSNorm(5, epsilon=1e-4, rngs=rngs())),
    ),
    "gru": lambda: (
        (values(2, 6, 4),),
        Torch(nn.GRU(4, 3, batch_first=True), images=False),
        Keras((6, 4), L.GRU(3, return_sequences=True)),
    ),
    "gru without hidden bias": lambda: (
        (values(2, 6, 4),),
        Jax(nnx.GRUCell(4, 3, rngs=rngs()), scanned),
        Torch(nn.GRU(4, 3, batch_first=True), images=False),
        Keras((6, 4), L.GRU(3, return_sequences=True)),
    ),
    "gru without bias": lambda: (
        (values(2, 6, 4),),
        Torch(nn.GRU(4, 3, batch_first=True, bias=False), images=False),
        Keras((6, 4), L.GRU(3, return_sequences=True, use_bias=False)),
        Jax(eqx.nn.GRUCell(4, 3, use_bias=False, key=KEY), scanned),
    ),
    "lstm": lambda: (
        (values(2, 6, 4),),
        Torch(nn.LSTM(4, 3, batch_first=True), images=False),
        Keras((6, 4), L.LSTM(3, return_sequences=True)),
        Jax(nnx.OptimizedLSTMCell(4, 3, rngs=rngs()), scanned),
        Jax(eqx.nn.LSTMCell(4, 3, key=KEY), scanned),
    ),
    "lstm with separate gates": lambda: (
        (values(2, 6, 4),),
        Torch(nn.LSTM(4, 3, batch_first=True), images=False),
        Jax(nnx.LSTMCell(4, 3, rngs=rngs()), scanned),
        Jax(eqx.nn.LSTMCell(4, 3, key=KEY), scanned),
    ),
    "rnn": lambda: (
        (values(2, 6, 4),),
        Torch(nn.RNN(4, 3, batch_first=True), images=False),
        Keras((6, 4), L.SimpleRNN(3, return_sequences=True)),
    ),
}
ONE_WAY = {"gru without hidden bias"}  # from the first to the others


@pytest.mark.parametrize("name", CASES)
def test_a_layer_computes_the_same_after_a_port(name):
    inputs, *models = CASES[name]()
    for source, target in itertools.permutations(models, 2):
        if name in ONE_WAY and source is not models[0]:
            continue
        randomised(source)
        found = match(source.model, target.model)
        assert not found.notes
        carry(source, target, found.mapping)
        assert_same_outputs(source, target, inputs)


class Linen:
    """A recurrent cell of Flax Linen, run over sequences."""

    def __init__(self, cell):
        self.cell, self.start = cell, jnp.zeros((2, 3))
        self.start = (self.start, self.start) if "LSTM" in type(cell).__name__ else self.start
        self.model = cell.init(KEY, self.start, jnp.zeros((2, 4)))

    def tensors(self):
        return {name: np.asarray(x) for name, x in pytrees.flatten(self.model)[1].items()}

    def put(self, tensors):
        treedef, named = pytrees.flatten(self.model)
        self.model = jax.tree.unflatten(treedef, [tensors[name] for name in named])

    def __call__(self, x):
        carry, outputs = self.start, []
        for k in range(x.shape[1]):
            carry, y = self.cell.apply(self.model, carry, x[:, k])
            outputs.append(y)
        return np.stack(outputs, axis=1)


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell", "GRUCell"])
def test_cells_of_flax_linen(name):
    flax = Linen(getattr(linen, name)(3))
    module = Torch((nn.GRU if name == "GRUCell" else nn.LSTM)(4, 3, batch_first=True), images=False)
    for source, target in ((module, flax), (flax, module)):
        randomised(source)
        carry(source, target, match(source.model, target.model).mapping)
        assert_same_outputs(source, target, (values(2, 3, 4),))


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_gates_that_lie_side_by_side_are_not_cut(cell):
    stack = Keras((6, 4), L.LSTM(3)).model
    target = nnx.LSTMCell(4, 3, rngs=rngs()) if cell is nnx.OptimizedLSTMCell else stack
    source = cell(4, 3, rngs=rngs())
    message = "has a matrix for each gate, 8 in all, and .* holds its gates side by side, where it cannot be cut"
    for one, other in ((source, target), (target, source)):
        with pytest.raises(smh.PortError, match=message):
            _ = match(one, other).mapping


def test_a_generated_matrix_is_not_cut_into_gates(tmp_path):
    model = smh_torch.compress(nn.LSTM(8, 8), ratio=0.5)
    smh_torch.save(tmp_path / "lstm.safetensors", model)
    mapping = match(model, nnx.LSTMCell(8, 8, rngs=rngs())).mapping
    with pytest.raises(smh.PortError, match="'weight_ih_l0' is generated and must become one whole tensor"):
        smh.port(smh.load(tmp_path / "lstm.safetensors"), mapping)
