"""Small models in the ways in which JAX users define them: Flax Linen and NNX, Equinox, Haiku's and plain pytrees.

Each function takes a seed and returns parameters, what computes an output with them, and a batch.
"""

import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx


def noise(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), "float32")


def tokens(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 40, shape), "int32")


def scaled(rng, *shape):
    """Return a weight whose inputs are the axis before the last."""
    return jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, "float32")


def linen_cnn(seed):
    """Batch norm, with statistics in a collection of their own."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            for width in (8, 16):
                x = linen.Conv(width, (3, 3), use_bias=False)(x)
                x = linen.relu(linen.BatchNorm(use_running_average=False)(x))
                x = linen.avg_pool(x, (2, 2), (2, 2))
            return linen.Dense(4)(linen.Dense(32)(x.reshape(len(x), -1)))

    x = noise(4, 8, 8, 3)
    net = Net()
    return jax.jit(net.init)(jax.random.key(seed), x), lambda p, x: net.apply(p, x, mutable=["batch_stats"])[0], x


class Block(linen.Module):
    """A block of a transformer, as ``nn.scan`` takes it."""

    width: int = 32

    @linen.compact
    def __call__(self, x, _):
        h = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(4)(h, h)
        h = linen.gelu(linen.Dense(2 * self.width)(linen.LayerNorm()(x)))
        return x + linen.Dense(self.width)(h), None


def linen_scan(seed):
    """A language model whose layers are stacked along the first axis of their parameters, with tied embeddings."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, ids):
            table = linen.Embed(40, 32)
            stack = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return table.attend(linen.LayerNorm()(stack()(table(ids), None)[0]))

    x = tokens(4, 6)
    net = Net()
    return jax.jit(net.init)(jax.random.key(seed), x), net.apply, x


def linen_recurrent(seed):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(4)(linen.RNN(linen.OptimizedLSTMCell(24))(x))

    x = noise(4, 5, 12)
    net = Net()
    return jax.jit(net.init)(jax.random.key(seed), x), net.apply, x


def linen_setup(seed):
    """Submodules in lists, one of them used twice, low-rank layers, group norm and weights of several axes."""

    class Net(linen.Module):
        def setup(self):
            self.blocks = [linen.DenseGeneral((4, 8)) for _ in range(2)]
            self.back = linen.DenseGeneral(32, axis=(-2, -1))
            self.norm = linen.GroupNorm(4)
            self.out = linen.WeightNorm(linen.Dense(4))

        def __call__(self, x):
            for block in self.blocks:
                x = self.norm(x + self.back(jnp.tanh(block(x))))
            return self.out(x)

    x = noise(4, 32)
    net = Net()
    return jax.jit(net.init)(jax.random.key(seed), x), net.apply, x


def nnx_vit(seed):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.norm1, self.norm2 = nnx.LayerNorm(32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.patches = nnx.Conv(3, 32, (4, 4), (4, 4), rngs=rngs)
            self.positions = nnx.Param(jax.random.normal(rngs.params(), (1, 4, 32)) * 0.02)
            self.layers = nnx.List([Layer(rngs) for _ in range(2)])
            self.head = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            x = self.patches(x).reshape(len(x), 4, 32) + self.positions
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    graph, params, rest = nnx.split(nnx.jit(lambda: Net(nnx.Rngs(seed)))(), nnx.Param, ...)
    return params, lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), noise(4, 8, 8, 3)


def nnx_stack(seed):
    """Layers that ``nnx.vmap`` creates and ``nnx.scan`` runs, and the whole state, statistics included."""

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(24, 24, rngs=rngs)
            self.norm = nnx.BatchNorm(24, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return x + jnp.tanh(self.norm(self.linear(x)))

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stacked(rngs):
        return Layer(rngs)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(40, 24, rngs=rngs)
            self.layers = stacked(rngs)
            self.out = nnx.Linear(24, 4, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x).mean(1)
            x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
            return self.out(x)

    graph, state = nnx.split(nnx.jit(lambda: Net(nnx.Rngs(seed)))())
    return state, lambda p, x: nnx.merge(graph, p, copy=True)(x), tokens(4, 6)


def equinox_conv(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 12, 3, padding=1, key=keys[0]),
            eqx.nn.GroupNorm(3, 12),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(12, 24, 3, key=keys[1]),
            eqx.nn.Lambda(jax.nn.silu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(96, 32, key=keys[2]),
            eqx.nn.LayerNorm(32),
            eqx.nn.Linear(32, 4, key=keys[3]),
        ]
    )
    return net, lambda p, x: jax.vmap(p)(x), noise(4, 3, 8, 8)


def equinox_stack(seed):
    """A language model with layers stacked by ``filter_vmap``, run by ``lax.scan``."""

    class Layer(eqx.Module):
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        mlp: eqx.nn.MLP

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.norm = eqx.nn.LayerNorm(24)
            self.attention = eqx.nn.MultiheadAttention(4, 24, key=one)
            self.mlp = eqx.nn.MLP(24, 24, 48, 1, key=two)

        def __call__(self, x):
            h = jax.vmap(self.norm)(x)
            return x + self.attention(h, h, h) + jax.vmap(self.mlp)(h)

    class Net(eqx.Module):
        table: eqx.nn.Embedding
        layers: Layer
        out: eqx.nn.Linear

        def __init__(self, key):
            one, two, three = jax.random.split(key, 3)
            self.table = eqx.nn.Embedding(40, 24, key=one)
            self.layers = eqx.filter_vmap(Layer)(jax.random.split(two, 3))
            self.out = eqx.nn.Linear(24, 4, key=three)

        def __call__(self, ids):
            arrays, rest = eqx.partition(self.layers, eqx.is_array)
            x = jax.lax.scan(lambda x, a: (eqx.combine(a, rest)(x), None), jax.vmap(self.table)(ids), arrays)[0]
            return self.out(x.mean(0))

    return eqx.filter_jit(Net)(jax.random.key(seed)), lambda p, x: jax.vmap(p)(x), tokens(4, 6)


def haiku_mlp(seed):
    """The names of Haiku: paths of modules, and in each of them ``w`` and ``b``."""
    rng, sizes = np.random.default_rng(seed), (20, 48, 48, 4)
    params = {
        f"mlp/~/linear_{i}": {"w": scaled(rng, *sizes[i : i + 2]), "b": jnp.zeros(sizes[i + 1])} for i in range(3)
    }
    params["mlp/~/layer_norm"] = {"scale": jnp.ones(48), "offset": jnp.zeros(48)}

    def apply(params, x):
        for i in range(3):
            layer = params[f"mlp/~/linear_{i}"]
            x = x @ layer["w"] + layer["b"]
            if not i:
                norm = params["mlp/~/layer_norm"]
                x = norm["scale"] * jax.nn.standardize(x) + norm["offset"]
            x = jax.nn.relu(x) if i < 2 else x
        return x

    return params, apply, noise(4, 20)


def haiku_stack(seed):
    """What Haiku's ``layer_stack`` makes: all parameters of a block, biases and norms too, have an axis of layers."""
    path = "net/__layer_stack_no_per_layer/block/"
    rng = np.random.default_rng(seed)
    params = {
        f"{path}linear": {"w": scaled(rng, 3, 24, 48), "b": jnp.zeros((3, 48))},
        f"{path}linear_1": {"w": scaled(rng, 3, 48, 24), "b": jnp.zeros((3, 24))},
        f"{path}layer_norm": {"scale": jnp.ones((3, 24)), "offset": jnp.zeros((3, 24))},
        "net/linear": {"w": scaled(rng, 24, 4), "b": jnp.zeros(4)},
    }

    def block(x, layer):
        norm, one, two = layer["layer_norm"], layer["linear"], layer["linear_1"]
        h = jax.nn.standardize(x) * norm["scale"] + norm["offset"]
        return x + jax.nn.gelu(h @ one["w"] + one["b"]) @ two["w"] + two["b"], None

    def apply(params, x):
        stack = {key.removeprefix(path): layer for key, layer in params.items() if key.startswith(path)}
        return jax.lax.scan(block, x, stack)[0] @ params["net/linear"]["w"] + params["net/linear"]["b"]

    return params, apply, noise(4, 24)


class Affine(typing.NamedTuple):
    weight: jax.Array
    bias: jax.Array


def plain(seed):
    """Lists, tuples and dictionaries, with numbers and functions beside arrays."""
    rng = np.random.default_rng(seed)
    layers = [Affine(scaled(rng, *sizes), jnp.zeros(sizes[1])) for sizes in ((20, 40), (40, 40), (40, 4))]
    params = {"layers": layers, "steps": 3, "activation": jnp.tanh, "gain": jnp.ones((1, 40))}

    def apply(params, x):
        *hidden, last = params["layers"]
        for layer in hidden:
            x = params["activation"](x @ layer.weight + layer.bias) * params["gain"]
        return x @ last.weight + last.bias

    return params, apply, noise(4, 20)


MODELS = {
    "linen_cnn": linen_cnn,
    "linen_scan": linen_scan,
    "linen_recurrent": linen_recurrent,
    "linen_setup": linen_setup,
    "nnx_vit": nnx_vit,
    "nnx_stack": nnx_stack,
    "equinox_conv": equinox_conv,
    "equinox_stack": equinox_stack,
    "haiku_mlp": haiku_mlp,
    "haiku_stack": haiku_stack,
    "plain": plain,
}

NO_MATRICES = {
    "equinox_stack": ("*/norm/weight",),
    "haiku_stack": ("*/b", "*/scale", "*/offset"),
    "linen_scan": ("*/scale",),
    "nnx_stack": ("*/mean", "*/var", "*/scale"),
    "plain": ("gain",),
}
"""Arrays with several axes that are no weight matrices, by the names of the report."""

STACKS = {
    "equinox_stack": {"layers/mlp/layers/1/weight": 48},
    "haiku_stack": {"*/linear_1/w": 48},
    "linen_scan": {"*/Dense_1/kernel": 64},
    "nnx_stack": {"layers/linear/kernel": 24},
    "linen_setup": {"params/blocks_0/kernel": 32, "params/back/kernel": 32},
    "nnx_vit": {"layers/0/attention/query/kernel": 32, "layers/0/attention/out/kernel": 32, "layers/0/down/kernel": 64},
}
"""How many inputs weights have that have an axis of layers or of heads."""
