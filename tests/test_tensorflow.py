import ast
import contextlib
import dataclasses
import json
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings

import smh
from conformance.bits import assert_same_bits
from conformance.cases import cotangents_for, kinds, plans, seeds, variables_for
from conformance.vectors import load_vectors
from smh import pools

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")

from smh.backends import tensorflow as smh_tf  # noqa: E402
from smh.backends.tensorflow import backend, namespace  # noqa: E402
from smh.backends.tensorflow.ops import TensorFlowOps  # noqa: E402

VECTORS = [vector for vector in load_vectors() if vector.plan["arithmetic"] == "exact"]
NEEDS_GPU = pytest.mark.skipif(not tf.config.list_logical_devices("GPU"), reason="no GPU")
DEVICES = ["CPU:0", pytest.param("GPU:0", marks=NEEDS_GPU)]
MODES = [mode.name for mode in backend.modes()]


def tensors(arrays, device="CPU:0"):
    return {name: backend.asarray(x, device) for name, x in arrays.items()}


def assert_all_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, x in actual.items():
        assert_same_bits(backend.to_numpy(x), expected[name], name)


def small(pool="matmul", arithmetic="exact", **kwargs):
    return smh.Plan.build(
        {"a": (5, 4), "b": (3, 2)},
        ratio=10,
        pool=pool,
        views={"a": "i o -> o i"},
        modifiers={"a": (), "b": ("relu",)},
        include=lambda name: True,
        arithmetic=arithmetic,
        **kwargs,
    )


POOLS = {
    "matmul": pools.Matmul(n=6, m=3),
    "combined": pools.Sum(
        pools.Matmul(n=6, m=2),
        pools.Product(pools.Hash(size=9, hashes=2, capacity=3000), pools.Kronecker(d=3, t=2)),
    ),
}


@pytest.fixture(params=POOLS)
def plan(request):
    return small(POOLS[request.param])


@pytest.fixture
def case(plan):
    return Case(plan)


class Case:
    """A plan, its variables and cotangents, and what the NumPy backend makes of them."""

    def __init__(self, plan):
        variables, cotangents = smh.initialize(plan), cotangents_for(plan, 0, "normal")
        self.plan = plan
        self.variables, self.cotangents = tensors(variables), tensors(cotangents)
        self.weights = smh.materialize(plan, variables)
        self.gradients = smh.vjp(plan, variables, cotangents)

    def loss(self, variables):
        weights = smh_tf.materialize(self.plan, variables)
        return tf.add_n([tf.reduce_sum(weights[name] * g) for name, g in self.cotangents.items()])

    def grad(self, variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss = self.loss(variables)
        return tape.gradient(loss, variables)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_golden_vectors(vector, device):
    plan = smh.Plan.from_json(json.dumps(vector.plan))
    variables, cotangents = tensors(vector.variables, device), tensors(vector.cotangents, device)
    weights = smh_tf.materialize(plan, variables)
    assert all(w.device.endswith(device) for w in weights.values())
    assert_all_same_bits(weights, vector.weights)
    assert_all_same_bits(smh_tf.vjp(plan, variables, cotangents), vector.gradients)
    assert smh_tf.digest(plan, variables) == vector.digest


@settings(max_examples=40)
@given(plans(), seeds, kinds, kinds)
def test_weights_and_gradients_have_the_bits_of_numpy(plan, seed, kind, cotangent_kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, cotangent_kind)
    mine = tensors(variables)
    weights = smh.materialize(plan, variables)
    assert_all_same_bits(smh_tf.materialize(plan, mine), weights)
    last = plan.tensors[-1].name
    assert_all_same_bits(smh_tf.materialize(plan, mine, [last]), {last: weights[last]})
    assert_all_same_bits(smh_tf.vjp(plan, mine, tensors(cotangents)), smh.vjp(plan, variables, cotangents))
    some = dict(list(cotangents.items())[::2])
    assert_all_same_bits(smh_tf.vjp(plan, mine, tensors(some)), smh.vjp(plan, variables, some))
    assert_all_same_bits(mine, variables)  # no argument is changed
    found = backend.indices(plan, 0, plan.capacity)
    for name, i in smh.get_backend("numpy").indices(plan, 0, plan.capacity).items():
        assert found[name].dtype == tf.int64
        assert np.array_equal(backend.to_numpy(found[name]), i)


@pytest.mark.parametrize("mode", MODES)
def test_modes(case, mode, caplog):
    other = backend.in_mode(mode)
    for _ in range(2):
        assert_all_same_bits(other.materialize(case.plan, case.variables), case.weights)
        assert_all_same_bits(other.vjp(case.plan, case.variables, case.cotangents), case.gradients)
    assert_all_same_bits(other.materialize(case.plan, case.variables, ["b"]), {"b": case.weights["b"]})
    assert "retracing" not in caplog.text


@pytest.mark.parametrize("mode", ["eager", "function", "xla", "vectorized"])
def test_blocks_do_not_change_a_bit(case, monkeypatch, mode):
    monkeypatch.setattr(TensorFlowOps, "block_elements", 7)
    other = backend.in_mode(mode)
    plan = dataclasses.replace(case.plan, seed=1)  # what was compiled with larger blocks is kept under its plan
    arrays = {name: backend.to_numpy(x) for name, x in case.variables.items()}
    cotangents = {name: backend.to_numpy(x) for name, x in case.cotangents.items()}
    assert_all_same_bits(other.materialize(plan, case.variables), smh.materialize(plan, arrays))
    expected = smh.vjp(plan, arrays, cotangents)
    assert_all_same_bits(other.vjp(plan, case.variables, case.cotangents), expected)


def test_gradients_of_unused_weights_are_not_needed(case):
    with tf.GradientTape() as tape:
        tape.watch(case.variables)
        loss = tf.reduce_sum(smh_tf.materialize(case.plan, case.variables)["b"] * case.cotangents["b"])
    expected = smh_tf.vjp(case.plan, case.variables, {"b": case.cotangents["b"]})
    found = tape.gradient(loss, case.variables)
    assert_all_same_bits(found, {name: g.numpy() for name, g in expected.items()})
    assert smh_tf.materialize(case.plan, case.variables, []) == {}
    assert not any(np.any(g) for g in smh_tf.vjp(case.plan, case.variables, {}).values())


@pytest.mark.parametrize("traced", [False, True])
def test_variables_and_tapes(case, traced):
    variables = {name: tf.Variable(x) for name, x in case.variables.items()}

    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            loss = case.loss(variables)
        return tape.gradient(loss, variables), tape.gradient(2.0 * loss, variables), tape.gradient(loss, variables)

    if traced:
        gradients = tf.function(gradients)
    first, _, third = gradients()
    assert_all_same_bits(first, case.gradients)
    assert_all_same_bits(third, case.gradients)


def test_a_users_function_needs_no_care(case, recwarn):
    """With autograph, in which every branch and loop of Python is taken for one of the graph."""
    compiled = tf.function(lambda v: (smh_tf.materialize(case.plan, v), case.grad(v)))
    weights, gradients = compiled(case.variables)
    assert_all_same_bits(weights, case.weights)
    assert_all_same_bits(gradients, case.gradients)
    given = tf.function(lambda v, c: smh_tf.vjp(case.plan, v, c))(case.variables, case.cotangents)
    assert_all_same_bits(given, case.gradients)
    assert not recwarn.list


def test_shapes_that_a_graph_does_not_know(case):
    signature = {name: tf.TensorSpec(None, tf.float32) for name in case.variables}
    compiled = tf.function(lambda v: smh_tf.materialize(case.plan, v), input_signature=[signature])
    assert_all_same_bits(compiled(case.variables), case.weights)
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled({name: x[None] for name, x in case.variables.items()})


def test_maps(case):
    batch = {name: tf.stack([x, 2 * x, -x]) for name, x in case.variables.items()}

    def mapped(batch):
        with tf.GradientTape() as tape:
            tape.watch(batch)
            loss = tf.reduce_sum(tf.map_fn(case.loss, batch, fn_output_signature=tf.float32))
        return tape.gradient(loss, batch)

    for gradients in (mapped(batch), tf.function(mapped)(batch), tf.vectorized_map(case.grad, batch)):
        for i in range(3):
            one = {name: x[i].numpy() for name, x in batch.items()}
            expected = smh.vjp(case.plan, one, {n: g.numpy() for n, g in case.cotangents.items()})
            assert_all_same_bits({n: g[i] for n, g in gradients.items()}, expected)


def test_gradients_around_a_vectorized_map_are_refused_rather_than_wrong(case):
    batch = {name: tf.stack([x, x]) for name, x in case.variables.items()}

    def around():
        with tf.GradientTape() as tape:
            tape.watch(batch)
            losses = tf.vectorized_map(case.loss, batch)
        return tape.gradient(losses, batch)

    with pytest.raises(LookupError, match="inside of tf.vectorized_map"):
        around()


def test_recompute_grad(case):
    names = list(case.variables)
    again = tf.recompute_grad(lambda *flat: case.loss(dict(zip(names, flat, strict=True))))
    variables = [tf.Variable(x) for x in case.variables.values()]
    with tf.GradientTape() as tape:
        loss = again(*(tf.convert_to_tensor(x) for x in variables))
    assert_all_same_bits(dict(zip(names, tape.gradient(loss, variables), strict=True)), case.gradients)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_second_derivatives_agree_with_finite_differences(plan, arithmetic, traced):
    plan = dataclasses.replace(plan, arithmetic=arithmetic)
    variables = tensors(smh.initialize(plan))
    rng = np.random.default_rng(0)
    direction = {n: tf.constant(rng.standard_normal(x.shape).astype(np.float32)) for n, x in variables.items()}

    def along(variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            cubes = tf.add_n([tf.reduce_sum(w**3) for w in smh_tf.materialize(plan, variables).values()])
        gradient = tape.gradient(cubes, variables)
        return tf.add_n([tf.reduce_sum(g * direction[name]) for name, g in gradient.items()])

    def second(variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            value = along(variables)
        return tape.gradient(value, variables)

    found = (tf.function(second) if traced else second)(variables)
    # Central differences of float32 values at 2**-7: the curvature left over, and rounding, stay below 2 percent.
    step = 2.0**-7
    up, down = ({n: x + s * direction[n] for n, x in variables.items()} for s in (step, -step))
    expected = (float(along(up)) - float(along(down))) / (2 * step)
    actual = float(tf.add_n([tf.reduce_sum(found[name] * direction[name]) for name in variables]))
    assert abs(actual - expected) < 0.02 * (1 + abs(expected))


def test_training_in_a_function():
    plan = smh.Plan.build({"fc": (8, 3)}, ratio=0.9)
    variables = {name: tf.Variable(x) for name, x in smh_tf.initialize(plan).items()}
    x = tf.constant(np.random.default_rng(0).standard_normal((32, 8)), tf.float32)
    y = x @ tf.ones((8, 3))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ smh_tf.materialize(plan, variables)["fc"] - y) ** 2)
        for name, gradient in tape.gradient(loss, variables).items():
            variables[name].assign_sub(0.05 * gradient)
        return loss

    losses = [float(step()) for _ in range(50)]
    assert losses[-1] < 0.5 * losses[0]
    assert step.experimental_get_tracing_count() == 1


def test_mixed_precision_of_keras_does_not_reach_the_core(case):
    keras = pytest.importorskip("keras")
    if keras.config.backend() != "tensorflow":
        pytest.skip("Keras runs on another framework")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        variables = {name: keras.Variable(x.numpy(), dtype="float32") for name, x in case.variables.items()}
        assert_all_same_bits(smh_tf.materialize(case.plan, variables), case.weights)
        assert_all_same_bits(smh_tf.vjp(case.plan, case.variables, case.cotangents), case.gradients)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("mode", ["function", "xla"])
def test_sums_of_pools_are_rounded_between(mode):
    """A compiler must not drop the roundings to float32 between a part and the sum."""
    pool = pools.Sum(*(pools.Hash(size=40, hashes=2, capacity=500) for _ in range(2)))
    plan = smh.Plan.build({"a": (20, 25)}, ratio=10, pool=pool, gain=0)
    variables = smh.initialize(plan)
    found = backend.in_mode(mode).materialize(plan, tensors(variables))
    assert_all_same_bits(found, smh.materialize(plan, variables))


def names_used_by_the_core():
    """Return what the core reads of its namespaces, but for defaults of Ops that this backend replaces."""
    used = set()
    root = pathlib.Path(smh.__file__).parent
    for path in [*root.glob("*.py"), *(root / "pools").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "ops.py":
            kept = {"word_dtype", "fold_rows", "block_rows", "row_blocks", "__init__"} - set(vars(TensorFlowOps))
            tree.body = [
                part
                for cls in tree.body
                if isinstance(cls, ast.ClassDef)
                for part in cls.body
                if getattr(part, "name", "") in kept
            ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("xp", "ops.xp", "self.ops.xp"):
                used.add(node.attr)
    return used


def test_the_namespace_has_what_the_core_uses_and_no_more():
    defined = {name for name in vars(namespace) if not name.startswith("_")}
    assert defined - {"annotations", "math", "tf", "Any", "Array", "Sequence"} == names_used_by_the_core()


def lines_with_nan(dtype):
    x = np.random.default_rng(0).standard_normal((7, 9)).astype(dtype)
    x[0], x[1], x[2, ::2] = -abs(x[0]), abs(x[1]), -0.0
    x[3, 8], x[4, 0], x[5, 4], x[6] = np.nan, -np.nan, np.nan, np.nan
    x[5, 5] = np.inf
    x[0, 0], x[1, 1] = np.copysign(np.nan, -1), np.copysign(np.nan, -1)
    x = np.concatenate([x, abs(x[1:2, 2:3]) * np.ones((1, 9), dtype), -np.ones((1, 9), dtype)])
    x[8, 3] = -np.inf
    return x


@pytest.mark.parametrize("gpu", [False, True], ids=["by bits", "by checks"])
@pytest.mark.parametrize("options", [None, {}, {"jit_compile": True}], ids=["eager", "function", "xla"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extremes_keep_nan(dtype, options, gpu, monkeypatch):
    monkeypatch.setattr(namespace, "_has_gpu", lambda: gpu)
    x = lines_with_nan(dtype)

    def extremes(x):
        y = tf.reverse(x, [1])
        found = [
            f(x, axis=a, keepdims=k) for f in (namespace.max, namespace.min) for a in (0, 1) for k in (False, True)
        ]
        return [*found, namespace.maximum(x, y), namespace.max(x[1], axis=0), namespace.min(x[8], axis=0)]

    found = (extremes if options is None else tf.function(extremes, **options))(tf.constant(x))
    expected = [f(x, axis=a, keepdims=k) for f in (np.max, np.min) for a in (0, 1) for k in (False, True)]
    expected += [np.maximum(x, x[:, ::-1]), np.max(x[1]), np.min(x[8])]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)
        assert mine.dtype.as_numpy_dtype == theirs.dtype


def operations(graph):
    """Return the operations of a graph and of all functions in it, loops and derivatives among them."""
    nodes = list(graph.as_graph_def().node)
    for function in graph.as_graph_def().library.function:
        nodes += function.node_def
    return nodes


def products(plan):
    case = Case(plan)
    concrete = tf.function(lambda v, c: smh_tf.vjp(plan, v, c)).get_concrete_function(case.variables, case.cotangents)
    return {
        node.op: tf.as_dtype(node.attr["T"].type)
        for node in operations(concrete.graph)
        if any(word in node.op for word in ("MatMul", "Einsum", "Conv"))
    }


def test_exact_arithmetic_multiplies_no_float32_matrices(plan):
    assert set(products(plan).values()) == {tf.float64}
    assert set(products(dataclasses.replace(plan, arithmetic="fast")).values()) == {tf.float32}  # the check can fail


def test_graphs_stay_small():
    """However many blocks there are, a graph holds the code of two."""
    nodes = []
    for side in (300, 3000):
        plan = smh.Plan.build({"a": (side, side)}, ratio=0.01)
        variables = tensors(smh.initialize(plan))
        concrete = tf.function(lambda v, plan=plan: smh_tf.materialize(plan, v)).get_concrete_function(variables)
        nodes.append(len(operations(concrete.graph)))
    assert nodes[1] < 3 * nodes[0]


def arrays():
    import ml_dtypes

    bits = np.asarray([0x3FC00000, 0x80000000, 0x7FC12345, 0xFF812345, 1, 0x80000001], dtype=np.uint32)
    yield bits.view(np.float32)
    yield (bits.astype(np.uint64) << np.uint64(32)).view(np.float64)
    yield (bits >> 16).astype(np.uint16).view(np.float16)
    yield (bits >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
    yield from (np.asarray([0, 1, 100]).astype(dtype) for dtype in (np.int64, np.int32, np.uint8, np.bool_))
    yield np.float32(3)
    yield np.zeros((0, 3), dtype=np.float32)
    yield np.arange(6, dtype=np.float32).reshape(2, 3).T


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_arrays_keep_their_bits(device):
    for x in arrays():
        for y in (backend.asarray(x, device), backend.asarray(backend.asarray(x), device)):
            z = backend.to_numpy(y)
            assert (z.dtype, z.shape) == (x.dtype, x.shape)
            assert z.tobytes() == x.tobytes()


def test_arrays_are_their_own():
    x = np.ones(1000, dtype=np.float32)
    variable = tf.Variable(x)
    y, z = backend.asarray(x), backend.asarray(variable)
    x[:] = 2
    variable.assign(x)
    backend.to_numpy(y)[:] = 3
    assert np.all(y == 1)
    assert np.all(z == 1)


def test_devices():
    x = np.ones(2, dtype=np.float32)
    assert backend.devices()[-1] == "CPU:0"
    for device in ("CPU:0", "cpu", "/device:CPU:0", "/job:localhost/replica:0/task:0/device:CPU:0"):
        assert backend.asarray(x, device).device.endswith("CPU:0")
    assert backend.asarray(x, tf.config.list_logical_devices("CPU")[0]).device.endswith("CPU:0")
    for device in ("nowhere", "GPU:99", "CPU:1"):
        with pytest.raises(smh.BackendError, match="has the devices .*'CPU:0'"):
            backend.asarray(x, device)


@NEEDS_GPU
def test_the_default_device_is_the_gpu():
    assert backend.devices()[0] == "GPU:0"
    assert backend.asarray(np.ones(2, dtype=np.float32)).device.endswith("GPU:0")


def test_checkpoints(tmp_path):
    plan = small()
    variables = smh_tf.initialize(plan)
    digest = smh_tf.save(tmp_path / "model", plan, variables, {"bias": tf.ones(3)})
    loaded = smh_tf.load(tmp_path / "model")
    assert loaded.digest == digest == smh_tf.digest(plan, loaded.variables)
    assert digest == smh.digest(plan, smh.initialize(plan))
    assert np.array_equal(loaded.dense["bias"], np.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/wrong": v["pool/left"]}, "no variable 'pool/wrong'"),
        (lambda v: {**v, "pool/left": tf.cast(v["pool/left"], tf.float64)}, "float32; got .*float64"),
        (lambda v: {**v, "pool/left": tf.transpose(v["pool/left"])}, "must have shape"),
        (lambda v: {**v, "pool/left": v["pool/left"].numpy()}, "tf.Tensor, float32; got ndarray"),
        (lambda v: {**v, "pool/left": 3.0}, "tf.Tensor, float32; got float"),
    ],
)
def test_variables_that_do_not_fit_are_refused(change, message):
    plan = small()
    variables = change(smh_tf.initialize(plan))
    for call in (smh_tf.materialize, lambda *args: smh_tf.vjp(*args, {})):
        with pytest.raises(smh.VariableError, match=message):
            call(plan, variables)


def test_names_and_cotangents_that_do_not_fit_are_refused():
    plan = small()
    variables = smh_tf.initialize(plan)
    with pytest.raises(smh.UnknownNameError):
        smh_tf.materialize(plan, variables, ["c"])
    with pytest.raises(smh.UnknownNameError):
        smh_tf.vjp(plan, variables, {"c": tf.ones(1)})
    with pytest.raises(smh.VariableError, match="must have shape"):
        smh_tf.vjp(plan, variables, {"b": tf.ones(1)})
    with pytest.raises(smh.VariableError, match="the cotangent of 'b' must be a tf.Tensor"):
        smh_tf.vjp(plan, variables, {"b": np.ones((3, 2), dtype=np.float32)})


ALL_IN_ONE = """
import importlib.util
import smh
plan = smh.Plan.build({"a": (20, 30)}, ratio=0.3, pool="hash")
digests = {"numpy": smh.digest(plan, smh.initialize(plan))}
for name in ("torch", "jax", "tensorflow"):  # torch before tensorflow
    if importlib.util.find_spec(name) and importlib.util.find_spec(f"smh.backends.{name}"):
        module = importlib.import_module(f"smh.backends.{name}")
        digests[name] = module.digest(plan, module.initialize(plan))
assert "tensorflow" in digests
assert len(set(digests.values())) == 1, digests
import tensorflow as tf
assert not hasattr(tf.Tensor, "astype")  # no behaviour was switched on
"""


def test_all_frameworks_in_one_process():
    done = subprocess.run([sys.executable, "-c", ALL_IN_ONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_logging_is_left_alone():
    assert logging.getLogger("tensorflow").level != logging.CRITICAL


@pytest.mark.parametrize("wrapped", [lambda fn: fn, tf.function, tf.function(jit_compile=True)])
def test_what_is_computed_once_keeps_its_bits(wrapped):
    x = np.asarray([[1.5, 2.0**-240, 2.0**1000, np.inf, np.nan]])
    found = wrapped(TensorFlowOps().settled)(tf.constant(x)).numpy()
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.view(np.uint64), x.view(np.uint64))
