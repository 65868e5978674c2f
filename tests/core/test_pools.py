"""Pools: the explicit multi-hash that they stand for, their initial values, and their gains."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from tests.core.cases import KINDS, any_pools, floats, seeds

NUMPY = Kernels(np)


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def floored(x, low=-88):
    """Return float64 values rounded once to float32, +0 where they were below 2**low."""
    return np.where(np.abs(x) < 2.0**low, 0.0, x).astype(np.float32)


def explicit(pool, path, seed, grids, count):
    """Return virtual weights as the explicit multi-hash: gather integers by ``indices``, multiply, add, round once."""
    if isinstance(pool, (pools.Sum, pools.Product)):
        parts = [
            explicit(part, f"{path}{p}/", oracle.key(seed, 65536 + p), grids, count)
            for p, part in enumerate(pool.parts)
        ]
        if isinstance(pool, pools.Sum):
            return floored(np.add.accumulate(np.asarray(parts, dtype=np.float64))[-1])
        v = parts[0]
        for other in parts[1:]:
            v = floored(v.astype(np.float64) * other)
        return v
    i = np.arange(count)
    signs = {"table": pool.signs(NUMPY, i, seed)} if isinstance(pool, pools.Hash) else {}
    products, unit = 1, 1.0
    for name, reads in pool.indices(NUMPY, i, seed).items():
        one = grids[f"{path}{name}"]
        products = products * one.integers.astype(np.float64).reshape(-1)[reads] * signs.get(name, 1)
        unit = unit * np.float64(one.unit)
    return (np.sum(products, axis=1) * (unit * pool.factor)).astype(np.float32)


@settings(max_examples=100)
@given(st.data(), seeds, st.sampled_from(KINDS), st.integers(1, 150))
def test_factorised_construction_equals_the_explicit_multi_hash(data, seed, kind, weights):
    request = data.draw(any_pools(weights))
    plan = Plan.build({"a": (weights,)}, ratio=10**9, pool=request, seed=seed, include=["a"])
    rng = np.random.default_rng(seed)
    variables = {name: floats(rng, shape, kind) for name, shape in plan.variable_shapes.items()}
    grids = generate.put_on_grids(NUMPY, plan, variables)
    found = generate.cells(NUMPY, plan, grids, 0, plan.num_weights)
    expected = explicit(plan.pool, "", plan.seed, grids, plan.capacity)[: plan.num_weights]
    assert_same_bits(found + np.float32(0), expected + np.float32(0))  # the sign of a zero is that of no weight


def test_a_kronecker_pool_is_a_sum_of_kronecker_products():
    pool = pools.Kronecker(t=3, gain=0)
    plan = Plan.build({"a": (16, 16)}, ratio=10**9, pool=pool, learn_scale=False, scale=1.0)
    rng = np.random.default_rng(0)
    # Integers below 16 have 4 bits: the grid holds them as they are.
    left, right = (rng.integers(-9, 10, (3, 4, 4)).astype(np.float32) for _ in range(2))
    w = generate.materialize(NUMPY, plan, {"pool/left": left, "pool/right": right})["a"]
    assert np.array_equal(w, sum(np.kron(left[r], right[r]) for r in range(3)))


def test_a_matmul_pool_is_a_matrix_product():
    pool = pools.Matmul(m=5, gain=2)
    plan = Plan.build({"a": (6, 6)}, ratio=10**9, pool=pool, learn_scale=False, scale=1.0)
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-99, 100, shape).astype(np.float32) for shape in ((6, 5), (5, 6)))
    w = generate.materialize(NUMPY, plan, {"pool/left": left, "pool/right": right})["a"]
    assert np.array_equal(w, 16 * (left @ right))


NESTINGS = {
    "matmul": "matmul",
    "kronecker": "kronecker",
    "hash": pools.Hash(hashes=3),
    "unsigned hash": pools.Hash(signed=False),
    "sum": pools.Sum("matmul", "hash", "kronecker"),
    "product": pools.Product("matmul", "hash"),
    "sum of products": pools.Sum(pools.Product("matmul", "hash"), "kronecker"),
    "product of sums": pools.Product(pools.Sum("hash", "matmul"), pools.Sum("hash", "hash")),
    "sum in sum": pools.Sum(pools.Sum("matmul", "matmul"), "hash"),
}


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("name", NESTINGS)
def test_virtual_weights_start_with_unit_variance(name, distribution):
    """Over four seeds; a plan of 100,000 weights has some 50,000 variables, so moments are sharp to a few per cent."""
    plan = Plan.build({"a": (400, 250)}, ratio=0.5, pool=NESTINGS[name], scale=1.0, learn_scale=False)
    moments = []
    for seed in range(4):
        seeded = dataclasses.replace(plan, seed=seed)
        w = generate.materialize(NUMPY, seeded, initial_variables(seeded, distribution))["a"]
        moments.append((float(np.mean(w)), float(np.mean(w.astype(np.float64) ** 2))))
    mean, variance = np.mean(moments, axis=0)
    assert abs(mean) < 0.05
    assert abs(variance - 1) < 0.06


def test_initial_values_fill_memory_in_blocks_without_a_seam():
    """Elements on both sides of the seam between blocks are those of the formula, whatever block they lie in."""
    plan = Plan.build({"a": (600, 500)}, ratio=0.9, pool=pools.Hash(), seed=5)
    table = initial_variables(plan, "uniform")["pool/table"].reshape(-1)
    assert table.size > 1 << 18
    for i in (0, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, table.size - 1):
        u = ((oracle.word(oracle.key(5, 1000), i) >> 8) + 0.5) * 2.0**-24
        expected = np.float32((2 * u - 1) * math.sqrt(3)) * np.float32(2.0**-plan.pool.gain)
        assert table[i] == expected, i


@given(st.data(), st.integers(1, 300), st.sampled_from(["sgd", "adam"]), st.sampled_from([0.01, "he", 2.0]))
def test_gains_and_kappas_equal_the_oracle(data, weights, optimizer, scale):
    request = data.draw(any_pools(2 * weights))
    plan = Plan.build({"a": (weights, 2)}, ratio=10**9, pool=request, optimizer=optimizer, scale=scale)
    asked = [leaf.pool.gain for leaf in request.leaves(0)]
    rule = oracle.gains(plan.to_dict(), optimizer)
    expected = [g if a is None else a for a, g in zip(asked, rule, strict=True)]
    assert [leaf.pool.gain for leaf in plan.pool.leaves(0)] == expected
    assert [tensor.kappa for tensor in plan.tensors] == oracle.kappas(plan.to_dict(), optimizer)


def with_gain(pool, gain):
    """Return a sized pool whose leaves have a gain."""
    if isinstance(pool, (pools.Sum, pools.Product)):
        return type(pool)(*(with_gain(part, gain) for part in pool.parts))
    return dataclasses.replace(pool, gain=gain)


@pytest.mark.parametrize("name", NESTINGS)
def test_gains_change_nothing_of_the_meaning(name):
    """They store variables smaller by powers of two, which grids follow."""
    plan = Plan.build({"a": (30, 20)}, ratio=1.0, pool=NESTINGS[name])
    weights = []
    for gain in (0, 1, 5):
        gained = dataclasses.replace(plan, pool=with_gain(plan.pool, gain))
        variables = initial_variables(gained)
        weights.append(generate.materialize(NUMPY, gained, variables)["a"])
    assert_same_bits(weights[1], weights[0])
    assert_same_bits(weights[2], weights[0])


def test_the_optimizer_changes_neither_the_initial_weights_nor_the_sizes():
    plans = [Plan.build({"a": (30, 20), "b": (7, 5)}, ratio=0.5, optimizer=name) for name in ("sgd", "adam")]
    assert plans[0].file_bytes == plans[1].file_bytes
    assert plans[0].tensors[0].kappa != plans[1].tensors[0].kappa
    weights = [generate.materialize(NUMPY, plan, initial_variables(plan)) for plan in plans]
    for name, w in weights[0].items():
        assert_same_bits(weights[1][name], w, name)


def test_a_pool_reads_every_slice_as_a_part_of_the_whole():
    rng = np.random.default_rng(3)
    for request in NESTINGS.values():
        plan = Plan.build({"a": (1500,)}, ratio=2, pool=request, include=["a"])
        grids = generate.put_on_grids(NUMPY, plan, initial_variables(plan))
        whole = plan.pool.virtual_weights(NUMPY, grids, 0, plan.capacity, plan.seed)
        for _ in range(20):
            start, stop = sorted(int(i) for i in rng.choice(plan.capacity + 1, 2, replace=False))
            assert_same_bits(plan.pool.virtual_weights(NUMPY, grids, start, stop, plan.seed), whole[start:stop])
