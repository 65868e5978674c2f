"""The rate: its value against counts of stored integers, its gradient against interpolated costs."""

import math
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import smh
from smh.core import generate, pools
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.core.rate import coded_bits, kept_rate, rate, relaxed_bits
from smh.errors import PlanError
from smh.files.kept import round_kept
from tests.backends.rates import kept_bits_in

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
    with pytest.raises(PlanError, match="exponents must be one of 'free', 'fixed'; got 'both'"):
        Plan.build(SHAPES, ratio=0.6, exponents="both")


# --- Kept tensors

KEPT = {
    "bias": lambda random, size: random.normal(0, 0.1, size),
    "uniform": lambda random, size: random.uniform(-1, 1, size),
    "long tails": lambda random, size: random.laplace(0, 3, size),
    "mostly zero": lambda random, size: random.normal(0, 1, size) * (random.uniform(size=size) < 0.2),
    "scale near 1": lambda random, size: random.normal(1, 0.1, size),
    "scale": lambda random, size: random.uniform(0.3, 1.5, size),
    "variance": lambda random, size: random.gamma(4, 1, size),
    "small variance": lambda random, size: np.exp(random.normal(-6, 2, size)),
    "ones": lambda random, size: np.ones(size),
    "zeros": lambda random, size: np.zeros(size),
    "tiny": lambda random, size: random.normal(0, 2.0**-35, size),
    "huge": lambda random, size: random.normal(0, 2.0**31, size),
}


def kept_of(kind, size, dtype="float32", seed=0):
    return KEPT[kind](np.random.default_rng(seed), size).astype(getattr(ml_dtypes, dtype, dtype))


def estimate(kept, bits):
    with np.errstate(all="ignore"):
        return float(kept_rate(KERNELS, kept, bits, np.copy))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", KEPT)
def test_kept_tensors_take_within_three_percent_of_their_bits_in_a_packed_file(tmp_path, kind, bits):
    plan = plan_of()
    for size in (128, 200, 1000, 20000):
        x = kept_of(kind, size)
        smh.save(tmp_path / "model", plan, smh.initialize(plan), {"x": x}, packed=True, kept_bits=bits)
        expected = kept_bits_in(tmp_path / "model")
        assert estimate([x], bits) == pytest.approx(expected, rel=0.03, abs=8 * 20), size


@given(
    kinds=st.lists(st.sampled_from(sorted(KEPT)), min_size=1, max_size=4),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    bits=st.sampled_from([8, 16]),
    size=st.integers(0, 127),
    seed=st.integers(0, 2**32 - 1),
)
def test_small_kept_tensors_take_the_bits_of_saving(kinds, dtype, bits, size, seed):
    with np.errstate(over="ignore"):
        kept = {str(k): kept_of(kind, size, dtype, seed + k) for k, kind in enumerate(kinds)}
    kept = {name: x for name, x in kept.items() if np.isfinite(x).all()}
    integers, roundings = round_kept(kept, bits)
    expected = sum(roundings[name].stored_bytes if name in integers else x.nbytes for name, x in kept.items())
    assert estimate(kept.values(), bits) == 8 * expected


def test_other_kept_tensors_do_not_count():
    others = [np.arange(500), np.ones(500, bool), np.ones(500, np.complex64), np.ones(500, ml_dtypes.float8_e5m2)]
    assert estimate(others, 8) == 0
    assert estimate([*others, np.float32(3), np.ones((2, 3))], 8) == 32 + 6 * 8


def test_very_many_kept_tensors_are_not_coded(monkeypatch):
    kept = [kept_of("mostly zero", 200, seed=seed) for seed in range(3)] + [np.float32(1)]
    assert estimate(kept, 8) < 0.7 * 8 * 600
    monkeypatch.setattr("smh.core.rate.MOST", 2)
    assert estimate(kept, 8) == 8 * 600 + 32


@pytest.mark.parametrize("size", [3, 300])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_kept_tensor_that_is_not_finite_has_no_rate(bad, size):
    x = kept_of("bias", size)
    x[1] = bad
    assert math.isnan(estimate([kept_of("bias", size), x], 8))
    assert estimate([np.float32(bad)], 8) == 32  # which is not rounded
