"""The rate: its value against counts of stored integers, its gradient against interpolated costs."""

import math
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

import smh
from smh.core import generate, pools
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.core.rate import coded_bits, rate, relaxed_bits
from smh.errors import PlanError

KERNELS = Kernels(np)
SHAPES = {"a": (40, 30), "b": (30, 50)}
POOLS = {
    "matmul": pools.Matmul(),
    "kronecker": pools.Kronecker(),
    "hash": pools.Hash(hashes=2),
    "sum": pools.Sum(pools.Matmul(), pools.Product(pools.Hash(), pools.Kronecker())),
}


def plan_of(pool="matmul", bits=8, optimizer="adam"):
    return Plan.build(SHAPES, ratio=0.6, pool=POOLS[pool], bits=bits, exponents="fixed", optimizer=optimizer)


def leaves(plan):
    """Iterate over pools, and the names and exponents of their arrays."""
    for leaf in plan.pool.leaves(plan.seed):
        for name, exponent in zip(leaf.pool.local_shapes(), leaf.pool.exponents, strict=True):
            yield leaf.pool, f"pool/{leaf.path}{name}", exponent


@pytest.mark.parametrize("factor", [0.02, 0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_value_is_within_three_percent_of_a_packed_file(tmp_path, bits, factor):
    plan = Plan.build({"a": (400, 500)}, ratio=0.2, bits=bits, exponents="fixed", optimizer="adam")
    random = np.random.default_rng(0)
    variables = {name: factor * x * random.laplace(size=x.shape) for name, x in smh.initialize(plan).items()}
    variables = {name: np.asarray(x, dtype=np.float32) for name, x in variables.items()}
    smh.save(tmp_path / "model", plan, variables, packed=True)
    size = sum(x.nbytes for name, x in load_file(tmp_path / "model").items() if "pool/" in name)
    found = rate(KERNELS, plan, variables, np.copy) / 8
    assert found == pytest.approx(size, rel=0.03, abs=20)


@pytest.mark.parametrize("pool", POOLS)
def test_all_arrays_count(pool):
    plan = plan_of(pool)
    variables = smh.initialize(plan)
    stored = generate.on_grid(KERNELS, plan, variables)
    arrays = [stored[name].ravel().tolist() for _, name, _ in leaves(plan)]
    assert rate(KERNELS, plan, variables, np.copy) == pytest.approx(sum(map(code, arrays)), rel=1e-5)


def code(values):
    """Return the entropy of all values together and the estimate of their table, in bits."""
    counts = Counter(values)
    return 16 + 26 * math.log2(len(counts)) + sum(c * math.log2(len(values) / c) for c in counts.values())


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_relaxed_bits_interpolate_the_costs_of_integers(scale):
    y = np.random.default_rng(0).normal(0.0, scale, 500).astype(np.float32)
    size = np.abs(y.astype(np.float64))
    whole = np.arange(0, int(size.max()) + 2)
    expected = np.interp(size, whole, 2.0 * np.log2(whole + size.mean() + 2.0**-10)).sum()
    assert relaxed_bits(KERNELS, y, np.copy) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_a_code_takes_a_byte_for_256_integers_at_least_and_no_more_than_none():
    assert coded_bits(KERNELS, np.full(3200, 3.2, dtype=np.float32), 7) == 100.0
    assert coded_bits(KERNELS, np.asarray([-1e9, 1e9] * 500, dtype=np.float32), 7) == pytest.approx(1000 + 16 + 26)
    assert coded_bits(KERNELS, np.asarray([3.0, 7.0, 1.0], dtype=np.float32), 7) == 24.0
    assert coded_bits(KERNELS, np.asarray([3.0, 7.0, 1.0], dtype=np.float32), 3) == 12.0
    assert coded_bits(KERNELS, np.asarray([3.0, 7.0, 1.0], dtype=np.float32), 8) == 48.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("bits", "least"), [(16, 4), (8, 4), (6, 4), (5, 2), (4, 1), (2, 0.25)])
def test_fixed_exponents_follow_the_initial_deviation(pool, bits, least, optimizer):
    plan = plan_of(pool, bits, optimizer)
    variables = smh.initialize(plan)
    for leaf, name, exponent in leaves(plan):
        unit = 2.0 ** (exponent - (bits - 1))
        deviation = float(np.std(variables[name])) / unit
        assert 0.8 * least <= deviation <= 2.4 * least, name  # that of few variables is a little off
        assert leaf.bits == bits


def test_exponents_within_their_range_and_given_ones_stay():
    assert pools.Matmul(n=3, m=1, bits=16, gain=0, exponents=(5, -3)).with_exponents().exponents == (5, -3)
    assert pools.Hash(size=10, capacity=10, bits=8, gain=20).with_exponents(2.0**-60).exponents == (-29,)
    assert plan_of().pool.with_exponents() == plan_of().pool


def test_exponents_are_free_by_default_and_part_of_the_plan():
    assert Plan.build(SHAPES, ratio=0.6).pool.exponents is None
    plan = plan_of("sum")
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_rate_of_what_is_not_finite_is_nan(bad):
    plan = plan_of()
    variables = smh.initialize(plan)
    variables["pool/right"][0, 0] = bad
    with np.errstate(all="ignore"):
        assert math.isnan(rate(KERNELS, plan, variables, np.copy))


def test_refusals():
    plan = Plan.build(SHAPES, ratio=0.6)
    with pytest.raises(PlanError, match=r"needs fixed exponents.*exponents='fixed'.*got Matmul"):
        rate(KERNELS, plan, smh.initialize(plan), np.copy)
    with pytest.raises(PlanError, match="exponents must be one of free, fixed; got 'both'"):
        Plan.build(SHAPES, ratio=0.6, exponents="both")
