"""What a match makes of models of different frameworks: structure, settings, packed attentions, compressed models."""

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from smh.porting import match
from smh.porting.matching import describe

torch = pytest.importorskip("torch", reason="matches of models need torch")
jax = pytest.importorskip("jax", reason="matches of models need JAX")
pytest.importorskip("tensorflow", reason="matches of models need TensorFlow")
nnx = pytest.importorskip("flax.nnx", reason="matches of models need Flax")
eqx = pytest.importorskip("equinox", reason="matches of models need Equinox")

import keras  # noqa: E402
from torch import nn  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends import tensorflow as smh_tf  # noqa: E402
from smh.backends import torch as smh_torch  # noqa: E402
from smh.backends.tensorflow import keras_tensors  # noqa: E402

L = keras.layers
WIDTH, HEADS = 8, 2
PARTS = (nnx.Param, nnx.BatchStat)


class TorchBlock(nn.Module):
    """A transformer as PyTorch has it, its three input projections in one parameter."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.block(x + self.position).mean(1))


class FlaxBlock(nnx.Module):
    """The same in Flax."""

    def __init__(self):
        r = nnx.Rngs(0)
        self.position = nnx.Param(jax.numpy.zeros((5, WIDTH)))
        self.self_attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=r)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=r)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=r)
        self.linear1 = nnx.Linear(WIDTH, 12, rngs=r)
        self.linear2 = nnx.Linear(12, WIDTH, rngs=r)
        self.head = nnx.Linear(WIDTH, 3, rngs=r)

    def __call__(self, x):
        x = x + self.position
        x = self.norm1(x + self.self_attn(x))
        x = self.norm2(x + self.linear2(nnx.relu(self.linear1(x))))
        return self.head(x.mean(1))


class Position(L.Layer):
    """Adds a position embedding."""

    def build(self, shape):
        self.position = self.add_weight(shape=tuple(shape[1:]), name="position")

    def call(self, x):
        return x + self.position


def keras_block():
    inputs = keras.Input((5, WIDTH))
    x = Position(name="embedding")(inputs)
    attention = L.MultiHeadAttention(HEADS, WIDTH // HEADS, name="self_attn")
    x = L.LayerNormalization(epsilon=1e-5, name="norm1")(x + attention(x, x))
    y = L.Dense(WIDTH, name="linear2")(L.Dense(12, activation="relu", name="linear1")(x))
    x = L.LayerNormalization(epsilon=1e-5, name="norm2")(x + y)
    return keras.Model(inputs, L.Dense(3, name="head")(keras.ops.mean(x, axis=1)))


def x_of():
    return np.random.default_rng(0).normal(size=(4, 5, WIDTH)).astype(np.float32)


def test_a_packed_attention_becomes_three_projections_and_back(tmp_path):
    torch.manual_seed(0)
    model = smh_torch.compress(TorchBlock(), ratio=0.3).eval()
    path = tmp_path / "torch.safetensors"
    digest = smh_torch.save(path, model)
    with torch.no_grad():
        expected = model(torch.from_numpy(x_of())).numpy()
    for name, other in (("jax", FlaxBlock()), ("keras", keras_block())):
        found = match(model, other)
        assert not found.notes
        ported = smh.port(smh.load(path), found.mapping)
        assert smh.save(tmp_path / name, ported.plan, ported.variables, ported.dense) == digest
        if name == "jax":
            loaded = smh_jax.load(tmp_path / name, nnx.state(other, PARTS))
            nnx.update(other, smh_jax.materialize(loaded))
            got = np.asarray(other(x_of()))
            again = smh.port(smh.load(tmp_path / name), match(loaded, TorchBlock()).mapping)
        else:
            loaded = smh_tf.load(tmp_path / name, other)
            assert smh_tf.digest(loaded) == digest
            got = np.asarray(loaded(x_of()))
            again = smh.port(smh.load(tmp_path / name), match(loaded, TorchBlock()).mapping)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        smh.save(tmp_path / "back", again.plan, again.variables, again.dense)
        assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_plain_attentions_are_mapped_both_ways():
    plain = TorchBlock()
    compressed = smh_torch.compress(plain, ratio=0.5, include=["head.weight"])
    names = set(match(compressed, FlaxBlock()).mapping.source_shapes)
    assert "block.self_attn.in_proj_weight" in names
    mapping = match(compressed, FlaxBlock()).mapping
    tensors = {name: x.detach().numpy() for name, x in smh_torch.materialize_(compressed).state_dict().items()}
    back = mapping.inverse().apply(mapping.apply(tensors))
    for name, x in tensors.items():
        assert_same_bits(back[name], x, name)


@pytest.mark.parametrize(
    ("plain", "compress"),
    [
        (TorchBlock, lambda model: smh_torch.compress(model, ratio=0.3)),
        (keras_block, lambda model: smh_tf.compress(model, ratio=0.3)),
        (FlaxBlock, lambda model: smh_jax.compress(model, ratio=0.3)),
        (
            lambda: eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0)),
            lambda model: smh_jax.compress(model, ratio=0.3),
        ),
    ],
)
def test_compressed_models_have_the_structure_of_plain_ones(plain, compress):
    model = plain()
    one, other = describe(model), describe(compress(model))
    assert one.channels_last == other.channels_last
    # Flax sorts the attributes of its modules, and knows no other order any more.
    assert sorted(one.layers, key=lambda layer: layer.name) == sorted(other.layers, key=lambda layer: layer.name)
    assert one == other or plain is FlaxBlock


def flat_models():
    """Return a network with a flattened image in every framework, Equinox with channels first."""

    class Torch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.fc = nn.Linear(3 * 2 * 4, 5)

    class Flax(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
            self.fc = nnx.Linear(3 * 2 * 4, 5, rngs=nnx.Rngs(0))

    sequential = keras.Sequential([keras.Input((4, 6, 1)), L.Conv2D(3, 3), L.Flatten(), L.Dropout(0.1), L.Dense(5)])
    key = jax.random.key(0)
    equinox = {"conv": eqx.nn.Conv2d(1, 3, 3, key=key), "fc": eqx.nn.Linear(24, 5, key=key)}
    return {"torch": Torch(), "flax": Flax(), "keras": sequential, "equinox": equinox}


def test_flattened_images():
    models = flat_models()
    first = {"torch", "equinox"}
    image = np.arange(24).reshape(3, 2, 4)
    weight = {"c": np.stack([image.ravel()] * 5), "last": np.stack([image.transpose(1, 2, 0).ravel()] * 5)}
    for one, source in models.items():
        for other, target in models.items():
            if one == other:
                continue
            found = match(source, target)
            told = (one in first) == (other in first) or "keras" in (one, other)
            assert bool(found.ambiguous) != told, (one, other)
            if not told:
                assert "flatten={'fc': (3, height, width)}" in str(found)
                found = match(source, target, flatten={"fc": (3, 2, 4)})
                assert match(source, target, flatten={"fc": None}).mapping != found.mapping
            (entry,) = [e for e in found.mapping.tensors.values() if 24 in e.shape]
            own = weight["c" if one in first else "last"]
            own = own if one in first else np.ascontiguousarray(own.T)
            expected = weight["c" if other in first else "last"]
            got = entry.read({entry.sources[0].name: own})
            assert np.array_equal(got if other in first else got.T, expected), (one, other)
    with pytest.raises(smh.PortError, match="does not have the 24 inputs"):
        _ = match(models["torch"], models["flax"], flatten={"fc": (3, 3, 4)}).mapping


@pytest.mark.parametrize("order", [["conv", "fc"], ["fc", "conv"]])
def test_flattened_images_are_seen_in_any_order(order):
    made = {"conv": lambda: nn.Conv2d(1, 3, 3), "fc": lambda: nn.Linear(24, 5)}
    module = nn.ModuleDict({name: made[name]() for name in order})
    kernels = {"conv": {"kernel": np.ones((3, 3, 1, 3), np.float32), "bias": np.ones(3, np.float32)}}
    kernels |= {"fc": {"kernel": np.ones((24, 5), np.float32), "bias": np.ones(5, np.float32)}}
    assert [case.targets for case in match(module, kernels).ambiguous] == [("fc",)]
    pooled = nn.ModuleDict({"conv": nn.Conv2d(1, 3, 3), "a": nn.Linear(3, 24), "fc": nn.Linear(24, 5)})
    more = {"a": {"kernel": np.ones((3, 24), np.float32), "bias": np.ones(24, np.float32)}}
    kernels = {"conv": kernels["conv"], **more, "fc": kernels["fc"]}
    assert not match(pooled, kernels).ambiguous  # another layer gives these features


def test_pooled_images_are_no_flattened_ones():
    module = nn.ModuleDict({"stem": nn.Conv2d(1, 3, 3), "conv": nn.Conv2d(3, 24, 3), "fc": nn.Linear(24, 5)})
    kernels = {
        name: {"kernel": np.ones(shape, np.float32), "bias": np.ones(shape[-1:], np.float32)}
        for name, shape in {"conv": (3, 3, 3, 24), "stem": (3, 3, 1, 3), "fc": (24, 5)}.items()
    }
    assert not match(module, kernels).ambiguous
    assert not match(kernels, module).ambiguous


def test_a_state_of_flax_has_lost_the_order_of_its_layers():
    class Flax(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.down = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    module = nn.ModuleDict({"stem": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    assert match(module, Flax(), in_order=True).mapping.tensors["up/kernel"].sources[0].name == "stem.weight"
    for other in (nnx.state(Flax(), PARTS), nnx.clone(Flax()), smh_jax.compress(Flax(), ratio=0.9)):
        with pytest.raises(smh.PortError, match="the target lists .* in alphabetical order"):
            _ = match(module, other, in_order=True).mapping


def test_biases_are_kept_whatever_their_shape():
    for plan in (
        smh_jax.plan_of(smh_jax.compress(nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), ratio=0.5)),
        smh_jax.plan_of(smh_jax.compress(eqx.nn.Conv2d(4, 9, 3, key=jax.random.key(0)), ratio=0.5)),
        smh_tf.plan_of(smh_tf.compress(keras.Sequential([keras.Input((6, 4)), L.GRU(3)]), ratio=0.9)),
    ):
        names = [tensor.name for tensor in plan.tensors]
        assert names
        assert not [name for name in names if "bias" in name]


def test_settings_are_compared_and_carried():
    module = nn.Sequential(nn.BatchNorm2d(4))
    model = keras.Sequential([keras.Input((2, 2, 4)), L.BatchNormalization()])
    found = match(module, model)
    assert len(found.notes) == 2
    assert "epsilon=0.001" in found.notes[0]
    assert "epsilon=1e-05 there" in found.notes[0]
    assert "momentum=0.9 there" in found.notes[1]
    (settings,) = found.mapping.settings.values()
    assert settings == {"epsilon": pytest.approx(1e-5), "momentum": 0.9}
    same = keras.Sequential([keras.Input((2, 2, 4)), L.BatchNormalization(**settings)])
    assert not match(module, same).notes
    assert "note:" in str(found)


def test_statistics_and_counters():
    module = nn.Sequential(nn.BatchNorm2d(4))
    target = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    there = match(module, target).mapping
    assert "carried/0.num_batches_tracked" in there.tensors
    back = match(target, module).mapping
    source = back.tensors["0.num_batches_tracked"].sources[0]
    assert source.default == (0.0, "int64")
    assert there.then(back).tensors["0.num_batches_tracked"].sources[0].name == "0.num_batches_tracked"


def test_what_other_frameworks_do_not_know_is_carried_or_zero():
    class Flax(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    module = nn.Sequential(nn.Linear(4, 3))
    state = nnx.state(Flax())
    there = match(state, module).mapping
    assert {"carried/drop/rngs/key", "carried/drop/rngs/count"} < set(there.tensors)
    assert there.shapes["carried/drop/rngs/key"] == (2,)
    back = match(module, state).mapping
    assert back.tensors["drop/rngs/key"].sources[0].default == (0.0, "uint32")
    assert set(match(module, Flax()).mapping.tensors) == {"fc/kernel", "fc/bias"}


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (lambda: nn.GRU(4, 3), lambda: eqx.nn.GRUCell(4, 3, key=jax.random.key(0)), "those of no other framework"),
        (
            lambda: nn.GRU(4, 3),
            lambda: keras.Sequential([keras.Input((6, 4)), L.GRU(3, reset_after=False)]),
            "computes something else",
        ),
        (lambda: nn.LSTM(4, 3, proj_size=2), lambda: keras.Sequential([keras.Input((6, 4)), L.LSTM(3)]), "proj_size"),
        (lambda: nn.GRU(4, 3), lambda: nnx.GRUCell(4, 3, rngs=nnx.Rngs(0)), "does not use these"),
        (lambda: nn.Linear(4, 3), lambda: keras.Sequential([L.Dense(3)]), "built keras.Model is needed"),
    ],
)
def test_what_cannot_be_matched_says_why(source, target, message):
    with pytest.raises(smh.PortError, match=message):
        _ = match(source(), target()).mapping


def test_layers_of_several_directions():
    module = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)
    names = [layer.name for layer in describe(module).layers]
    assert len(names) == 4
    stack = keras.Sequential(
        [
            keras.Input((6, 4)),
            L.Bidirectional(L.GRU(3, return_sequences=True), name="first"),
            L.Bidirectional(L.GRU(3, return_sequences=True), name="second"),
        ]
    )
    cells = [layer.name for layer in describe(stack).layers]
    mapping = match(module, stack, hints=dict(zip(cells, names, strict=True))).mapping
    tensors = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    by_name = dict(zip(keras_tensors.names_of(stack), stack.weights, strict=True))
    for name, x in mapping.apply(tensors).items():
        by_name[name].assign(x)
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    expected = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(np.asarray(stack(x)), expected, rtol=1e-4, atol=1e-6)


def test_tied_weights_are_one_tensor():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embedding.weight

    assert list(describe(Tied()).shapes) == ["embedding.weight"]
    table = jax.numpy.ones((7, 4))
    assert list(describe({"embedding": {"embedding": table}, "out": {"weight": table}}).shapes) == [
        "embedding/embedding"
    ]
    mapping = match(Tied(), {"e": {"embedding": np.ones((7, 4), np.float32)}}).mapping
    assert mapping.tensors["e/embedding"].sources[0].name == "embedding.weight"
