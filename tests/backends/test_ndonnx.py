"""Plans as ONNX files: ONNX Runtime builds the same weights from integers."""

import dataclasses

import numpy as np
import pytest

import smh
import smh.export
from conformance.bits import assert_same_bits
from smh import pools

ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
onnx = pytest.importorskip("onnx", reason="ONNX is not installed")
pytest.importorskip("ndonnx", reason="ndonnx is not installed")

SHAPES = {"fc1": (64, 100), "conv": (10, 20, 3, 3), "row": (7,)}
CASES = {
    "matmul": {},
    "bits 2": {"pool": pools.Matmul(bits=2)},
    "bits 9": {"pool": pools.Matmul(bits=9)},
    "bits 16": {"pool": pools.Matmul(bits=16)},
    "kronecker": {"pool": "kronecker"},
    "hash": {"pool": pools.Hash(hashes=3)},
    "unsigned": {"pool": pools.Hash(hashes=2, signed=False, bits=16)},
    "sum": {"pool": pools.Sum(pools.Matmul(), pools.Hash(bits=4), pools.Kronecker(bits=9))},
    "product": {"pool": pools.Product(pools.Matmul(), pools.Sum(pools.Kronecker(), pools.Hash()))},
    "views": {"views": {"conv": "o i h w -> h w i o", "fc1": ("(a b) o -> o b a", {"a": 4})}},
    "modifiers": {"modifiers": ("relu", "sign"), "learn_scale": False},
    "large gain": {"optimizer": "adam", "pool": pools.Matmul(gain=20)},
}


def built(path, **options):
    settings = ort.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    session = ort.InferenceSession(path, settings)
    assert not session.get_inputs()
    return dict(zip([x.name for x in session.get_outputs()], session.run(None, {}), strict=True))


def check(path, plan, variables):
    sizes = smh.export.plan_onnx(path, plan, variables)
    expected = smh.materialize(plan, variables)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        found = built(path, graph_optimization_level=level)
        assert list(found) == list(expected)
        for name, x in found.items():
            assert x.shape == expected[name].shape
            assert_same_bits(x, expected[name])
    assert sizes.file == path.stat().st_size
    assert sizes.integers + sizes.kept == plan.file_bytes
    terms = sum(getattr(leaf.pool, "hashes", 1) for leaf in plan.pool.leaves(seed=0))
    assert sizes.graph < 6000 * len(plan.tensors) * terms
    return sizes


@pytest.mark.parametrize("case", CASES)
def test_a_runtime_builds_the_weights_of_every_pool(tmp_path, case):
    plan = smh.Plan.build(SHAPES, include="*", ratio=0.2, seed=5, **CASES[case])
    check(tmp_path / "model.onnx", plan, smh.initialize(plan))


@pytest.mark.parametrize("layout", ["cyclic", "padding"])
def test_layouts_are_in_the_graph(tmp_path, layout):
    plan = smh.Plan.build({"a": (300, 300), "b": (3, 5), "c": (40, 7)}, ratio=0.2, layout=layout)
    plan = dataclasses.replace(plan, pool=pools.Matmul(n=60, m=9, bits=8, gain=0))
    check(tmp_path / "model.onnx", plan, smh.initialize(plan))


def test_extreme_integers_scales_and_long_sums_are_exact(tmp_path):
    for terms in (1024, 3000, 140_000):  # the last one is too long for int32
        plan = smh.Plan.build({"w": (2, 2)}, ratio=1)
        plan = dataclasses.replace(plan, pool=pools.Matmul(n=2, m=terms, bits=8, gain=0))
        variables = smh.initialize(plan)
        variables["pool/left"] = np.where(np.arange(2 * terms).reshape(2, terms) % 3 < 2, 127, -127).astype(np.float32)
        variables["pool/right"] = np.full((terms, 2), -127, dtype=np.float32)
        variables["pool/right"][0] = 126  # an odd sum
        check(tmp_path / "model.onnx", plan, variables)
    for scale in (2.0**-31, -0.0, 2.0**30, np.nan, -3.0):
        variables["scale/w"] = np.asarray(scale * 2.0 ** plan.tensors[0].kappa, dtype=np.float32)
        check(tmp_path / "model.onnx", plan, variables)
    variables["pool/left"][:] = 0
    check(tmp_path / "model.onnx", plan, variables)


def test_files_hold_integers_and_are_as_small_as_the_pool(tmp_path):
    plan = smh.Plan.build({"w": (500, 700), "v": (700, 100)}, ratio=0.2)
    sizes = check(tmp_path / "model.onnx", plan, smh.initialize(plan))
    assert sizes.file < 1.1 * plan.file_bytes
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    types = {x.name: onnx.TensorProto.DataType.Name(x.data_type) for x in model.graph.initializer}
    assert types == {"pool/left": "INT8", "pool/right": "INT8", "scale/w": "FLOAT", "scale/v": "FLOAT"}
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 21)]
    hashed = smh.Plan.build({"w": (500, 700)}, ratio=0.2, pool="hash")
    assert check(tmp_path / "model.onnx", hashed, smh.initialize(hashed)).file < 1.1 * hashed.file_bytes


def test_equal_content_gives_equal_bytes(tmp_path):
    plan = smh.Plan.build(SHAPES, ratio=0.2)
    for name in ("one", "two"):
        smh.export.plan_onnx(tmp_path / name, plan, smh.initialize(plan))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_a_graph_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    plan = smh.Plan.build(SHAPES, ratio=0.2)
    variables, path = smh.initialize(plan), tmp_path / "model.onnx"
    with pytest.raises(smh.PlanError, match="plan must be a smh.Plan; got dict"):
        smh.export.plan_onnx(path, {}, variables)
    with pytest.raises(smh.VariableError, match="'scale/fc1' is missing"):
        smh.export.plan_onnx(path, plan, {name: x for name, x in variables.items() if name != "scale/fc1"})
    with pytest.raises(smh.VariableError, match="not finite"):
        smh.export.plan_onnx(path, plan, {**variables, "pool/left": variables["pool/left"] * np.float32(np.nan)})
    clash = smh.Plan.build({"scale/a": (30, 20), "a": (4, 5)}, ratio=0.2)
    with pytest.raises(smh.ExportError, match="same name, which a graph cannot hold: rename 'scale/a'"):
        smh.export.plan_onnx(path, clash, smh.initialize(clash))
    large = smh.Plan.build(dict.fromkeys("abc", (2**15, 2**15)), ratio=0.9)
    with pytest.raises(smh.ExportError, match="an ONNX file holds less than"):
        smh.export.plan_onnx(path, large, {})
    assert not list(tmp_path.iterdir())
