"""The NumPy backend: arrays that overlap nowhere, in memory as they are indexed, and digests."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file

import smh
from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core.pools import Hash, Kronecker, Matmul, Sum
from tests.core.cases import plans, seeds, values

POOLS = (Matmul(n=80), Kronecker(d=9), Hash(size=300), Sum(Matmul(n=80, m=2), Hash(size=300)))


def test_arrays_go_through_unchanged():
    backend = smh.get_backend("numpy")
    assert backend.devices() == ["cpu"]
    x = np.asarray([1.5, -0.0, np.nan], dtype=np.float32)
    y = backend.asarray(x, "cpu")
    y[0] = 2
    assert x[0] == 1.5
    assert_same_bits(backend.to_numpy(backend.asarray(x)), x)
    with pytest.raises(smh.BackendError, match="only the device 'cpu'; got 'cuda'"):
        backend.asarray(x, "cuda")


@pytest.mark.parametrize("layout", ["basic", "cyclic", "padding"])
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.kind)
@pytest.mark.parametrize("names", [None, ["b"], ["c", "a"]], ids=str)
def test_weights_overlap_neither_one_another_nor_variables(names, pool, layout):
    shapes = {"a": (7, 3), "b": (5, 1), "c": (3, 3, 4, 6), "d": (50, 60) if layout == "basic" else (300, 400)}
    plan = smh.Plan.build(shapes, ratio=0.3, pool=pool, layout=layout)
    variables = smh.initialize(plan)
    before = {name: x.copy() for name, x in variables.items()}
    weights = smh.materialize(plan, variables, names)
    expected = {name: w.copy() for name, w in weights.items()}
    for number, w in enumerate(weights.values()):
        assert w.flags.writeable
        assert w.flags.c_contiguous
        w[...] = number
    assert [np.unique(w).tolist() for w in weights.values()] == [[number] for number in range(len(weights))]
    assert all(np.array_equal(x, before[name]) for name, x in variables.items())
    again = smh.materialize(plan, variables, names)
    assert all(np.array_equal(w, expected[name]) for name, w in again.items())


def test_weights_are_in_memory_as_they_are_indexed(tmp_path):
    """safetensors writes the memory of an array, whatever its strides."""
    plan = smh.Plan.build({"w": (3, 4), "b": (5,)}, ratio=1, views={"w": "i o -> o i"}, include=lambda name: True)
    weights = smh.materialize(plan, smh.initialize(plan))
    save_file(weights, tmp_path / "w.safetensors")
    for name, w in load_file(tmp_path / "w.safetensors").items():
        assert_same_bits(w, weights[name], name)


def test_tensors_of_another_framework_are_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    plan = smh.Plan.build({"a": (40, 30)}, ratio=0.2)
    variables = {name: torch.from_numpy(x) for name, x in smh.initialize(plan).items()}
    message = r"must be a plain numpy.ndarray; .*smh.torch, .* take the arrays of their framework; got torch.Tensor"
    for call in (
        smh.materialize,
        smh.numpy.materialize,
        smh.digest,
        lambda *args: smh.vjp(*args, {}),
        lambda *args: smh.save(tmp_path / "x", *args),
    ):
        with pytest.raises(smh.VariableError, match=message):
            call(plan, variables)
    assert not list(tmp_path.iterdir())


@settings(max_examples=30)
@given(plans(), seeds)
def test_results_are_float32_arrays_of_the_shapes_of_the_plan(plan, seed):
    variables, cotangents = values(plan, seed, "normal")
    weights, gradients = smh.materialize(plan, variables), smh.vjp(plan, variables, cotangents)
    assert {name: w.shape for name, w in weights.items()} == {t.name: t.viewed_shape for t in plan.tensors}
    assert {name: g.shape for name, g in gradients.items()} == plan.variable_shapes
    for x in [*weights.values(), *gradients.values()]:
        assert type(x) is np.ndarray
        assert x.dtype == np.float32


@settings(max_examples=30)
@given(plans(), seeds)
def test_digests_are_those_of_the_oracle(plan, seed):
    variables, _ = values(plan, seed, "special")
    assert smh.digest(plan, variables) == oracle.digest(plan.to_dict(), variables)


def test_the_digest_does_not_depend_on_how_many_tensors_are_built_at_a_time(monkeypatch):
    plan = smh.Plan.build({f"t{i}": (5, i + 1) for i in range(9)}, ratio=0.9, views={"t3": "i o -> o i"})
    variables = smh.initialize(plan)
    expected = oracle.digest(plan.to_dict(), variables)
    assert smh.digest(plan, variables) == expected
    for limit in (1, 30, 60):
        monkeypatch.setattr("smh.files.digests._GROUP", limit)
        assert smh.digest(plan, variables) == expected
    for block in (1, 7):
        monkeypatch.setattr("smh.files.digests._BLOCK", block)
        assert smh.digest(plan, variables) == expected


def test_threads_of_linear_algebra_do_not_change_a_bit():
    code = """
import smh
plan = smh.Plan.build({"a": (300, 300)}, ratio=0.5, bits=16)
print(smh.digest(plan, smh.initialize(plan)))
"""
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 64
