"""The golden vectors: what SMH-2 is, in bits, for every backend and every later version."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

import smh
from conformance.bits import assert_same_bits
from conformance.vectors import FOLDER, load_sizes, load_vectors, load_words
from conformance.vectors_make import differences
from smh.core import generate, hashing, pools, rules
from smh.core.kernels import Kernels

VECTORS = load_vectors()


def test_the_oracle_gives_what_is_stored():
    assert differences() == []


def test_vectors_are_small_and_of_every_kind():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000
    plans = [smh.Plan.from_dict(vector.plan) for vector in VECTORS]
    leaves = [leaf.pool for plan in plans for leaf in plan.pool.leaves(0)]
    assert {leaf.kind for leaf in leaves} == {"matmul", "kronecker", "hash"}
    assert {leaf.bits for leaf in leaves} == set(range(2, 17))
    assert {plan.layout for plan in plans} == {"basic", "cyclic", "padding"}
    assert len({vector.name for vector in VECTORS}) == len(VECTORS)


def test_plans_are_canonical():
    for vector in VECTORS:
        assert smh.Plan.from_dict(vector.plan).to_json() == json.dumps(
            vector.plan, sort_keys=True, separators=(",", ":")
        )


def test_initial_variables():
    for vector in VECTORS:
        plan = smh.Plan.from_dict(vector.plan)
        for distribution, expected in vector.initial.items():
            for name, x in smh.initialize(plan, distribution).items():
                assert_same_bits(x, expected[name], f"{vector.name} {name}")


def test_gains_and_kappas():
    for vector in VECTORS:
        plan = smh.Plan.from_dict(vector.plan)
        mean = math.sqrt(sum(t.size * float(t.initial_scale) ** 2 for t in plan.tensors) / plan.num_weights)
        for optimizer in ("sgd", "adam"):
            pool = _without_gain(plan.pool).for_optimizer(optimizer, plan.num_weights, mean)
            assert [leaf.pool.gain for leaf in pool.leaves(plan.seed)] == vector.gains[optimizer], vector.name
            kappas = [t.learn_scale and rules.kappa(optimizer, t.initial_scale, t.size) for t in plan.tensors]
            assert kappas == vector.kappas[optimizer], vector.name


def test_indices_and_signs():
    kernels = Kernels(np)
    for vector in VECTORS:
        plan = smh.Plan.from_dict(vector.plan)
        if not vector.cells.size:
            continue
        found = generate.indices(kernels, plan, vector.cells)
        assert set(found) == set(vector.indices)
        for name, rows in vector.indices.items():
            assert np.array_equal(found[name], rows), f"{vector.name} {name}"
        for leaf in plan.pool.leaves(plan.seed):
            if isinstance(leaf.pool, pools.Hash):
                signs = [hashing.signs(np, leaf.seed, m, vector.cells, np.int64) for m in range(leaf.pool.hashes)]
                expected = vector.signs[f"pool/{leaf.path}table"]
                assert np.array_equal(np.stack(signs, axis=1) if leaf.pool.signed else np.ones_like(expected), expected)


def test_hash_words():
    for case in load_words():
        assert hashing.key(case.seed, case.stream) == case.key
        words = hashing.words(np, case.key, np.asarray(case.indices, dtype=np.uint32))
        assert tuple(int(word) for word in words) == case.words


def test_sizes():
    for case in load_sizes():
        options = {"ratio": case.ratio, "pool": _request(case.pool), "include": ["a"]}
        if case.sized is None:
            with pytest.raises(smh.PlanError, match="smallest feasible ratio"):
                smh.Plan.build({"a": (case.weights,)}, **options)
        else:
            plan = smh.Plan.build({"a": (case.weights,)}, **options)
            assert _without_gain(plan.pool) == _without_gain(pools.from_dict(case.sized))
            variables = sum(math.prod(shape) for shape in plan.pool.variable_shapes().values())
            assert variables <= Fraction(repr(float(case.ratio))) * case.weights


def _without_gain(pool):
    if isinstance(pool, pools.Sum | pools.Product):
        return type(pool)(*map(_without_gain, pool.parts))
    return dataclasses.replace(pool, gain=None)


def _request(spec):
    if spec["kind"] in ("sum", "product"):
        cls = pools.Sum if spec["kind"] == "sum" else pools.Product
        return cls(*(_request(part) for part in spec["parts"]))
    if spec["kind"] == "hash":
        return pools.Hash(hashes=spec["hashes"], signed=spec["signed"])
    return {"matmul": pools.Matmul, "kronecker": pools.Kronecker}[spec["kind"]]()
