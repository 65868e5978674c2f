"""What is generated of a pytree: weight matrices that are trained, and stacks of them as one layer would start."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from smh import jax as smh

KEYS = jax.random.split(jax.random.key(0), 5)


def axes_of(params):
    """Return the axes of what is generated, by name."""
    return {tensor.name: tensor.axes for tensor in smh.plan_of(smh.compress(params, ratio=0.5)).tensors}


def whys(params):
    return {line.name: line.why for line in smh.report(smh.compress(params, ratio=0.5)).tensors if not line.generated}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return nn.Dense(16, use_bias=False)(nn.BatchNorm(use_running_average=False)(x)), None


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.conv = nnx.Linear(6, 7, rngs=rngs), nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.embed, self.norm = nnx.Embed(9, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention, self.batch = nnx.MultiHeadAttention(2, 16, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.lora, self.mine = nnx.LoRA(6, 2, 6, rngs=rngs), nnx.Cache(jnp.ones((6, 6)))


LETTERS = {
    "linear/kernel": "i o",
    "conv/kernel": "h w i o",
    "embed/embedding": "o i",
    "attention/query/kernel": "i s o",
}
TWICE = {"attention/out/kernel", "attention/key/kernel", "attention/value/kernel"}


@pytest.mark.parametrize("state", [lambda x: x, nnx.state], ids=["module", "state"])
def test_layers_of_nnx_and_stacks_of_them(state):
    single = axes_of(state(Layers(nnx.Rngs(0))))
    assert single.keys() == LETTERS.keys() | TWICE
    assert {name: single[name] for name in LETTERS} == LETTERS
    stack = state(nnx.vmap(lambda key: Layers(nnx.Rngs(key)), in_axes=0, out_axes=0)(KEYS))
    assert axes_of(stack) == {name: f"s {axes}" for name, axes in single.items()}
    assert {"batch/mean", "mine", "lora/lora_a", "norm/scale"} < whys(stack).keys()


def test_a_stack_axis_of_nnx_that_is_not_the_first():
    stack = nnx.vmap(lambda key: nnx.Linear(6, 7, rngs=nnx.Rngs(key)), in_axes=0, out_axes=1)(KEYS)
    assert axes_of(stack) == {"kernel": "i s o"}


def test_nn_scan_and_collections():
    x = jnp.ones((2, 5, 16))
    single = Block().init(jax.random.key(0), x, None)
    scan = nn.scan(Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=4)
    stack = scan().init(jax.random.key(0), x, None)
    assert len(axes_of(single)) == 5
    assert all(axes[0] == "s" for axes in axes_of(stack).values())
    assert axes_of(stack).keys() == axes_of(single).keys()
    assert whys(stack)["batch_stats/BatchNorm_0/mean"] == "it is of the collection 'batch_stats', not of 'params'"
    scales = [
        {t.name: t.initial_scale for t in smh.plan_of(smh.compress(p, ratio=0.5)).tensors} for p in (single, stack)
    ]
    assert scales[0] == scales[1]


class Warm(nn.Module):
    """A layer with vectors whose names tell nothing."""

    @nn.compact
    def __call__(self, x, _):
        for name, shape in {"temp": (16,), "row": (1, 16), "rows": (1, 1, 16)}.items():
            x = x * self.param(name, nn.initializers.normal(), shape).reshape(16)
        return nn.Dense(16)(x), None


class WarmNnx(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.temp = nnx.Linear(16, 16, rngs=rngs), nnx.Param(rngs.params.normal((16,)))


class WarmEquinox(eqx.Module):
    fc: eqx.nn.Linear
    temp: jax.Array

    def __init__(self, key):
        self.fc, self.temp = eqx.nn.Linear(16, 16, key=key), jax.random.normal(key, (1, 16))


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_vectors_without_known_names_keep_their_bits_in_stacks(library):
    if library == "linen":
        scan = nn.scan(Warm, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        params = scan().init(KEYS[0], jnp.ones((2, 16)), None)
    elif library == "nnx":
        params = nnx.state(nnx.vmap(lambda key: WarmNnx(nnx.Rngs(key)), in_axes=0, out_axes=0)(KEYS))
    else:
        params = eqx.filter(eqx.filter_vmap(WarmEquinox)(KEYS), eqx.is_array)
    made = smh.compress(params, ratio=0.5)
    assert [tensor.axes[0] for tensor in smh.plan_of(made).tensors] == ["s"]
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(smh.materialize(made)), strict=True))
    differ = [x.shape for x, y in pairs if not np.array_equal(x, y)]
    assert [len(shape) for shape in differ] == [3]  # only the matrices


def test_states_of_training():
    params = Block().init(jax.random.key(0), jnp.ones((2, 5, 16)), None)["params"]
    tx = optax.adam(0.1)
    names = set(axes_of(params))
    assert set(axes_of(TrainState.create(apply_fn=None, params=params, tx=tx))) == {f"params/{x}" for x in names}
    assert set(axes_of([params, tx.init(params)])) == {f"0/{x}" for x in names}


def test_layers_of_equinox_and_stacks_of_them():
    def make(key):
        return [
            eqx.nn.Linear(6, 7, key=key),
            eqx.nn.Conv2d(3, 5, 3, key=key),
            eqx.nn.Embedding(5, 6, key=key),
            eqx.nn.GRUCell(3, 4, key=key),
            eqx.nn.LayerNorm((3, 4, 5)),
        ]

    single = axes_of(eqx.filter(make(KEYS[0]), eqx.is_array))
    wanted = {"0/weight": "o i", "1/weight": "o i h w", "2/weight": "o i", "3/weight_ih": "o i", "3/weight_hh": "o i"}
    assert single == wanted
    stack = eqx.filter(eqx.filter_vmap(make)(KEYS), eqx.is_array)
    assert axes_of(stack) == {name: f"s {axes}" for name, axes in wanted.items()}


def test_stacks_by_the_names_of_haiku_and_nested_ones():
    ones = jnp.ones
    stack = {"layer_stack/linear": {"w": ones((4, 8, 6)), "b": ones((4, 6))}}
    stack["layer_stack/norm"] = {"scale": ones((4, 8)), "offset": ones((4, 8))}
    assert axes_of({**stack, "out": {"w": ones((8, 1)), "b": ones((1,))}}) == {
        "layer_stack/linear/w": "s i o",
        "out/w": "i o",
    }
    experts = {"experts": {"kernel": ones((3, 4, 8, 7)), "bias": ones((3, 4, 7))}, "norm": {"scale": ones((3, 8))}}
    assert axes_of({"layers": experts}) == {"layers/experts/kernel": "s s i o"}
    assert axes_of({"experts": {"wi": ones((4, 8, 7))}}) == {"experts/wi": "s i o"}


@pytest.mark.parametrize("how", ["compress", "fit"])
def test_what_is_no_matrix_keeps_its_bits(how):
    draw = np.random.default_rng(0).standard_normal
    params = {"norm": {"scale": draw((4, 32)), "bias": draw((4, 32))}, "kernel": draw((4, 32, 32))}
    params["token"] = draw((1, 1, 32))
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), params)
    made = smh.compress(params, ratio=0.2) if how == "compress" else smh.fit(params, ratio=0.9)[0]
    after = smh.materialize(made)
    assert not np.array_equal(after["kernel"], params["kernel"])
    del params["kernel"], after["kernel"]
    same = jax.tree.map(
        lambda x, y: np.array_equal(np.asarray(x).view("uint32"), np.asarray(y).view("uint32")), params, after
    )
    assert all(jax.tree.leaves(same))


def test_traced_parameters_can_be_compressed():
    shapes = jax.eval_shape(lambda p: smh.compress(p, ratio=0.5), {"kernel": jnp.ones((8, 8))})
    assert set(shapes.variables) == {"pool/left", "pool/right", "scale/kernel"}


class Heads(nn.Module):
    """Attention with names of its own and without biases; ``out`` takes the heads if there is one."""

    out: bool

    @nn.compact
    def __call__(self, x):
        one, two = (nn.DenseGeneral((2, 8), use_bias=False, name=name)(x) for name in ("one", "two"))
        y = nn.relu(one * two)
        return nn.DenseGeneral(16, axis=(-2, -1), use_bias=False, name="out")(y) if self.out else y


def test_heads_without_names_and_biases_are_told_by_what_takes_them():
    params = Heads(True).init(KEYS[0], jnp.ones((3, 16)))
    axes = axes_of(params)
    assert axes["params/one/kernel"] == axes["params/two/kernel"] == "i s o"


def test_heads_that_nothing_tells_are_asked_about(recwarn):
    params = Heads(False).init(KEYS[0], jnp.ones((3, 16)))
    stated = {"params/one/kernel": "i s o", "*/two/kernel": "w i o"}
    plan = smh.plan_of(smh.compress(params, ratio=0.5, axes=stated))
    assert {t.name: t.axes for t in plan.tensors} == {"params/one/kernel": "i s o", "params/two/kernel": "w i o"}
    conv = nn.Conv(16, (3,), use_bias=False).init(KEYS[0], jnp.ones((2, 9, 3)))
    assert axes_of(conv) == {"params/kernel": "w i o"}
    assert not recwarn.list
    with pytest.warns(UserWarning, match="'params/two/kernel' are a guess.* 'i s o'} if it has heads") as found:
        smh.compress(params, ratio=0.5)
    assert found[0].filename == __file__
