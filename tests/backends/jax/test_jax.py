import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smh
from conformance.bits import assert_same_bits
from smh.core import pools
from tests.core.cases import KINDS, cotangents_for, plans, seeds, variables_for

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends.jax import backend, derivatives  # noqa: E402

kinds = st.sampled_from(KINDS)


def gpus():
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


NEEDS_GPU = pytest.mark.skipif(not gpus(), reason="no GPU")
DEVICES = ["cpu:0", pytest.param("gpu:0", marks=NEEDS_GPU)]


def arrays(host, device=None):
    return {name: backend.asarray(x, device) for name, x in host.items()}


def assert_all_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, x in actual.items():
        assert isinstance(x, jax.Array)
        assert_same_bits(backend.to_numpy(x), expected[name], name)


def small(pool="matmul", **kwargs):
    return smh.Plan.build(
        {"a": (5, 4), "b": (3, 2)},
        ratio=10,
        pool=pool,
        views={"a": "i o -> o i"},
        modifiers={"a": (), "b": ("relu",)},
        include=lambda name: True,
        **kwargs,
    )


POOLS = {
    "matmul": pools.Matmul(n=6, m=3),
    "combined": pools.Sum(
        pools.Matmul(n=6, m=2),
        pools.Product(pools.Hash(size=9, hashes=2, capacity=30), pools.Kronecker(d=3, t=2)),
    ),
}


FINE = {
    "matmul": pools.Matmul(n=6, m=3, bits=16),
    "combined": pools.Sum(
        pools.Product(pools.Hash(size=9, hashes=2, capacity=30, bits=16), pools.Kronecker(d=3, t=2, bits=16))
    ),
}


class Case:
    """A plan, its variables and cotangents, and what the NumPy backend makes of them."""

    def __init__(self, plan, kind="normal"):
        self.plan = plan
        self.variables = smh.initialize(plan) if kind == "normal" else variables_for(plan, 0, kind)
        self.cotangents = cotangents_for(plan, 0, "normal")
        self.weights = smh.materialize(plan, self.variables)
        self.gradients = smh.vjp(plan, self.variables, self.cotangents)
        self.mine = arrays(self.variables)

    def loss(self, variables):
        weights = smh_jax.materialize(self.plan, variables)
        return sum((weights[name] * g).sum() for name, g in self.cotangents.items())


CASES = {name: Case(small(pool)) for name, pool in POOLS.items()}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@settings(max_examples=max(1, settings.default.max_examples // 33))  # each is compiled; the suite draws more
@given(plans(), seeds, kinds, kinds)
def test_weights_and_gradients_have_the_bits_of_numpy(plan, seed, kind, cotangent_kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, cotangent_kind)
    some = dict(list(cotangents.items())[::2])
    last = [plan.tensors[-1].name]

    def everything(api, v, all_of_them, some_of_them):
        return (
            api.materialize(plan, v),
            api.materialize(plan, v, last),
            api.vjp(plan, v, all_of_them),
            api.vjp(plan, v, some_of_them),
        )

    mine = arrays(variables)
    found = jax.jit(lambda *args: everything(smh_jax, *args))(mine, arrays(cotangents), arrays(some))
    for actual, expected in zip(found, everything(smh, variables, cotangents, some), strict=True):
        assert_all_same_bits({name: actual[name] for name in expected}, expected)
    assert_all_same_bits(mine, variables)  # no argument is changed


def test_indices(case):
    numpy = smh.get_backend("numpy")
    for start, stop in ((0, case.plan.capacity), (7, 20)):
        found = backend.indices(case.plan, start, stop)
        for name, i in numpy.indices(case.plan, start, stop).items():
            assert found[name].dtype == np.int64
            assert np.array_equal(backend.to_numpy(found[name]), i)


def test_a_mode_that_cannot_run_here_says_why(monkeypatch):
    missing = {mode.name: mode.missing for mode in backend.modes()}
    assert (missing["sharded"] == "") == (jax.device_count() > 1)
    if missing["sharded"]:
        with pytest.raises(smh.BackendError, match="host_platform_device_count"):
            backend.in_mode("sharded")


def transformed(case):
    """Return gradients by transformations that people combine, by name; single ones are modes of the backend."""
    grad, loss = jax.grad, case.loss

    @jax.jit
    def compiled(mine):
        one = jax.tree.map(lambda x: x[None], mine)
        two = jax.tree.map(lambda x: x[None, ..., None], mine)
        return {
            "grad of vmap": jax.tree.map(lambda x: x[0], grad(lambda v: jax.vmap(loss)(v).sum())(one)),
            "vmap of vmap": jax.tree.map(lambda x: x[0, ..., 0], jax.vmap(jax.vmap(grad(loss), -1, -1))(two)),
        }

    return {"eager": grad(loss)(case.mine), **compiled(case.mine)}


@pytest.mark.parametrize(("name", "x64"), [("matmul", True), ("combined", False)])
def test_transformations(name, x64):
    case = CASES[name]
    with jax.enable_x64(x64):
        for gradients in transformed(case).values():
            assert_all_same_bits({n: gradients[n] for n in case.variables}, case.gradients)


def test_the_setting_of_64_bits_is_left_alone(case):
    assert not jax.config.jax_enable_x64
    names = {n: case.mine[n] for n in reversed(case.mine)}  # the order of a mapping does not matter
    smh_jax.materialize(case.plan, names)
    smh_jax.vjp(case.plan, case.mine, arrays(case.cotangents))
    backend.indices(case.plan, 0, 3)
    backend.asarray(np.ones(3))
    assert not jax.config.jax_enable_x64
    assert jnp.asarray(np.ones(3)).dtype == jnp.float32


def test_vmap(case):
    batch = {name: jnp.stack([x, 2 * x, -x], axis=-1) for name, x in case.mine.items()}
    weights = jax.vmap(lambda v: smh_jax.materialize(case.plan, v), -1)(batch)
    gradients = jax.jit(jax.vmap(jax.grad(case.loss), -1, -1))(batch)
    for i in range(3):
        one = {name: np.array(x[..., i]) for name, x in batch.items()}
        assert_all_same_bits({n: weights[n][i] for n in case.weights}, smh.materialize(case.plan, one))
        assert_all_same_bits(
            {n: gradients[n][..., i] for n in case.gradients}, smh.vjp(case.plan, one, case.cotangents)
        )


def test_vmap_over_some_arguments(case):
    name, x = next(iter(case.mine.items()))
    weights = jax.vmap(lambda x: smh_jax.materialize(case.plan, {**case.mine, name: x}))(x[None])
    assert_all_same_bits({n: weights[n][0] for n in case.weights}, case.weights)


def test_training_in_a_scan_equals_a_loop(case):
    def step(variables, data):
        gradients = jax.grad(lambda v: (smh_jax.materialize(case.plan, v)["a"] @ data).sum())(variables)
        return {name: x - gradients[name] * 0.25 for name, x in variables.items()}, None

    data = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 2)).astype(np.float32))
    scanned, _ = jax.lax.scan(step, case.mine, data)
    looped, compiled = case.mine, jax.jit(step)
    for batch in data:
        looped, _ = compiled(looped, batch)
    assert_all_same_bits({n: scanned[n] for n in looped}, {n: np.asarray(x) for n, x in looped.items()})
    assert any((looped[n] != case.mine[n]).any() for n in looped)


def test_gradients_of_unused_weights_are_not_needed(case):
    gradients = jax.grad(lambda v: (smh_jax.materialize(case.plan, v)["b"] * case.cotangents["b"]).sum())(case.mine)
    expected = smh.vjp(case.plan, case.variables, {"b": case.cotangents["b"]})
    assert_all_same_bits({n: gradients[n] for n in expected}, expected)
    assert smh_jax.materialize(case.plan, case.mine, []) == {}
    assert all(not g.any() for g in smh_jax.vjp(case.plan, case.mine, {}).values())


def test_a_scale_whose_weights_are_unused_has_no_gradient_even_where_these_are_infinite():
    plan = small(POOLS["matmul"])
    variables = smh.initialize(plan)
    variables["pool/left"][0, 0] = np.inf  # tensor a reads it, b does not
    mine, g = arrays(variables), cotangents_for(plan, 0, "normal")["b"]
    expected = smh.vjp(plan, variables, {"b": g})
    assert expected["scale/a"] == 0
    assert_all_same_bits(smh_jax.vjp(plan, mine, {"b": jnp.asarray(g)}), expected)
    found = jax.grad(lambda v: (smh_jax.materialize(plan, v)["b"] * g).sum())(mine)
    assert_all_same_bits({n: found[n] for n in expected}, expected)
    assert_all_same_bits(smh_jax.vjp(plan, mine, {}), smh.vjp(plan, variables, {}))


@pytest.mark.parametrize("name", ["matmul", "combined"])
def test_second_derivatives_agree_with_finite_differences(name):
    """Of weights from integers that are fine enough for the differences; between them weights are steps."""
    plan = small(FINE[name])
    mine = arrays(smh.initialize(plan))
    rng = np.random.default_rng(0)
    direction = {n: jnp.asarray(rng.standard_normal(x.shape).astype(np.float32)) for n, x in mine.items()}

    def cubes(variables):
        return sum((w**3).sum() for w in smh_jax.materialize(plan, variables).values())

    gradient = jax.jit(jax.grad(cubes))

    def along(variables):
        return sum((g * direction[name]).sum() for name, g in jax.grad(cubes)(variables).items())

    second = jax.jit(jax.grad(along))(mine)
    step = 2.0**-9
    up = gradient({name: x + step * direction[name] for name, x in mine.items()})
    down = gradient({name: x - step * direction[name] for name, x in mine.items()})
    largest = max(float(jnp.abs(x).max()) for x in second.values())
    for name, x in second.items():
        numeric = (up[name] - down[name]) / (2 * step)
        assert float(jnp.abs(numeric - x).max()) < 3e-2 * largest, name
    if name == "combined":
        return  # of the same making, and slow to compile
    third = jax.jit(jax.grad(lambda v: sum(x.sum() for x in jax.grad(along)(v).values())))(mine)
    assert all(jnp.isfinite(x).all() and x.dtype == jnp.float32 for x in third.values())


def test_jacobians(case):
    """A whole second derivative: vmap over gradients of gradients."""

    def loss(scale):
        return (smh_jax.materialize(case.plan, {**case.mine, "scale/a": scale})["a"] ** 2).sum()

    scale = case.mine["scale/a"]
    second = jax.jacrev(jax.jacrev(loss))(scale)
    # Twice the squares of v, in float32: what differs is the order of at most 20 terms.
    np.testing.assert_allclose(second, 2 * loss(scale) / scale**2, rtol=20 * 2.0**-23)


def dots(jaxpr):
    """Return the types of all operands of matrix products in a program, those of its loops and calls included."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found |= {x.aval.dtype.name for x in equation.invars}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                found |= dots(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize(("bits", "forward"), [(8, "float32"), (16, "float64")])
def test_weights_of_few_bits_need_no_float64_product(bits, forward):
    plan = small(pools.Matmul(n=6, m=3, bits=bits))
    variables, cotangents = arrays(smh.initialize(plan)), arrays(cotangents_for(plan, 0, "normal"))
    assert dots(jax.make_jaxpr(lambda v: smh_jax.materialize(plan, v))(variables).jaxpr) == {forward}
    assert "float64" in dots(jax.make_jaxpr(lambda v, g: smh_jax.vjp(plan, v, g))(variables, cotangents).jaxpr)


def test_exported_programs_have_the_same_bits(case):
    from jax import export

    exported = export.export(jax.jit(lambda v: smh_jax.materialize(case.plan, v)))(case.mine)
    weights = export.deserialize(exported.serialize()).call(case.mine)
    assert_all_same_bits({n: weights[n] for n in case.weights}, case.weights)


def test_equal_plans_share_a_program(case):
    smh_jax.materialize(case.plan, case.mine)
    before = derivatives._compiled._cache_size()
    smh_jax.materialize(smh.Plan.from_json(case.plan.to_json()), case.mine)
    assert derivatives._compiled._cache_size() == before


ON_EIGHT_DEVICES = """
    import functools
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import smh
    from smh.backends import jax as smh_jax
    from smh.backends.jax import backend
    from conformance.bits import assert_same_bits
    from tests.core.cases import cotangents_for

    assert jax.device_count() == 8
    assert backend.devices() == [f"cpu:{i}" for i in range(8)]
    assert backend.asarray(1.0, "cpu:5").devices() == {jax.devices()[5]}
    pool = smh.pools.Matmul(n=16, m=8)  # how arrays are spread is the same for every pool
    plan = smh.Plan.build({"a": (8, 8), "b": (16,)}, ratio=100, pool=pool, include=lambda name: True)
    variables, cotangents = smh.initialize(plan), cotangents_for(plan, 0, "normal")
    weights, gradients = smh.materialize(plan, variables), smh.vjp(plan, variables, cotangents)
    mine = {name: jnp.asarray(x) for name, x in variables.items()}

    def same(actual, expected):
        assert set(actual) == set(expected)
        for name, x in actual.items():
            assert_same_bits(backend.to_numpy(x), expected[name], name)

    def loss(variables):
        built = smh_jax.materialize(plan, variables)
        return sum((built[name] * g).sum() for name, g in cotangents.items())

    sharded = backend.in_mode("sharded")
    same(sharded.materialize(plan, mine), weights)
    same(sharded.vjp(plan, mine, cotangents), gradients)

    def spread(kind, x, reverse):
        mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
        axes = [None] * x.ndim
        for axis in sorted(range(x.ndim), reverse=reverse):
            if x.shape[axis] % 8 == 0:
                axes[axis] = "d"
                break
        return jax.device_put(x, NamedSharding(mesh, P(*axes)))

    for kind in (AxisType.Auto, AxisType.Explicit):
        for reverse in (False, True) if kind is AxisType.Auto else (True,):
            v = {name: spread(kind, x, reverse) for name, x in variables.items()}
            c = {name: spread(kind, x, reverse) for name, x in cotangents.items()}
            same(smh_jax.materialize(plan, v), weights)
            same(smh_jax.vjp(plan, v, c), gradients)
        same(jax.jit(jax.grad(loss))(v), gradients)

    stacked = {name: jnp.stack([x * (i + 1) for i in range(8)]) for name, x in mine.items()}
    one = lambda x: jax.tree.map(lambda x: x[0], x)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = {
        "pmap": jax.pmap(lambda v: smh_jax.vjp(plan, v, cotangents)),
        "shard_map": jax.jit(
            jax.shard_map(
                lambda v: jax.tree.map(lambda x: x[None], smh_jax.vjp(plan, one(v), cotangents)),
                mesh=mesh, in_specs=P("d"), out_specs=P("d"),
            )
        ),
    }
    for run in mapped.values():
        found = run(stacked)
        for i in range(8):
            same(
                {name: x[i] for name, x in found.items()},
                smh.vjp(plan, {name: np.array(x[i]) for name, x in stacked.items()}, cotangents),
            )
    print("same bits")
"""


def test_eight_devices():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(ON_EIGHT_DEVICES)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "same bits\n", result.stderr


@pytest.mark.parametrize("device", [None, *DEVICES])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "uint32", "bool"]
)
def test_arrays_keep_dtype_and_bits(dtype, device):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    size = 8 * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    every = (raw & 1).astype(bool) if dtype == np.bool_ else raw.view(dtype)
    for x in (every, every.reshape(2, -1), every[:0], every[0, ...], np.asfortranarray(every.reshape(2, -1))):
        y = backend.asarray(x, device)
        assert isinstance(y, jax.Array)
        for z in (y, backend.asarray(y, device)):
            back = backend.to_numpy(z)
            assert (back.dtype, back.shape) == (x.dtype, x.shape)
            assert back.tobytes() == np.ascontiguousarray(x).tobytes()


@pytest.mark.parametrize("device", DEVICES)
def test_subnormal_numbers_and_payloads_go_through(device):
    bits = np.asarray([0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x7FC00123, 0x7F800001, 0x7F800000], dtype=np.uint32)
    x = bits.view(np.float32)
    y = backend.asarray(backend.asarray(x, device), device)
    assert np.array_equal(backend.to_numpy(y).view(np.uint32), bits)


def test_arrays_are_of_their_own(tmp_path):
    x = np.asarray([1.5, -0.0], dtype=np.float32)
    y = backend.asarray(x)
    x[0] = 2
    assert float(y[0]) == 1.5
    z = backend.asarray(y)
    host = backend.to_numpy(y)
    y.delete()
    host[0] = 3
    assert float(z[0]) == 1.5
    assert backend.asarray(1.5).dtype == np.float64


def test_checkpoints(tmp_path):
    plan = small()
    variables = smh_jax.initialize(plan)
    assert_all_same_bits(variables, smh.initialize(plan))
    digest = smh_jax.save(tmp_path / "model", plan, variables, {"bias": jnp.ones(3, jnp.bfloat16)})
    loaded = smh_jax.load(tmp_path / "model")
    assert loaded.digest == digest == smh_jax.digest(plan, loaded.variables)
    assert digest == smh.digest(plan, smh.initialize(plan))
    assert loaded.dense["bias"].dtype == jnp.bfloat16


@pytest.mark.parametrize("device", ["nowhere", "cpu:99", "cpu:-1", "cpu:x", "", 3])
def test_unknown_devices_are_refused(device):
    with pytest.raises(smh.BackendError, match=r"has the devices \['(cpu|gpu|tpu):0'.* here; got"):
        backend.asarray(np.ones(3), device)


def test_devices():
    assert backend.devices()[0] == f"{jax.devices()[0].platform}:0"
    assert "cpu:0" in backend.devices()
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        assert backend.devices()[0] == "cpu:0"
    for device in ("cpu", "cpu:0", cpu, jax.sharding.SingleDeviceSharding(cpu)):
        assert backend.asarray(np.ones(3), device).devices() == {cpu}


@NEEDS_GPU
def test_devices_are_kept():
    case = CASES["combined"]
    assert backend.devices()[0] == "gpu:0"
    for device in ("gpu:0", "cpu:0"):
        variables = arrays(case.variables, device)
        gradients = smh_jax.vjp(case.plan, variables, arrays(case.cotangents, device))
        assert_all_same_bits(gradients, case.gradients)
        assert {d.platform for g in gradients.values() for d in g.devices()} == {device.partition(":")[0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/left": v["pool/left"].astype(jnp.float16)}, "float32; got float16"),
        (lambda v: {**v, "pool/left": v["pool/left"].T}, "must have shape"),
        (lambda v: {**v, "pool/left": np.asarray(v["pool/left"])}, "must be a jax.Array, float32; got ndarray"),
        (lambda v: {**v, "pool/lefft": v["pool/left"]}, "did you mean 'pool/left'"),
    ],
)
def test_variables_that_do_not_fit_are_refused(change, message):
    plan = small()
    variables = change(smh_jax.initialize(plan))
    for call in (smh_jax.materialize, lambda *args: smh_jax.vjp(*args, {})):
        with pytest.raises(smh.VariableError, match=message):
            call(plan, variables)
    with pytest.raises(smh.BackendError, match="no mode 'jitt': did you mean 'jit'"):
        backend.in_mode("jitt")


def test_names_and_cotangents_that_do_not_fit_are_refused():
    plan = small()
    variables = smh_jax.initialize(plan)
    with pytest.raises(smh.UnknownNameError):
        smh_jax.materialize(plan, variables, ["c"])
    with pytest.raises(smh.UnknownNameError):
        smh_jax.vjp(plan, variables, {"c": jnp.ones(1)})
    with pytest.raises(smh.VariableError, match="must have shape"):
        smh_jax.vjp(plan, variables, {"b": jnp.ones(1)})


def test_forward_mode_is_refused_by_jax(case):
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(lambda v: smh_jax.materialize(case.plan, v), (case.mine,), (case.mine,))
