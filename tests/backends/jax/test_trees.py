"""Which arrays of a pytree are parameters, of which types they may be, and trees that only describe arrays."""

import functools

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def params():
    return {"a": {"kernel": normal(0, 12, 20), "bias": normal(1, 20)}, "b": {"kernel": normal(2, 20, 3)}}


def whys(compressed):
    return {tensor.name: tensor.why for tensor in smh_jax.report(compressed).tensors if not tensor.generated}


def linen_variables():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False)(linen.Dense(20)(x))
            self.sow("intermediates", "x", x)
            self.variable("cache", "table", lambda: normal(3, 8, 8))
            self.variable("constants", "table", lambda: normal(4, 8, 8))
            return linen.Dense(3)(x)

    return Model().init(jax.random.key(0), normal(0, 4, 12))


def test_only_the_collection_of_parameters_is_generated():
    from_linen = linen_variables()
    collections = set(from_linen) - {"params"}
    assert {"batch_stats", "cache", "constants"} <= collections
    two = {"generator": from_linen, "critic": linen_variables()}
    for tree, prefixes in ((from_linen, [""]), (two, ["generator/", "critic/"])):
        compressed = smh_jax.compress(tree, ratio=0.5)
        names = {tensor.name for tensor in compressed.plan.tensors}
        assert names == {f"{prefix}params/Dense_{i}/kernel" for prefix in prefixes for i in range(2)}
        found = whys(compressed)
        for prefix in prefixes:
            assert found[f"{prefix}cache/table"] == "it is of the collection 'cache', not of 'params'"
        with pytest.raises(smh.PlanError, match="nothing to generate|not of 'params'"):
            smh_jax.compress(tree, ratio=0.5, include=[f"{prefixes[0]}cache/table"])
    layer = {"params": normal(0, 12, 20), "table": normal(1, 8, 8)}  # a parameter that has this name
    assert len(smh_jax.compress(layer, ratio=0.9).plan.tensors) == 2


def test_train_states_keep_all_but_parameters():
    optax = pytest.importorskip("optax", reason="Optax is not installed")
    train_state = pytest.importorskip("flax.training.train_state", reason="Flax is not installed")
    state = train_state.TrainState.create(apply_fn=None, params=params(), tx=optax.adam(0.1))
    for tree, name in (
        (state, "params/"),
        ({"params": params(), "optimizer": optax.adam(0.1).init(params())}, "params/"),
        ((params(), optax.adam(0.1).init(params())), "0/"),
    ):
        compressed = smh_jax.compress(tree, ratio=0.9)
        assert [tensor.name for tensor in compressed.plan.tensors] == [f"{name}a/kernel", f"{name}b/kernel"]


def variable_types(nnx):
    found, new = set(), {nnx.Variable}
    while new:
        found |= new
        new = {kind for parent in new for kind in parent.__subclasses__() if kind.__module__.startswith("flax.")}
    return sorted(found, key=lambda kind: kind.__name__)


def test_only_params_of_nnx_are_generated():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    class Mine(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self, kinds):
            self.w = nnx.Param(normal(0, 12, 20))
            for i, kind in enumerate(kinds):
                setattr(self, f"x{i}", kind(normal(i, 8, 8)))

    kinds = [Mine, *variable_types(nnx)]
    assert {nnx.Param, nnx.BatchStat, nnx.Cache, nnx.Intermediate} <= set(kinds)
    model = Model(kinds)
    for tree in (model, nnx.state(model)):
        compressed = smh_jax.compress(tree, ratio=0.9)
        params = {f"x{i}" for i, kind in enumerate(kinds) if issubclass(kind, nnx.Param) and kind is not nnx.LoRAParam}
        assert {tensor.name for tensor in compressed.plan.tensors} == {"w"} | params
        assert whys(compressed)["x0"] == "it is a Mine, not a Param"
    back = smh_jax.materialize(smh_jax.compress(model, ratio=0.9))
    for i, kind in enumerate(kinds):
        if not issubclass(kind, nnx.Param):
            assert_same_bits(np.asarray(getattr(back, f"x{i}")[...]), np.asarray(normal(i, 8, 8)))


def test_states_of_equinox_are_kept():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Model(eqx.Module):
        linear: eqx.nn.Linear
        index: eqx.nn.StateIndex

    model = Model(eqx.nn.Linear(12, 20, key=jax.random.key(0)), eqx.nn.StateIndex(normal(0, 8, 8)))
    for tree in (model, eqx.nn.make_with_state(lambda: model)()):
        compressed = smh_jax.compress(tree, ratio=0.9)
        assert [tensor.name.rpartition("linear/")[2] for tensor in compressed.plan.tensors] == ["weight"]
        assert "it is a state, not a parameter" in whys(compressed).values()


@pytest.mark.parametrize(("residency", "dtype"), [("full", "bfloat16"), ("cached", "float16"), ("layer", "bfloat16")])
def test_weights_of_half_precision_are_rounded(tmp_path, dtype, residency):
    plain = {**params(), "c": normal(3, 8, 8)}
    half = jax.tree.map(lambda x: x.astype(dtype), plain) | {"c": plain["c"]}
    compressed = smh_jax.compress(half, ratio=0.5, residency=residency)
    weights = smh.materialize(compressed.plan, {name: np.asarray(x) for name, x in compressed.variables.items()})
    for build in (smh_jax.materialize, jax.jit(smh_jax.materialize)):
        back = build(compressed)
        assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, half)
        rounded = weights["a/kernel"].astype(back["a"]["kernel"].dtype)  # by NumPy, or by ml_dtypes
        assert np.array_equal(np.asarray(back["a"]["kernel"]).view(np.uint16), rounded.view(np.uint16))
        assert_same_bits(np.asarray(back["c"]), weights["c"])
    cotangent = normal(5, 12, 20).astype(dtype)

    def loss(compressed):
        return (smh_jax.materialize(compressed)["a"]["kernel"] * cotangent).sum().astype(jnp.float32)

    found = jax.grad(loss)(compressed).variables
    variables = {name: np.asarray(x) for name, x in compressed.variables.items()}
    expected = smh.vjp(compressed.plan, variables, {"a/kernel": np.asarray(cotangent).astype(np.float32)})
    for name, x in expected.items():
        assert_same_bits(np.asarray(found[name]), x, name)
    digest = smh_jax.save(tmp_path / "model", compressed)
    loaded = smh_jax.load(tmp_path / "model", half)
    assert smh_jax.digest(loaded) == digest
    assert smh_jax.materialize(loaded)["a"]["kernel"].dtype == dtype


def test_values_of_half_precision_are_matched():
    half = {"w": normal(0, 30, 40).astype(jnp.bfloat16)}
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    plans = [smh_jax.compress(tree, ratio=0.5, scale="match").plan for tree in (half, full)]
    assert plans[0] == plans[1]


def described(tree):
    return jax.eval_shape(lambda: tree)


def test_abstract_trees_have_plans_and_are_filled_by_files(tmp_path):
    real = params() | {"key": jax.random.key(3, impl="rbg"), "half": normal(3, 8, 8).astype(jnp.bfloat16), "n": 3}
    abstract = described({name: x for name, x in real.items() if name != "n"}) | {"n": 3}
    compressed = smh_jax.compress(real, ratio=0.5)
    planned = smh_jax.compress(abstract, ratio=0.5)
    assert planned.plan == compressed.plan
    assert jax.tree.structure(planned) == jax.tree.structure(compressed)
    assert smh_jax.digest(planned) == smh_jax.digest(compressed)  # fresh variables need no values
    digest = smh_jax.save(tmp_path / "model", compressed, training=True)
    for like in (abstract, planned, jax.eval_shape(lambda: compressed)):
        loaded = smh_jax.load(tmp_path / "model", like)
        assert smh_jax.digest(loaded) == digest
        assert jax.tree.structure(loaded) == jax.tree.structure(compressed)
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(compressed), strict=True):
            assert isinstance(x, jax.Array)
            assert x.dtype == y.dtype
            assert (x == y).all()
    with pytest.raises(smh.VariableError, match="abstract arrays have no values"):
        smh_jax.save(tmp_path / "other", planned)
    missing = "has no values to start from; got the abstract array"
    for call in (smh_jax.fit, functools.partial(smh_jax.compress, scale="match")):
        with pytest.raises(smh.PlanError, match=missing):
            call(abstract, ratio=0.5)
        with pytest.raises(smh.PlanError, match=missing):
            jax.eval_shape(lambda tree, call=call: call(tree, ratio=0.5), params())


def test_abstract_arrays_say_where_values_go(tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    smh_jax.save(tmp_path / "model", smh_jax.compress(params(), ratio=0.5))
    there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params())
    for tree, committed in ((described(params()), False), (there, True)):
        bias = smh_jax.load(tmp_path / "model", tree).kept["a/bias"]
        assert bias.committed is committed


def test_one_description_at_two_places_is_not_one_array():
    spec = jax.ShapeDtypeStruct((12, 20), jnp.float32)
    compressed = smh_jax.compress({"a": spec, "b": spec}, ratio=0.5)
    assert [tensor.name for tensor in compressed.plan.tensors] == ["a", "b"]


def test_abstract_modules_of_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    model = nnx.eval_shape(lambda: nnx.Linear(12, 20, rngs=nnx.Rngs(0)))
    real = nnx.Linear(12, 20, rngs=nnx.Rngs(0))
    assert smh_jax.compress(model, ratio=0.5).plan == smh_jax.compress(real, ratio=0.5).plan


def test_wrong_objects_are_named(tmp_path):
    smh_jax.save(tmp_path / "saved", smh_jax.compress(params(), ratio=0.5))
    calls = (
        functools.partial(smh_jax.compress, ratio=0.5),
        functools.partial(smh_jax.fit, ratio=0.5),
        functools.partial(smh_jax.load, tmp_path / "saved"),
        smh_jax.materialize,
        smh_jax.digest,
        smh_jax.report,
        functools.partial(smh_jax.save, tmp_path / "model"),
    )
    for package, base, makes in (("keras", "Layer", "Sequential"), ("torch", "Module", "Linear")):
        kind = type(base, (), {"__module__": f"{package}.src.layers"})  # told by names: neither is imported
        model = type(makes, (kind,), {})()
        for call in calls:
            with pytest.raises(smh.PlanError, match=f"got a model of {package}, {makes}: use smh.{package} instead"):
                call(model)
    with pytest.raises(smh.PlanError, match="a model is needed, not a file.*; got str"):
        smh_jax.compress("model", ratio=0.5)
    for wrong in (object(), np.tanh):
        with pytest.raises(smh.PlanError, match=f"smh.jax takes a pytree of arrays.*; got {type(wrong).__name__}"):
            smh_jax.compress(wrong, ratio=0.5)
    around = {"model": [smh_jax.compress(params(), ratio=0.5)]}
    for call in calls[3:]:
        with pytest.raises(smh.PlanError, match="the parameters at 'model/0' are compressed"):
            call(around)
