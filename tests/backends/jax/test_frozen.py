"""Frozen parameters: integers in the place of the pool, and the same weights everywhere."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from smh import pools

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends.jax.models import adapter  # noqa: E402
from smh.core.generate import on_grid  # noqa: E402
from smh.core.kernels import Kernels  # noqa: E402

POOLS = {
    "matmul": (pools.Matmul(), "int8"),
    "nibbles": (pools.Matmul(bits=4), "uint8"),
    "wide": (pools.Matmul(bits=12), "int16"),
    "kronecker": (pools.Kronecker(), "int8"),
    "hash": (pools.Hash(bits=3), "uint8"),
    "sum": (pools.Sum(pools.Matmul(bits=5), pools.Hash(bits=9)), "int16"),
    "product": (pools.Product(pools.Matmul(), pools.Kronecker(bits=2)), "uint8"),
}


def params():
    x = np.random.default_rng(0).standard_normal((12, 20), dtype=np.float32)
    return {"kernel": jnp.asarray(x), "half": jnp.asarray(x[:, :7], jnp.bfloat16), "bias": jnp.arange(20.0)}


def compressed(pool="matmul", **options):
    return smh_jax.compress(params(), ratio=0.5, pool=POOLS[pool][0], **options)


def apply(tree, x):
    return jnp.tanh(x @ tree["kernel"] + tree["bias"])


def same_tree(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_pool_is_of_integers_and_gives_the_same_weights(pool):
    model = compressed(pool)
    frozen = smh.freeze(model)
    assert {str(x.dtype) for name, x in frozen.variables.items() if name.startswith("exponent/")} == {"int8"}
    assert POOLS[pool][1] in {str(x.dtype) for name, x in frozen.variables.items() if name.startswith("pool/")}
    stored = sum(x.nbytes for name, x in frozen.variables.items() if not name.startswith("exponent/"))
    assert stored == model.plan.file_bytes
    same_tree(smh.materialize(frozen), smh.materialize(model))
    same_tree(jax.jit(smh.materialize)(frozen), smh.materialize(model))
    assert smh.digest(frozen) == smh.digest(model)
    assert smh.plan_of(frozen) == model.plan


@pytest.mark.parametrize("residency", ["cached", "layer"])
def test_residencies_build_the_same_weights(residency):
    frozen = smh.freeze(compressed("nibbles"))
    other = frozen.with_residency(residency)
    same_tree(smh.materialize(other), smh.materialize(frozen))
    again = smh.materialize(other)["kernel"] is smh.materialize(other)["kernel"]
    assert again == (residency == "cached")


def test_values_of_integers_are_those_on_the_grid():
    model = compressed("sum")
    found = adapter.variables(smh.freeze(model))
    expected = on_grid(Kernels(np), model.plan, {name: np.asarray(x) for name, x in model.variables.items()})
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_same_bits(np.asarray(found[name]), x)


def test_zeros_and_powers_at_both_ends_are_frozen(tmp_path):
    model = compressed()
    for factor in (0.0, 2.0**-29, 2.0**29):
        scaled = {name: x * np.float32(factor) / jnp.max(jnp.abs(x)) for name, x in model.variables.items()}
        extreme = dataclasses.replace(model, variables={**model.variables, "pool/left": scaled["pool/left"]})
        frozen = smh.freeze(extreme)
        same_tree(smh.materialize(frozen), smh.materialize(extreme))
        assert smh.save(tmp_path / "frozen", frozen) == smh.save(tmp_path / "model", extreme)
        assert (tmp_path / "frozen").read_bytes() == (tmp_path / "model").read_bytes()
    with pytest.raises(smh.VariableError, match="not finite"):
        smh.freeze(jax.tree.map(lambda x: x * np.float32(np.nan), model))


@pytest.mark.parametrize("pool", ["matmul", "nibbles", "sum"])
def test_files_load_frozen(tmp_path, pool):
    path, model = tmp_path / "model", compressed(pool)
    model = dataclasses.replace(model, kept={name: x + 1 for name, x in model.kept.items()})
    digest = smh.save(path, model, training=True)
    expected = smh.materialize(model)
    frozen = smh.freeze(model)
    loaded = {
        "plain": smh_jax.load(path, params(), frozen=True),
        "abstract": smh_jax.load(path, jax.eval_shape(params), frozen=True),
        "frozen": smh_jax.load(path, jax.tree.map(jnp.zeros_like, frozen)),
    }
    for found in loaded.values():
        assert jax.tree.structure(found) == jax.tree.structure(frozen)
        same_tree(found, frozen)
        same_tree(smh.materialize(found), expected)
        assert smh.digest(found) == digest
        smh.save(tmp_path / "again", found)
        smh.save(path, model)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    with pytest.raises(smh.PlanError, match="freezes this one"):
        smh_jax.load(path, model, frozen=True)
    with pytest.raises(smh.CheckpointError, match="another plan"):
        smh_jax.load(path, smh.freeze(compressed(pool, seed=4)))


@pytest.mark.parametrize("pool", ["matmul", "nibbles", "hash"])
def test_transformations_give_the_same_weights(pool):
    models = [compressed(pool, init_seed=seed) for seed in (1, 2)]
    models[1] = jax.tree.map(lambda x: x * 8, models[1])  # another exponent
    frozen = [smh.freeze(model) for model in models]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *frozen)
    assert len(set(np.asarray(stacked.variables[next(n for n in stacked.variables if n[:2] == "ex")]).tolist())) == 2
    batched = jax.vmap(smh.materialize)(stacked)
    scanned = jax.lax.scan(lambda _, one: (None, smh.materialize(one)), None, stacked)[1]
    for i, model in enumerate(models):
        for found in (batched, scanned):
            same_tree(jax.tree.map(lambda x, i=i: x[i], found), smh.materialize(model))
    kept = jax.checkpoint(lambda one: smh.materialize(one))(frozen[0])
    same_tree(kept, smh.materialize(models[0]))


def test_frozen_parameters_have_no_gradients():
    frozen, x = smh.freeze(compressed()), jnp.ones((2, 12))

    def loss(frozen, x):
        return apply(smh.materialize(frozen), x).sum()

    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(loss)(frozen, x)
    advice = "frozen parameters have no gradients: they hold the integers"
    with pytest.raises(smh.PlanError, match=advice):
        jax.grad(loss, allow_int=True)(frozen, x)
    floats = {name: x for name, x in frozen.variables.items() if x.dtype == jnp.float32}
    with pytest.raises(smh.PlanError, match=advice):
        jax.grad(lambda v: loss(dataclasses.replace(frozen, variables={**frozen.variables, **v}), x))(floats)
    for use in (lambda: smh.fit(frozen, ratio=0.5), lambda: smh.compress(frozen, ratio=0.5)):
        with pytest.raises(smh.PlanError, match="compressed already"):
            use()
    with pytest.raises(smh.PlanError, match="a frozen model cannot be frozen again"):
        smh.freeze(frozen)
    with pytest.raises(smh.PlanError, match="no training values"):
        smh.save("nowhere", frozen, training=True)


def test_what_is_before_frozen_layers_has_gradients():
    model, x = compressed(), jnp.linspace(0, 1, 24).reshape(2, 12)
    frozen = smh.freeze(model)
    for transform in (jax.grad, lambda fn: jax.jit(jax.grad(fn)), lambda fn: jax.grad(jax.checkpoint(fn))):
        found = transform(lambda x: apply(smh.materialize(frozen), x).sum())(x)
        expected = transform(lambda x: apply(smh.materialize(model), x).sum())(x)
        assert_same_bits(np.asarray(found), np.asarray(expected))
    _, forward = jax.jvp(lambda x: apply(smh.materialize(frozen), x), (x,), (x,))
    assert bool(jnp.isfinite(forward).all())


def test_frozen_parameters_are_copied_pickled_and_taken_from_the_host():
    frozen = smh.freeze(compressed("nibbles"))
    expected = smh.materialize(frozen)
    for other in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen), jax.device_get(frozen)):
        same_tree(smh.materialize(other), expected)
        assert smh.digest(other) == smh.digest(frozen)
    assert "frozen" in str(jax.tree.structure(frozen))
    assert jax.tree.structure(frozen) != jax.tree.structure(compressed("nibbles"))


def test_arrays_of_another_type_are_refused():
    frozen = smh.freeze(compressed())
    for wrong in (jnp.zeros((18, 7), jnp.float32), frozen.variables["pool/left"][1:], None):
        variables = {**frozen.variables, "pool/left": wrong}
        if wrong is None:
            del variables["pool/left"]
        with pytest.raises(smh.VariableError, match="'pool/left' of frozen parameters must have the type int8"):
            smh.materialize(dataclasses.replace(frozen, variables=variables))


def test_reports_of_frozen_parameters_are_those_of_the_model():
    model = compressed()
    found, expected = smh.report(smh.freeze(model)).to_dict(), smh.report(model).to_dict()
    assert {name for name in expected if found[name] != expected[name]} == {"frozen", "num_trained"}
    assert found["frozen"]


def test_models_of_flax_and_equinox_are_frozen():
    nnx, eqx = (pytest.importorskip(name, reason=f"{name} is not installed") for name in ("flax.nnx", "equinox"))
    graph, state = nnx.split(nnx.Linear(12, 20, rngs=nnx.Rngs(0)))
    model = smh.compress(state, ratio=0.5)
    x = jnp.ones((2, 12))
    y = nnx.merge(graph, smh.materialize(smh.freeze(model)))(x)
    assert_same_bits(np.asarray(y), np.asarray(nnx.merge(graph, smh.materialize(model))(x)))
    model = smh.compress(eqx.nn.MLP(12, 3, 16, 1, key=jax.random.key(0)), ratio=0.5)
    y = jax.vmap(smh.materialize(smh.freeze(model)))(x)
    assert_same_bits(np.asarray(y), np.asarray(jax.vmap(smh.materialize(model))(x)))


def test_what_flax_saves_of_frozen_parameters_loads_again():
    serialization = pytest.importorskip("flax.serialization", reason="Flax is not installed")
    frozen = smh.freeze(compressed("sum"))
    saved = serialization.to_bytes(frozen)
    same_tree(serialization.from_bytes(jax.tree.map(jnp.zeros_like, frozen), saved), frozen)
    with pytest.raises(smh.CheckpointError, match="the variables of the parameters are"):
        serialization.from_bytes(compressed("sum"), saved)
