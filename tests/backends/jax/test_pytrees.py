import collections
import copy
import dataclasses
import functools
import gc
import os
import pickle
import subprocess
import sys
import textwrap
from fractions import Fraction

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends.jax import models, pytrees  # noqa: E402
from smh.backends.numpy_kernels import NumpyKernels  # noqa: E402
from smh.core import generate  # noqa: E402

RESIDENCIES = ("full", "cached", "layer")
Pair = collections.namedtuple("Pair", ["kernel", "bias"])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "rest"], meta_fields=["name"])
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    rest: dict
    name: str


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value", "bias"], meta_fields=[])
@dataclasses.dataclass
class Box:
    value: jax.Array
    bias: jax.Array | None = None


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def mlp():
    return {
        "fc1": {"kernel": normal(0, 12, 20), "bias": normal(1, 20)},
        "fc2": {"kernel": normal(2, 20, 3), "bias": normal(3, 3)},
    }


def apply(params, x):
    hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]


def loss(compressed, x, y):
    return ((apply(smh_jax.materialize(compressed), x) - y) ** 2).mean()


def data():
    return normal(4, 8, 12), normal(5, 8, 3)


def host(arrays):
    return {name: np.asarray(x) for name, x in arrays.items()}


def assert_all_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, x in expected.items():
        assert_same_bits(np.asarray(actual[name]), np.asarray(x), name)


def numpy_weights(compressed):
    return smh.materialize(compressed.plan, host(compressed.variables))


def raw(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def by_name(params):
    return pytrees.flatten(params)[1]


def assert_restored(params, compressed, names):
    """The pytree is of the same kind, its weights have the bits of NumPy, and all else is untouched."""
    before, back = by_name(params), smh_jax.materialize(compressed)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert type(back) is type(params)
    weights = numpy_weights(compressed)
    assert list(weights) == names
    for name, x in by_name(back).items():
        if name in weights:
            assert isinstance(x, jax.Array)
            assert_same_bits(np.asarray(x), weights[name], name)
        elif isinstance(x, (jax.Array, np.ndarray)):
            assert x.dtype == before[name].dtype
            assert np.array_equal(raw(x), raw(before[name]))
        else:
            assert x is before[name]


TREES = {
    "dict": (mlp(), ["fc1/kernel", "fc2/kernel"]),
    "tuple": ((normal(0, 6, 5), [normal(1, 5), normal(2, 5, 4)], None), ["0", "1/1"]),
    "namedtuple": (Pair(normal(0, 6, 5), normal(1, 5)), ["kernel"]),
    "dataclass": (Layer(normal(0, 6, 5), {"value": normal(1, 4, 3), "b": normal(2, 3)}, "x"), ["kernel", "rest/value"]),
    "value": ({"a": Box(normal(0, 6, 5)), "b": Box(normal(1, 4, 3), normal(2, 3))}, ["a", "b/value"]),
    "values": ((Box(Box(normal(0, 6, 5))), Box({"value": normal(1, 4, 3)})), ["0/value", "1/value/value"]),
    "array": (normal(0, 6, 5), ["params"]),
    "numpy": ({"w": np.ones((6, 5), np.float32), "n": np.ones((2, 2))}, ["w"]),
}


@pytest.mark.parametrize(
    ("name", "residency"),
    [("dict", residency) for residency in RESIDENCIES]
    + [(name, RESIDENCIES[i % 3]) for i, name in enumerate(TREES) if name != "dict"],
)
def test_pytrees_keep_their_kind(name, residency):
    params, names = TREES[name]
    compressed = smh_jax.compress(params, ratio=0.9, residency=residency)
    assert list(compressed.variables) == list(compressed.plan.variable_shapes)
    assert_all_same_bits(compressed.variables, smh.initialize(compressed.plan))
    assert_restored(params, compressed, names)
    back = by_name(smh_jax.materialize(compressed))
    assert all(x is back[name] for name, x in by_name(params).items() if name not in names)
    if name != "numpy":  # whose float64 JAX does not take
        assert_restored(params, jax.jit(lambda c: c)(compressed), names)


def nnx_model():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 3, rngs=rngs)])
            self.norm = nnx.BatchNorm(20, use_running_average=True, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](self.dropout(self.norm(self.layers[0](x))))

    return nnx, Model(nnx.Rngs(0))


def test_flax_nnx():
    nnx, model = nnx_model()
    names = ["layers/0/kernel", "layers/1/kernel"]
    for state in (nnx.state(model), nnx.state(model, nnx.Param), model):
        assert_restored(state, smh_jax.compress(state, ratio=0.5), names)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    compressed = smh_jax.compress(params, ratio=0.5)
    x, y = data()

    @jax.jit
    @jax.grad
    def gradient(compressed, rest):
        return ((nnx.merge(graph, smh_jax.materialize(compressed), rest)(x) - y) ** 2).mean()

    gradients = gradient(compressed, rest)
    assert jax.tree.structure(gradients) == jax.tree.structure(compressed)
    assert all(g.any() for g in gradients.variables.values())


def test_flax_linen():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    from flax.core import freeze

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.relu(linen.Conv(4, (3, 3))(x)).mean((1, 2)))

    images = normal(0, 2, 8, 8, 3)
    plain = Model().init(jax.random.key(0), images)
    for params in (plain, freeze(plain)):
        compressed = smh_jax.compress(params, ratio=0.5)
        assert_restored(params, compressed, ["params/Conv_0/kernel", "params/Dense_0/kernel"])
        assert compressed.plan.tensors[0].axes == "h w i o"
        gradients = jax.grad(lambda c: (Model().apply(smh_jax.materialize(c), images) ** 2).sum())(compressed)
        assert all(g.any() for g in gradients.variables.values())


def test_equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Model(eqx.Module):
        mlp: eqx.nn.MLP
        dropout: eqx.nn.Dropout
        slope: float

        def __call__(self, x):
            return self.dropout(self.mlp(x)) * (self.slope if self.slope > 0 else 1)  # a Python number stays one

    model = Model(eqx.nn.MLP(12, 3, 20, 1, key=jax.random.key(0)), eqx.nn.Dropout(0.5, inference=True), 0.5)
    compressed = smh_jax.compress(model, ratio=0.5, axes=dict.fromkeys(EQUINOX, "o i"))
    assert_restored(model, compressed, EQUINOX)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(compressed))
    x, y = data()

    def loss(compressed):
        return ((jax.vmap(smh_jax.materialize(compressed))(x) - y) ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(compressed)
    filtered = eqx.filter_jit(eqx.filter_grad(loss))(compressed)
    assert_all_same_bits(filtered.variables, gradients.variables)
    assert jax.tree.structure(filtered) == jax.tree.structure(compressed)
    trained = eqx.apply_updates(compressed, jax.tree.map(lambda g: -0.1 * g, gradients))
    assert loss(trained) < loss(compressed)
    dynamic, static = eqx.partition(compressed, eqx.is_inexact_array)
    assert eqx.combine(dynamic, static).structure == compressed.structure


EQUINOX = ["mlp/layers/0/weight", "mlp/layers/1/weight"]


def test_constants_are_told_apart_by_type():
    def tree(flag):
        return {"w": normal(0, 6, 5), "flag": flag}

    traced = []

    @jax.jit
    def run(compressed):
        traced.append(smh_jax.materialize(compressed)["flag"])
        return compressed.variables

    for flag in (True, 1, True, 1.0, "a", None, len):
        run(smh_jax.compress(tree(flag), ratio=0.9))
    assert [type(x) for x in traced] == [bool, int, float, str, type(None), type(len)]
    with pytest.raises(smh.PlanError, match="'flag' must be an array, or hashable.*; got set"):
        smh_jax.compress(tree({1}), ratio=0.9)


@pytest.mark.parametrize(
    ("pool", "residency"),
    [("matmul", "full"), ("matmul", "cached"), (smh.pools.Sum(smh.pools.Hash(), smh.pools.Kronecker()), "layer")],
)
def test_two_steps_have_the_bits_of_numpy(residency, pool):
    """Gradients of variables are what vjp gives for the gradients of weights, by either backend."""
    x, y = data()
    compressed = smh_jax.compress(mlp(), ratio=0.5, pool=pool, residency=residency)
    gradient = jax.jit(jax.grad(loss))
    upstream = jax.jit(jax.grad(lambda params: ((apply(params, x) - y) ** 2).mean()))
    variables = host(compressed.variables)
    for _ in range(2):
        params = smh_jax.materialize(compressed)
        cotangents = {name: g for name, g in by_name(upstream(params)).items() if name.endswith("kernel")}
        gradients = gradient(compressed, x, y)
        expected = smh.vjp(compressed.plan, variables, host(cotangents))
        assert_all_same_bits(gradients.variables, expected)
        assert_all_same_bits(gradients.variables, smh_jax.vjp(compressed.plan, compressed.variables, cotangents))
        compressed = jax.tree.map(lambda p, g: p - 0.25 * g, compressed, gradients)
        variables = {name: v - np.float32(0.25) * expected[name] for name, v in variables.items()}
        assert_all_same_bits(compressed.variables, variables)
        assert_restored(smh_jax.materialize(compressed), compressed, ["fc1/kernel", "fc2/kernel"])


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_training_with_optax(residency):
    optax = pytest.importorskip("optax", reason="Optax is not installed")
    x, y = data()
    compressed = smh_jax.compress(mlp(), ratio=0.5, optimizer="adam", residency=residency)
    optimizer = optax.adam(0.01)

    def step(carry, _):
        compressed, state = carry
        value, gradients = jax.value_and_grad(loss)(compressed, x, y)
        updates, state = optimizer.update(gradients, state, compressed)
        return (optax.apply_updates(compressed, updates), state), value

    start = compressed, optimizer.init(compressed)
    (scanned, _), values = jax.jit(lambda start: jax.lax.scan(step, start, length=10))(start)
    assert values[-1] < 0.8 * values[0]
    carry, compiled = start, jax.jit(step)
    for _ in range(10):
        carry, _ = compiled(carry, None)
    assert compiled._cache_size() == 1  # a compressed pytree equals itself after a step
    assert_all_same_bits(carry[0].variables, scanned.variables)
    assert_all_same_bits(carry[0].kept, scanned.kept)
    assert jax.tree.structure(scanned) == jax.tree.structure(compressed)
    decayed = optax.adamw(0.01, mask=lambda c: jax.tree.map_with_path(lambda path, _: "pool" in str(path), c))
    jax.jit(decayed.update)(compressed, decayed.init(compressed), compressed)


def test_donation():
    x, y = data()
    step = jax.jit(lambda c: jax.tree.map(lambda p, g: p - 0.1 * g, c, jax.grad(loss)(c, x, y)), donate_argnums=0)
    compressed = smh_jax.compress(mlp(), ratio=0.5, residency="cached")
    params = smh_jax.materialize(compressed)
    after = step(compressed)
    assert all(v.is_deleted() for v in compressed.variables.values())
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        smh_jax.materialize(compressed)
    weights = by_name(smh_jax.materialize(after))
    assert (weights["fc1/kernel"] != params["fc1"]["kernel"]).any()
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(smh_jax.materialize(after))
    again = by_name(smh_jax.materialize(after))  # what was cached is gone
    assert_all_same_bits({name: again[name] for name in ("fc1/kernel", "fc2/kernel")}, numpy_weights(after))


@pytest.mark.parametrize("residency", ["cached", "layer"])  # without either, they are those of plans: see test_jax.py
def test_other_transformations(residency):
    compressed = smh_jax.compress(mlp(), ratio=0.5, residency=residency)
    cotangents = {"fc1/kernel": normal(6, 12, 20), "fc2/kernel": normal(7, 20, 3)}
    expected = smh.vjp(compressed.plan, host(compressed.variables), host(cotangents))

    def linear(compressed, data):
        weights = by_name(smh_jax.materialize(compressed))
        return sum((weights[name] * g).sum() for name, g in data.items())

    gradient = jax.grad(linear)
    batch = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), cotangents)
    found = {
        "eager": gradient(compressed, cotangents),
        "checkpoint": jax.jit(jax.grad(jax.checkpoint(linear)))(compressed, cotangents),
        "vmap": jax.tree.map(lambda g: g[0], jax.vmap(gradient, (None, 0))(compressed, batch)),
        "scan": jax.tree.map(lambda g: g[0], jax.lax.scan(lambda c, g: (c, gradient(c, g)), compressed, batch)[1]),
    }
    for gradients in found.values():
        assert_all_same_bits(gradients.variables, expected)
    stacked = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), compressed)
    kernels = jax.vmap(smh_jax.materialize)(stacked)["fc1"]["kernel"]
    for i in range(2):
        one = jax.tree.map(lambda v, i=i: v[i], stacked)
        assert_same_bits(np.asarray(kernels[i]), numpy_weights(one)["fc1/kernel"])
    shapes = jax.eval_shape(lambda: smh_jax.materialize(smh_jax.compress(mlp(), ratio=0.5, residency=residency)))
    assert shapes["fc1"]["kernel"].shape == (12, 20)


@pytest.mark.parametrize("residency", ["cached", "layer"])
def test_a_scale_whose_weights_are_unused_has_no_gradient_even_where_these_are_infinite(residency):
    compressed = smh_jax.compress(mlp(), ratio=0.5, residency=residency)
    left = compressed.variables["pool/left"].at[0, 0].set(np.inf)  # fc1 reads it, fc2 does not
    compressed = dataclasses.replace(compressed, variables={**compressed.variables, "pool/left": left})
    gradients = jax.grad(lambda c: smh_jax.materialize(c)["fc2"]["kernel"].sum())(compressed).variables
    expected = smh.vjp(compressed.plan, host(compressed.variables), {"fc2/kernel": np.ones((20, 3), np.float32)})
    assert gradients["scale/fc1/kernel"] == 0
    assert_all_same_bits(gradients, expected)
    unused = jax.grad(lambda c: smh_jax.materialize(c)["fc2"]["bias"].sum())(compressed).variables
    assert not any(g.any() for g in unused.values())


def test_residencies_can_be_changed():
    compressed = smh_jax.compress(mlp(), ratio=0.5)
    weights = numpy_weights(compressed)
    for residency in RESIDENCIES:
        other = compressed.with_residency(residency)
        assert (other.residency, compressed.residency) == (residency, "full")
        assert smh_jax.report(other).residency == residency
        found = by_name(smh_jax.materialize(other))
        assert_all_same_bits({name: found[name] for name in weights}, weights)
    with pytest.raises(smh.PlanError, match="residency must be one of 'full', 'cached', 'layer'; got 'lazy'"):
        compressed.with_residency("lazy")


def kernel_of(compressed):
    return smh_jax.materialize(compressed)["fc1"]["kernel"]


def test_cached_weights_live_as_long_as_their_variables():
    models._cache.clear()
    compressed = smh_jax.compress(mlp(), ratio=0.5, residency="cached")
    first = smh_jax.materialize(compressed)
    assert kernel_of(compressed) is first["fc1"]["kernel"]
    first["fc1"]["kernel"] = None  # the user's own dictionary
    assert kernel_of(compressed) is not None
    moved = jax.tree.map(lambda x: x + 1, compressed)
    assert (kernel_of(moved) != kernel_of(compressed)).any()
    half = dataclasses.replace(
        compressed, variables={**moved.variables, "pool/left": compressed.variables["pool/left"]}
    )
    assert_same_bits(np.asarray(kernel_of(half)), numpy_weights(half)["fc1/kernel"])
    assert len(models._cache) == 3
    del moved, half
    gc.collect()
    assert len(models._cache) == 1
    many = [jax.tree.map(lambda x, i=i: x * i, compressed) for i in range(2, 9)]
    for one in many:
        kernel_of(one)
    assert len(models._cache) == models._MOST_CACHED
    del one, many, compressed
    gc.collect()
    assert not models._cache


def test_nothing_is_cached_by_a_transformation():
    models._cache.clear()
    compressed = smh_jax.compress(mlp(), ratio=0.5, residency="cached")
    jax.jit(smh_jax.materialize)(compressed)
    jax.jit(lambda x: kernel_of(compressed) * x)(1.0)
    jax.grad(lambda c: kernel_of(c).sum())(compressed)
    assert not models._cache
    full = compressed.with_residency("full")
    assert kernel_of(full) is not kernel_of(full)


def test_shared_arrays_stay_shared():
    kernel, bias = normal(0, 6, 6), normal(1, 6)
    params = {"a": {"kernel": kernel, "bias": bias}, "b": {"kernel": kernel, "bias": bias}}
    compressed = smh_jax.compress(params, ratio=0.9)
    assert [tensor.name for tensor in compressed.plan.tensors] == ["a/kernel"]
    back = smh_jax.materialize(compressed)
    assert back["a"]["kernel"] is back["b"]["kernel"]
    report = {tensor.name: tensor for tensor in smh_jax.report(compressed).tensors}
    assert (report["a/kernel"].aliases, report["a/kernel"].why) == (("b/kernel",), "tied with b/kernel")
    assert list(compressed.kept) == ["a/bias", "b/bias"]  # arrays that are kept train apart, as they do without smh
    gradients = jax.grad(lambda c: sum(x.sum() for x in jax.tree.leaves(smh_jax.materialize(c))))(compressed)
    expected = smh.vjp(compressed.plan, host(compressed.variables), {"a/kernel": np.full((6, 6), 2, np.float32)})
    assert_all_same_bits(gradients.variables, expected)


def test_what_is_kept_and_why():
    params = {
        "w": normal(0, 6, 5),
        "float8": jnp.ones((4, 4), jnp.float8_e4m3fn),
        "steps": jnp.ones((4, 4), jnp.int32),
        "mask": jnp.ones((4, 4), bool),
        "key": jax.random.key(0),
        "empty": jnp.ones((0, 3)),
        "bias": jnp.ones(5),
        "out": jnp.ones((2, 2)),
        "activation": jnp.tanh,
    }
    compressed = smh_jax.compress(params, ratio=Fraction(9, 10), exclude=["out"])
    assert_restored(params, compressed, ["w"])
    report = smh_jax.report(compressed)
    assert {tensor.name: tensor.why for tensor in report.tensors if not tensor.generated} == {
        "float8": "its type is float8_e4m3fn",
        "steps": "its type is int32",
        "mask": "its type is bool",
        "key": "its type is key<fry>",
        "empty": "it is empty",
        "bias": "fewer than two axes",
        "out": "not selected",
    }
    assert report.num_kept == 16 + 16 + 16 + 1 + 0 + 5 + 4
    assert report.bytes_before == 4 * 30 + 16 + 64 + 16 + 8 + 20 + 16
    assert report.bytes_after == report.bytes_before - 4 * 30 + compressed.plan.file_bytes
    assert (report.ratio_asked, smh_jax.plan_of(compressed)) == (0.9, compressed.plan)
    assert report.tensors[-1].scale == compressed.plan.tensors[0].initial_scale


def test_options_are_those_of_plans():
    params = mlp()
    compressed = smh_jax.compress(
        params, ratio=0.5, scale="match", pool="hash", layout="cyclic", seed=7, bits=6, include="fc1", axes=None
    )
    shapes, values = {n: x.shape for n, x in by_name(params).items()}, host(by_name(params))
    plan = smh.Plan.build(
        shapes, ratio=0.5, scale="match", values=values, pool="hash", layout="cyclic", seed=7, bits=6, include="fc1"
    )
    assert compressed.plan == plan
    again = smh_jax.compress(params, plan=plan)
    assert again.plan is plan
    assert smh_jax.report(again).ratio_asked is None
    with pytest.raises(smh.PlanError, match="did you mean 0.05"):
        smh_jax.compress(params, ratio=5)
    assert smh_jax.compress(params, ratio=5, allow_expansion=True).plan.ratio > 1
    sized = smh_jax.compress(params, size="350 B")
    assert smh_jax.report(sized).bytes_after <= 350


def test_copies_and_pickles():
    compressed = smh_jax.compress({**mlp(), "n": 3}, ratio=0.5)
    for other in (copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed))):
        assert jax.tree.structure(other) == jax.tree.structure(compressed)
        assert hash(other.structure) == hash(compressed.structure)
        assert smh_jax.digest(other) == smh_jax.digest(compressed)
        assert smh_jax.materialize(other)["n"] == 3
    plan = compressed.plan
    assert repr(compressed) == (
        f"Compressed(300 weights generated from {plan.num_variables} variables (ratio {plan.ratio:.4g}, matmul pool, "
        "8 bits), residency 'full', gradients 'exact'; 2 kept arrays)"
    )


def test_digests():
    compressed = smh_jax.compress(mlp(), ratio=0.5)
    digest = smh_jax.digest(compressed)
    assert digest == smh.digest(compressed.plan, host(compressed.variables))
    assert digest == smh_jax.digest(compressed.plan, compressed.variables)


def trained(params, **options):
    compressed = smh_jax.compress(params, ratio=0.5, **options)
    return jax.tree.map(lambda x: x + x if jnp.issubdtype(x.dtype, jnp.inexact) else x, compressed)


def test_files(tmp_path):
    params = {**mlp(), "half": jnp.ones(3, jnp.bfloat16), "key": jax.random.key(7), "n": np.ones(2, np.int64)}
    before = trained(params)
    digest = smh_jax.save(tmp_path / "model", before)
    fresh = smh_jax.compress(params, ratio=0.5, residency="layer")
    for like in (fresh, params):
        after = smh_jax.load(tmp_path / "model", like)
        assert smh_jax.digest(after) == digest
        assert_all_same_bits(
            after.variables,
            generate.on_grid(NumpyKernels(), before.plan, {n: np.asarray(x) for n, x in before.variables.items()}),
        )
        assert after.residency == ("layer" if like is fresh else "full")
        for name, x in after.kept.items():
            assert type(x) is type(before.kept[name])
            assert x.dtype == before.kept[name].dtype
            assert (x == before.kept[name]).all()
        assert jax.tree.structure(smh_jax.materialize(after)) == jax.tree.structure(params)
    smh_jax.save(tmp_path / "model", before, training=True)
    assert_all_same_bits(smh_jax.load(tmp_path / "model", params).variables, before.variables)
    found = smh_jax.load(tmp_path / "model")
    assert (found.plan, found.digest) == (before.plan, digest)
    assert set(found.dense) == {"fc1/bias", "fc2/bias", "half", "key", "n"}
    assert smh.load(tmp_path / "model").digest == smh.digest(found.plan, host(found.variables))
    for device in ("cpu", "cpu:0", jax.devices("cpu")[0]):
        assert smh_jax.load(tmp_path / "model", device=device).digest == digest


def test_kept_arrays_of_other_types_pass_bit_for_bit(tmp_path):
    x = jnp.linspace(-2, 2, 12).reshape(3, 4)
    kept = {"angles": jax.lax.complex(x, x * x), "f8": x.astype(jnp.float8_e4m3fn), "f8_5": x.astype(jnp.float8_e5m2)}
    smh_jax.save(tmp_path / "model", smh_jax.compress({**mlp(), **kept}, ratio=0.5))
    for like in (other := {**mlp(), **jax.tree.map(jnp.zeros_like, kept)}, smh_jax.compress(other, ratio=0.5)):
        loaded = smh_jax.materialize(smh_jax.load(tmp_path / "model", like))
        for name, x in kept.items():
            assert loaded[name].dtype == x.dtype
            assert np.asarray(loaded[name]).tobytes() == np.asarray(x).tobytes(), name


def test_files_are_loaded_in_place_of_donated_arrays(tmp_path):
    compressed = smh_jax.compress({**mlp(), "key": jax.random.key(7)}, ratio=0.5)
    digest = smh_jax.save(tmp_path / "model", compressed)
    jax.jit(lambda c: c, donate_argnums=0)(compressed)
    assert smh_jax.digest(smh_jax.load(tmp_path / "model", compressed)) == digest


def test_files_are_loaded_where_arrays_are(tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    compressed = smh_jax.compress(mlp(), ratio=0.5)
    smh_jax.save(tmp_path / "model", compressed)
    assert not any(x.committed for x in jax.tree.leaves(smh_jax.load(tmp_path / "model", compressed)))
    there = jax.device_put(compressed, place)
    assert all(x.committed for x in jax.tree.leaves(smh_jax.load(tmp_path / "model", there)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "extra": jnp.ones(2)}, "missing: 'extra'; unexpected: none"),
        (lambda p: {**p, "fc1": {"kernel": p["fc1"]["kernel"]}}, "missing: none; unexpected: 'fc1/bias'"),
        (lambda p: {**p, "fc1": {**p["fc1"], "bias": jnp.ones(7)}}, r"'fc1/bias' has the shape \(20,\) in the file"),
        (lambda p: {**p, "fc1": {**p["fc1"], "bias": jnp.ones(20, int)}}, "'fc1/bias' has the type float32 in the fil"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    smh_jax.save(tmp_path / "model", trained(mlp()))
    params = change(mlp())
    compressed = smh_jax.compress(params, ratio=0.5)
    leaves = jax.tree.leaves((params, compressed))
    values = [np.array(x) for x in leaves]
    for like in (params, compressed):
        with pytest.raises(smh.CheckpointError, match=message):
            smh_jax.load(tmp_path / "model", like)
    assert all(x is y for x, y in zip(leaves, jax.tree.leaves((params, compressed)), strict=True))
    assert all((x == y).all() for x, y in zip(leaves, values, strict=True))


def test_files_of_other_plans_and_broken_ones_are_refused(tmp_path):
    path = tmp_path / "model"
    smh_jax.save(path, trained(mlp()))
    with pytest.raises(smh.CheckpointError, match="the file has another plan than the model"):
        smh_jax.load(path, smh_jax.compress(mlp(), ratio=0.5, seed=1))
    with pytest.raises(smh.PlanError, match="the model does not have: 'fc2/kernel'"):
        smh_jax.load(path, {"fc1": mlp()["fc1"]})
    with pytest.raises(smh.PlanError, match=r"'fc1/kernel' the shape \(12, 20\); the model \(20, 12\)"):
        smh_jax.load(path, {**mlp(), "fc1": {"kernel": jnp.ones((20, 12)), "bias": jnp.ones(20)}})
    content = path.read_bytes()
    for broken in (content[:-3], content[:-1] + bytes([content[-1] ^ 1]), b"", b"\xff" * 100):
        path.write_bytes(broken)
        for like in (mlp(), smh_jax.compress(mlp(), ratio=0.5)):
            with pytest.raises(smh.CheckpointError):
                smh_jax.load(path, like)


def test_arrays_that_files_cannot_hold_are_refused(tmp_path):
    compressed = smh_jax.compress({**mlp(), "phase": jnp.ones(2, jnp.int4)}, ratio=0.5)
    with pytest.raises(smh.VariableError, match="phase"):
        smh_jax.save(tmp_path / "model", compressed)
    assert list(tmp_path.iterdir()) == []


def test_warm_start():
    pytest.importorskip("scipy", reason="SciPy, by which variables are fitted, is not installed")
    params = mlp()
    compressed, report = smh_jax.fit(params, ratio=3, residency="layer", bits=16, allow_expansion=True)
    assert compressed.residency == "layer"
    assert set(report.errors) == {"fc1/kernel", "fc2/kernel"}
    x, y = data()
    started = smh_jax.compress(params, ratio=3, allow_expansion=True)
    target = apply(params, x)
    assert report.error_unrounded < 1e-5  # the pool has the rank for any weights: what is left is rounding
    assert report.error < 1e-3
    assert loss(compressed, x, target) < 1e-6 * loss(started, x, target)
    jax.grad(loss)(compressed, x, y)


def test_parameters_that_cannot_be_compressed_are_refused():
    compressed = smh_jax.compress(mlp(), ratio=0.5)
    for params in (compressed, {"model": [compressed]}):
        with pytest.raises(smh.PlanError, match="are compressed already: smh.materialize them first"):
            smh_jax.compress(params, ratio=0.5)
    cases = {
        "say how much to compress": (mlp(), {}),
        "residency must be one of": (mlp(), {"ratio": 0.5, "residency": 1}),
        "the model has nothing to generate: it has no tensors": ({"f": jnp.tanh}, {"ratio": 0.5}),
        r"nothing to generate: 'b': fewer than two axes": ({"b": jnp.ones(3)}, {"ratio": 0.5}),
        "nothing to generate: 'w': its type is int32": ({"w": jnp.ones((3, 3), int)}, {"ratio": 0.5}),
        "two leaves of the parameters have the name 'a/b'": ({"a/b": jnp.ones(3), "a": {"b": 1}}, {"ratio": 0.5}),
        "two leaves of the parameters have the name '0'": (collections.OrderedDict([(0, 1), ("0", 2)]), {"ratio": 0.5}),
        "a plan decides everything: leave out ratio": (mlp(), {"plan": compressed.plan, "ratio": 0.5}),
        "the model does not have: 'fc1/kernel', 'fc2/kernel'": ({"w": jnp.ones((3, 3))}, {"plan": compressed.plan}),
        "leaves no room": (mlp(), {"ratio": 0.001}),
    }
    for message, (params, options) in cases.items():
        with pytest.raises(smh.PlanError, match=message):
            smh_jax.compress(params, **options)


def test_what_is_not_compressed_is_refused(tmp_path):
    compressed = smh_jax.compress(mlp(), ratio=0.5)
    plan, variables = compressed.plan, compressed.variables
    for call in (smh_jax.materialize, smh_jax.digest, functools.partial(smh_jax.save, tmp_path / "model")):
        with pytest.raises(smh.PlanError, match=r"compress it first: smh.compress\(model, ratio=0.1\); got dict"):
            call(mlp())
        with pytest.raises(smh.VariableError, match="variable 'pool/left' is missing"):
            call(plan)
        for model in (compressed, mlp()):
            with pytest.raises(
                smh.PlanError, match=f"variables= needs a Plan, not a model; got {type(model).__name__}"
            ):
                call(model, variables)
    with pytest.raises(smh.PlanError, match="names= needs a Plan, not a model; got Compressed"):
        smh_jax.materialize(compressed, names=["fc1/kernel"])
    for call in (smh_jax.plan_of, smh_jax.report):
        with pytest.raises(smh.PlanError, match=r"compress it first: smh.compress\(model, ratio=0.1\); got dict"):
            call(mlp())
    without = dataclasses.replace(compressed, variables={"pool/left": variables["pool/left"]})
    for residency in RESIDENCIES:
        with pytest.raises(smh.VariableError, match="missing"):
            smh_jax.materialize(without.with_residency(residency))


WITHOUT = """
    import sys
    sys.modules.update(dict.fromkeys(["flax", "equinox", "optax", "sklearn", "torch", "tensorflow"]))
    import jax.numpy as jnp
    from smh.backends import jax as smh
    smh.materialize(smh.compress({"w": jnp.ones((8, 8))}, ratio=0.5))
    print("done")
"""

ON_EIGHT_DEVICES = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    import smh
    from smh.backends import jax as smh_jax
    from conformance.bits import assert_same_bits

    assert jax.device_count() == 8
    n, count = 40, 3
    params = {f"w{i}": jnp.ones((n, n)) for i in range(count)} | {"b": jnp.ones(8)}
    compressed = smh_jax.compress(params, ratio=0.1)
    mesh = jax.make_mesh((8,), ("d",))
    spread = NamedSharding(mesh, P("d"))
    place = lambda x: jax.device_put(x, spread if x.ndim and x.shape[0] % 8 == 0 else NamedSharding(mesh, P()))

    def same(actual, expected):
        assert set(actual) == set(expected)
        for name, x in expected.items():
            assert_same_bits(np.asarray(actual[name]), np.asarray(x), name)

    weights = smh.materialize(compressed.plan, {name: np.asarray(x) for name, x in compressed.variables.items()})
    for residency in ("full", "cached", "layer"):
        here = compressed.with_residency(residency)
        there = jax.tree.map(place, here)
        assert there.kept["b"].sharding == spread
        for build in (smh_jax.materialize, jax.jit(smh_jax.materialize)):
            same({name: x for name, x in build(there).items() if name != "b"}, weights)
        spread_by_jit = jax.jit(lambda c: smh_jax.materialize(c), out_shardings=spread)(there)
        assert spread_by_jit["w0"].sharding == spread
        same({name: spread_by_jit[name] for name in weights}, weights)
        gradients = jax.jit(lambda c: smh_jax.vjp(c.plan, c.variables, weights))
        same(gradients(there), gradients(here))
    print("done")
"""

LITTLE_MEMORY = """
    import jax
    import jax.numpy as jnp
    from smh.backends import jax as smh

    n, count = 1000, 8
    compressed = smh.compress({f"w{i}": jnp.ones((n, n)) for i in range(count)}, ratio=0.02)

    def loss(compressed, x):
        for weight in smh.materialize(compressed).values():
            x = jnp.tanh(x @ weight)
        return (x**2).sum()

    temporary = {}
    for residency in ("full", "layer"):
        compiled = jax.jit(loss).lower(compressed.with_residency(residency), jnp.ones((2, n))).compile()
        temporary[residency] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary["layer"] <= temporary["full"], temporary
    assert temporary["layer"] < 4 * n * n * count / 2, temporary
    print("done")
"""


@pytest.mark.parametrize("code", [WITHOUT, ON_EIGHT_DEVICES, LITTLE_MEMORY], ids=["without", "devices", "memory"])
def test_in_a_process_of_its_own(code):
    """The backend needs no library of models; eight devices give the same bits.

    Where the compiler saves memory, as it does on accelerators, weights that are built apart are not there all at once.
    """
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr


def test_paths_of_variables_name_the_plan():
    """What is saved by path cannot be restored into parameters with another plan, though all shapes agree."""
    one, other = (smh_jax.compress(mlp(), ratio=0.5, seed=seed) for seed in (0, 1))
    paths = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(c)[0]} for c in (one, other)
    ]
    assert any(one.plan.fingerprint[:16] in path for path in paths[0])
    assert {path for path in paths[0] & paths[1] if "kept" not in path} == set()
    assert jax.tree.structure(one) != jax.tree.structure(other)


def test_members_of_an_ensemble_stack():
    """They share plan and hash functions, so vmap runs them as one."""
    params = {"w": jnp.ones((30, 40))}
    members = [smh_jax.compress(params, ratio=0.2, pool="hash", init_seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    weights = jax.vmap(smh_jax.materialize)(stacked)["w"]
    alone = np.stack([np.asarray(smh_jax.materialize(member)["w"]) for member in members])
    assert_same_bits(np.asarray(weights), alone, "w")
