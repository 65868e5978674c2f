"""The golden vectors: what SMH-1 is, in bits, for every backend and every later version."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from conformance.vectors import FOLDER, load_sizes, load_vectors, load_words
from smh import generate, hashing, pools
from smh.backends.numpy import NumpyOps

VECTORS = load_vectors()


@pytest.fixture(params=VECTORS, ids=lambda vector: vector.name)
def vector(request):
    return request.param


@pytest.fixture
def plan(vector):
    return smh.Plan.from_json(json.dumps(vector.plan))


def test_weights(vector, plan):
    if plan.arithmetic == "exact":
        weights = smh.materialize(plan, vector.variables)
        assert list(weights) == list(vector.weights)
        for name, w in weights.items():
            assert_same_bits(w, vector.weights[name], name)


def test_gradients(vector, plan):
    if plan.arithmetic == "exact":
        gradients = smh.vjp(plan, vector.variables, vector.cotangents)
        assert list(gradients) == list(vector.gradients)
        for name, g in gradients.items():
            assert_same_bits(g, vector.gradients[name], name)


def test_digest(vector, plan):
    assert smh.digest(plan, vector.variables) == vector.digest


def test_initial_variables_and_gains(vector, plan):
    for distribution, expected in vector.initial.items():
        for name, x in smh.initialize(plan, distribution).items():
            assert_same_bits(x, expected[name], name)
    for rule, gains in vector.gains.items():
        shapes = {tensor.name: tensor for tensor in plan.tensors}
        mean = np.sqrt(sum(t.size * t.initial_scale**2 for t in shapes.values()) / plan.num_weights)
        pool = plan.pool.with_gain(rule, plan.num_weights, float(mean))
        assert [leaf.pool.gain for leaf in pool.leaves(plan.seed)] == gains


def test_indices_and_signs(vector, plan):
    found = generate.indices(NumpyOps(), plan, vector.cells)
    assert set(found) == set(vector.indices)
    for name, rows in vector.indices.items():
        assert np.array_equal(found[name], rows.reshape(len(vector.cells), -1) if rows.size else found[name][:0]), name
    for leaf in plan.pool.leaves(plan.seed):
        if isinstance(leaf.pool, pools.Hash):
            signs = leaf.pool.signs(NumpyOps(), vector.cells, leaf.seed)
            assert np.array_equal(signs, vector.signs[f"pool/{leaf.path}table"])


def test_hash_words():
    for case in load_words():
        assert hashing.key(case.seed, case.stream) == case.key
        words = hashing.words(np, case.key, np.asarray(case.indices, dtype=np.int64))
        assert tuple(int(word) for word in words) == case.words


def test_sizes():
    for case in load_sizes():
        request = _request(case.pool)
        ratio = case.ratio
        if case.sized is None:
            with pytest.raises(smh.PlanError, match="smallest feasible ratio"):
                smh.Plan.build({"a": (case.weights,)}, ratio=ratio, pool=request, include=["a"], gain=0)
        else:
            plan = smh.Plan.build({"a": (case.weights,)}, ratio=ratio, pool=request, include=["a"], gain=0)
            assert plan.pool == pools.from_dict(_with_gain(case.sized))
            variables = sum(math.prod(shape) for shape in plan.pool.variable_shapes().values())
            assert variables <= Fraction(repr(float(ratio))) * case.weights


def test_vectors_are_small_and_of_every_kind():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1 << 20
    kinds = {leaf.pool.kind for v in VECTORS for leaf in smh.Plan.from_json(json.dumps(v.plan)).pool.leaves(0)}
    assert kinds == {"matmul", "kronecker", "hash"}
    assert {v.plan["layout"] for v in VECTORS} == {"basic", "cyclic", "padding"}


def _request(spec):
    if spec["kind"] in ("sum", "product"):
        cls = pools.Sum if spec["kind"] == "sum" else pools.Product
        return cls(*(_request(part) for part in spec["parts"]))
    if spec["kind"] == "hash":
        return pools.Hash(hashes=spec["hashes"], signed=spec["signed"])
    return {"matmul": pools.Matmul, "kronecker": pools.Kronecker}[spec["kind"]]()


def _with_gain(sized):
    if "parts" in sized:
        return {**sized, "parts": [_with_gain(part) for part in sized["parts"]]}
    return {"gain": 0, **sized}
