import ast
import contextlib
import json
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import smh
from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh import pools
from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from tests.core.cases import values

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  # before TensorFlow, where a process has both

tf = pytest.importorskip("tensorflow")

from smh.backends import tensorflow as smh_tf  # noqa: E402
from smh.backends.tensorflow import backend, namespace  # noqa: E402
from smh.backends.tensorflow.kernels import TensorflowKernels  # noqa: E402

NEEDS_GPU = pytest.mark.skipif(not tf.config.list_logical_devices("GPU"), reason="no GPU")
DEVICES = ["CPU:0", pytest.param("GPU:0", marks=NEEDS_GPU)]


def tensors(arrays, device="CPU:0"):
    return {name: backend.asarray(x, device) for name, x in arrays.items()}


def assert_all_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, x in actual.items():
        assert_same_bits(backend.to_numpy(x), expected[name], name)


MATMUL = pools.Matmul(n=6, m=3)


def small(pool=MATMUL, **kwargs):
    options = {"views": {"a": "i o -> o i"}, "modifiers": {"a": (), "b": ("relu",)}}
    return smh.Plan.build(
        {"a": (5, 4), "b": (3, 2)}, ratio=10**6, pool=pool, include=lambda name: True, **(options | kwargs)
    )


COMBINED = pools.Sum(
    pools.Matmul(n=6, m=2),
    pools.Product(pools.Hash(size=9, hashes=2, capacity=3000), pools.Kronecker(d=3, t=2)),
)
POOLS = {"matmul": MATMUL, "combined": COMBINED}


@pytest.fixture(params=POOLS)
def plan(request):
    return small(POOLS[request.param])


@pytest.fixture
def case(plan):
    return Case(plan)


class Case:
    """A plan, its variables and cotangents, and what the oracle makes of them."""

    def __init__(self, plan, seed=1, kind="normal"):
        self.arrays = values(plan, seed, kind)
        self.plan = plan
        self.variables, self.cotangents = map(tensors, self.arrays)
        described = json.loads(plan.to_json())
        self.weights = oracle.weights(described, self.arrays[0])
        gradients = oracle.gradients(described, *self.arrays)
        self.gradients = {name: gradients[name] for name in plan.variable_shapes}

    def loss(self, variables):
        weights = smh_tf.materialize(self.plan, variables)
        return tf.add_n([tf.reduce_sum(weights[name] * g) for name, g in self.cotangents.items()])

    def grad(self, variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss = self.loss(variables)
        return tape.gradient(loss, variables)


DRAWN = {
    "2 bits": ("normal", small(pools.Matmul(n=6, m=9), bits=2)),
    "4 bits, kappas, cyclic": ("wide", small(pools.Matmul(n=4, m=5), bits=4, optimizer="adam", layout="cyclic")),
    "8 bits, ties": ("ties", small(pools.Kronecker(d=3, t=20))),
    "9 bits, at the limits": ("edges", small(pools.Matmul(n=6, m=4), bits=9)),
    "16 bits, tiny values": ("tiny", small(pools.Kronecker(d=3, t=7, bits=16, gain=20))),
    "16 bits, many terms": ("wide", small(pools.Matmul(n=6, m=300), bits=16)),
    "a table, at the limits": ("edges", small(pools.Hash(size=7, hashes=4, bits=12, capacity=26))),
    "a table without signs": ("special", small(pools.Hash(size=3, signed=False, capacity=9), layout="cyclic")),
    "padding, signs of weights": ("normal", small(pools.Matmul(n=4, m=2), layout="padding", modifiers=["sign"])),
    "fixed exponents": ("wide", small(pools.Matmul(n=6, m=3, exponents=(-29, 30)), scale=2.0**-30)),
    "a sum and a product": ("edges", small(COMBINED, bits=3)),
    "zeros": ("zeros", small(COMBINED, learn_scale=False)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DRAWN)
def test_weights_and_gradients_have_the_bits_of_the_oracle(name, device):
    kind, plan = DRAWN[name]
    for seed in (1, 3, 6):
        case = Case(plan, seed, kind)
        variables, cotangents = (tensors(x, device) for x in case.arrays)
        weights = smh_tf.materialize(plan, variables)
        assert all(w.device.endswith(device) for w in weights.values())
        assert_all_same_bits(weights, case.weights)
        assert_all_same_bits(smh_tf.materialize(plan, variables, ["b"]), {"b": case.weights["b"]})
        assert_all_same_bits(smh_tf.vjp(plan, variables, cotangents), case.gradients)
        assert_all_same_bits(variables, case.arrays[0])  # no argument is changed
    if not any(np.isnan(w).any() for w in case.weights.values()):
        assert smh_tf.digest(plan, variables) == oracle.digest(json.loads(plan.to_json()), case.arrays[0])
    found = backend.indices(plan, 0, plan.capacity)
    for array, i in smh.get_backend("numpy").indices(plan, 0, plan.capacity).items():
        assert found[array].dtype == tf.int64
        assert np.array_equal(backend.to_numpy(found[array]), i)


@pytest.mark.parametrize(
    ("mode", "names"),
    [("function", list(DRAWN)), ("xla", ["4 bits, kappas, cyclic", "16 bits, tiny values", "a sum and a product"])],
)
def test_compilers_change_no_bit(mode, names, caplog):
    other = backend.in_mode(mode)
    for name in names:
        kind, plan = DRAWN[name]
        for seed in (1, 5):
            case = Case(plan, seed, kind)
            assert_all_same_bits(other.materialize(plan, case.variables), case.weights)
            assert_all_same_bits(other.vjp(plan, case.variables, case.cotangents), case.gradients)
    assert "retracing" not in caplog.text


@pytest.mark.parametrize("mode", ["eager", "function", "vectorized"])
def test_tiles_do_not_change_a_bit(monkeypatch, mode):
    monkeypatch.setattr(TensorflowKernels, "tile_elements", 7)
    other = backend.in_mode(mode)
    case = Case(small(COMBINED, seed=1))  # what was compiled with larger tiles is kept under its plan
    assert_all_same_bits(other.materialize(case.plan, case.variables), case.weights)
    assert_all_same_bits(other.vjp(case.plan, case.variables, case.cotangents), case.gradients)


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
def test_second_derivatives_are_those_of_the_smooth_formulas(plan, traced):
    """At variables on their grids, where smooth weights and generated ones agree: against float64 differences."""
    grids = generate.on_grid(NumpyKernels(), plan, smh.initialize(plan))
    variables = tensors(grids)
    rng = np.random.default_rng(0)
    direction = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in grids.items()}

    def gradient(variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            cubes = tf.add_n([tf.reduce_sum(w**3) for w in smh_tf.materialize(plan, variables).values()])
        return tape.gradient(cubes, variables)

    def second(variables):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            along = tf.add_n([tf.reduce_sum(g * direction[name]) for name, g in gradient(variables).items()])
        return tape.gradient(along, variables)

    found = (tf.function(second) if traced else second)(variables)
    curvature = sum(float(np.sum(found[name] * direction[name])) for name in grids)
    step, smooth = 2.0**-7, TensorflowKernels(smooth=True)

    def cubes(t):
        moved = {name: tf.constant(x + np.float32(t) * direction[name]) for name, x in grids.items()}
        weights = generate.materialize(smooth, plan, moved)
        return sum(float(np.sum(w.numpy().astype(np.float64) ** 3)) for w in weights.values())

    expected = (cubes(step) - 2 * cubes(0.0) + cubes(-step)) / step**2
    assert abs(curvature - expected) < 0.05 * (1 + abs(expected))


def test_third_derivatives_exist(case):
    x = case.variables

    def derive(f, n):
        if n == 0:
            return f(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = derive(f, n - 1)
            value = value if n == 1 else tf.add_n([tf.reduce_sum(g) for g in value.values()])
        return tape.gradient(value, x, unconnected_gradients="zero")

    def loss(variables):
        return tf.add_n([tf.reduce_sum(w**3) for w in smh_tf.materialize(case.plan, variables).values()])

    assert all(np.isfinite(g).all() for g in derive(loss, 3).values())
    assert any(np.any(g) for g in derive(loss, 3).values())


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
    parts = [pools.Product(*(pools.Hash(size=40, hashes=2, capacity=500, bits=16) for _ in range(2))) for _ in range(2)]
    plan = smh.Plan.build({"a": (20, 25)}, ratio=10, pool=pools.Sum(*parts))
    case = Case(plan)
    found = backend.in_mode(mode).materialize(plan, case.variables)
    assert_all_same_bits(found, case.weights)


def names_used():
    """Return what the core and shared kernels read of namespaces, except for what this backend's kernels replace."""
    used = set()
    package = pathlib.Path(smh.__file__).parent
    for path in [*(package / "core").rglob("*.py"), package / "backends" / "block_kernels.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for cls in ast.walk(tree):
            if isinstance(cls, ast.ClassDef) and cls.name == "Kernels":
                cls.body = [part for part in cls.body if getattr(part, "name", "") not in vars(TensorflowKernels)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("xp", "kernels.xp", "self.xp"):
                used.add(node.attr)
    return used


def test_the_namespace_has_what_is_used_and_no_more():
    defined = {name for name in vars(namespace) if not name.startswith("_")}
    assert defined - {"annotations", "tf", "Any", "Array", "Callable", "Sequence"} == names_used()


@pytest.mark.parametrize("options", [None, {}, {"jit_compile": True}], ids=["eager", "function", "xla"])
def test_clip_keeps_nan(options):
    def clip(x):
        return namespace.clip(x, -127.0, 127.0)

    found = (clip if options is None else tf.function(clip, **options))(
        tf.constant([np.nan, 128.0, -np.inf, -0.0, 3.0])
    )
    assert_same_bits(found.numpy(), np.asarray([np.nan, 127.0, -127.0, -0.0, 3.0], dtype=np.float32), "clip")


def operations(graph):
    """Return the operations of a graph and of all functions in it, derivatives among them."""
    nodes = list(graph.as_graph_def().node)
    for function in graph.as_graph_def().library.function:
        nodes += function.node_def
    return nodes


def test_gradients_multiply_matrices_in_float64():
    for bits, types in ((8, {tf.float32, tf.float64}), (10, {tf.float64})):
        case = Case(small(bits=bits))
        traced = tf.function(lambda v, c, plan=case.plan: smh_tf.vjp(plan, v, c))
        graph = traced.get_concrete_function(case.variables, case.cotangents).graph
        products = [node for node in operations(graph) if any(word in node.op for word in ("MatMul", "Einsum", "Conv"))]
        assert {tf.as_dtype(node.attr["T"].type) for node in products} == types


def test_graphs_stay_small():
    """However many weights there are."""
    nodes = []
    for side in (300, 6000):
        plan = smh.Plan.build({"a": (side, side)}, ratio=0.01, pool="hash")
        variables = {name: tf.TensorSpec(shape, tf.float32) for name, shape in plan.variable_shapes.items()}
        concrete = tf.function(lambda v, plan=plan: smh_tf.materialize(plan, v)).get_concrete_function(variables)
        nodes.append(len(operations(concrete.graph)))
    assert nodes[1] < 40 * nodes[0]


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
    variables = tensors({name: x * np.float32(1.01) for name, x in smh.initialize(plan).items()})
    digest = smh_tf.save(tmp_path / "model", plan, variables, {"bias": tf.ones(3)})
    loaded = smh_tf.load(tmp_path / "model")
    assert loaded.digest == digest == smh_tf.digest(plan, loaded.variables) == smh_tf.digest(plan, variables)
    assert np.array_equal(loaded.dense["bias"], np.ones(3))
    assert not np.array_equal(loaded.variables["pool/left"], variables["pool/left"])  # those of the integers
    assert smh_tf.save(tmp_path / "training", plan, variables, training=True) == digest
    again = smh_tf.load(tmp_path / "training", device="CPU:0")
    assert again.training
    assert_all_same_bits(again.variables, {name: x.numpy() for name, x in variables.items()})


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
