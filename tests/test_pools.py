import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smh
from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import any_pools, as_dict, floats, kinds, seeds
from smh import exact, generate, pools
from smh.backends.numpy import NumpyOps
from tests.support import on_grid

OPS = NumpyOps()


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def explicit(pool, variables, seed, count):
    """Return v as the explicit multi-hash: gather by ``indices``, multiply, add exactly, round once."""
    if isinstance(pool, (pools.Sum, pools.Product)):
        values = []
        for leaf_prefix, part in enumerate(pool.parts):
            own = {n.split("/", 1)[1]: x for n, x in variables.items() if n.startswith(f"{leaf_prefix}/")}
            values.append(explicit(part, own, oracle.key(seed, 65536 + leaf_prefix), count))
        if isinstance(pool, pools.Sum):
            return exact.rounded(np, np.add.accumulate(np.asarray(values, dtype=np.float64))[-1])
        v = values[0]
        for other in values[1:]:
            v = exact.flush(np, v * other)
        return v
    i = np.arange(count)
    found = pool.indices(OPS, i, seed)
    if isinstance(pool, pools.Hash):
        terms = exact.flush(np, variables["table"]).reshape(-1)[found["table"]] * pool.signs(OPS, i, seed)
        total = np.add.accumulate(terms.astype(np.float64), axis=1)[:, -1]
    else:
        bits = exact.grid_bits(pool.terms)
        left, right = variables["left"], variables["right"]
        if isinstance(pool, pools.Kronecker):
            grids = [on_grid(x.reshape(pool.t, -1), 0, bits) for x in (left, right)]
        else:
            grids = [on_grid(left, 1, bits), on_grid(right, 0, bits)]
        products = grids[0].reshape(-1)[found["left"]] * grids[1].reshape(-1)[found["right"]]
        total = np.asarray([math.fsum(row) if np.isfinite(row).all() else math.nan for row in products])
    v0 = exact.rounded(np, total)
    return exact.flush(np, v0 * np.float32(pool.factor)) if pool.gain else v0


@settings(max_examples=200)
@given(st.data(), seeds, kinds, st.integers(1, 150), st.sampled_from([0, 1, 3]))
def test_factorised_construction_equals_the_explicit_multi_hash(data, seed, kind, weights, gain):
    request = data.draw(any_pools(weights))
    plan = smh.Plan.build({"a": (weights,)}, ratio=10**9, pool=request, seed=seed, gain=gain, include=["a"])
    rng = np.random.default_rng(seed)
    variables = {name: floats(rng, shape, kind) for name, shape in plan.pool.variable_shapes().items()}
    bound = plan.pool.bind(OPS, exact, variables, seed)
    assert_same_bits(bound.read(0, plan.capacity), explicit(plan.pool, variables, seed, plan.capacity))


@pytest.mark.parametrize("m", [2048, 2049, 4097])
def test_long_sums_equal_the_explicit_multi_hash_chunk_by_chunk(m):
    plan = smh.Plan.build({"a": (3, 3)}, ratio=10**9, pool=pools.Matmul(m=m))
    variables = smh.initialize(plan)
    left = on_grid(variables["pool/left"], 1, 21)
    right = on_grid(variables["pool/right"], 0, 21)
    found = plan.pool.indices(OPS, np.arange(9), 0)
    products = left.reshape(-1)[found["left"]] * right.reshape(-1)[found["right"]]
    total = np.zeros(9)
    for start in range(0, m, 2048):
        total += np.asarray([math.fsum(row[start : start + 2048]) for row in products])
    bound = plan.pool.bind(OPS, exact, {n[5:]: x for n, x in variables.items() if n.startswith("pool/")}, 0)
    expected = exact.rounded(np, total)
    if plan.pool.gain:
        expected = expected * np.float32(plan.pool.factor)
    assert_same_bits(bound.read(0, 9), expected)


def test_kronecker_pool_is_a_sum_of_kronecker_products():
    plan = smh.Plan.build(
        {"a": (4**2, 4**2)}, ratio=10**9, pool=pools.Kronecker(t=3), gain=0, learn_scale=False, scale=1.0
    )
    rng = np.random.default_rng(0)
    # Small integers: every arithmetic is exact.
    left, right = (rng.integers(-9, 9, (3, 4, 4)).astype(np.float32) for _ in range(2))
    w = smh.materialize(plan, {"pool/left": left, "pool/right": right})["a"]
    assert np.array_equal(w, sum(np.kron(left[r], right[r]) for r in range(3)))


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
@pytest.mark.parametrize("gain", [0, 2])
def test_virtual_weights_start_with_unit_variance(name, distribution, gain):
    plan = smh.Plan.build({"a": (400, 250)}, ratio=0.5, pool=NESTINGS[name], gain=gain, scale=1.0)
    moments = []
    for seed in range(4):
        seeded = smh.Plan(plan.pool, plan.tensors, seed)
        w = smh.materialize(seeded, smh.initialize(seeded, distribution))["a"]
        moments.append((float(np.mean(w)), float(np.mean(w.astype(np.float64) ** 2))))
    mean, variance = np.mean(moments, axis=0)
    assert abs(mean) < 0.05
    assert abs(variance - 1) < 0.06


def test_initial_values_fill_memory_in_blocks_without_a_seam():
    """More elements than one block: the seam between blocks shows nothing."""
    plan = smh.Plan.build({"a": (1000, 1000)}, ratio=0.6, pool=pools.Hash())
    table = smh.initialize(plan)["pool/table"]
    dictionary = as_dict(plan)
    assert table.size > 1 << 19
    at = 1 << 18
    expected = oracle.initial_variables({**dictionary, "pool": {**dictionary["pool"], "size": at + 100}})
    assert_same_bits(table[:, : at + 100], expected["pool/table"])


@given(st.integers(1, 10**7), st.fractions(min_value="1/1000", max_value=2))
def test_sizes_equal_the_oracle_and_never_exceed_the_ratio(weights, ratio):
    for kind in ("matmul", "kronecker", "hash"):
        if ratio < pools.named(kind).smallest_ratio(weights):
            with pytest.raises(smh.PlanError, match="smallest feasible ratio"):
                smh.Plan.build({"a": (weights,)}, ratio=ratio, pool=kind, include=["a"])
            continue
        plan = smh.Plan.build({"a": (weights,)}, ratio=ratio, pool=kind, include=["a"])
        spec = {"kind": kind} if kind != "hash" else {"kind": kind, "hashes": 1, "signed": True}
        expected = oracle.sizes(spec, weights, ratio)
        assert {**plan.pool.to_dict(), "gain": 0} == {**expected, "gain": 0}
        assert sum(math.prod(shape) for shape in plan.pool.variable_shapes().values()) <= ratio * weights
        assert plan.capacity >= weights


@given(st.data(), st.integers(1, 300), st.sampled_from(["sgd", "adam"]), st.sampled_from([0.01, "he", 2.0]))
def test_gains_equal_the_oracle(data, weights, rule, scale):
    plan = smh.Plan.build(
        {"a": (weights, 2)}, ratio=10**9, pool=data.draw(any_pools(2 * weights)), gain=rule, scale=scale
    )
    assert [leaf.pool.gain for leaf in plan.pool.leaves(0)] == oracle.gains(as_dict(plan), rule)


def test_gain_changes_neither_the_initial_weights_nor_the_meaning_of_the_formula():
    shapes = {"a": (30, 20)}
    weights = []
    for gain in (0, 1, 5):
        plan = smh.Plan.build(shapes, ratio=0.5, gain=gain, pool=pools.Sum("matmul", "hash"))
        weights.append(smh.materialize(plan, smh.initialize(plan))["a"])
    assert_same_bits(weights[1], weights[0])
    assert_same_bits(weights[2], weights[0])


def test_a_bound_pool_reads_every_slice_as_a_part_of_the_whole():
    rng = np.random.default_rng(3)
    for request in NESTINGS.values():
        plan = smh.Plan.build({"a": (2500,)}, ratio=2, pool=request, include=["a"])
        variables = {n: floats(rng, s, "normal") for n, s in plan.pool.variable_shapes().items()}
        bound = generate._bind(OPS, plan, {f"pool/{n}": x for n, x in variables.items()})
        whole = bound.read(0, plan.capacity)
        for _ in range(40):
            start, stop = sorted(rng.choice(plan.capacity + 1, 2, replace=False))
            assert_same_bits(bound.read(int(start), int(stop)), whole[start:stop])
