"""Hash words, signs and indices: against the oracle, uniform, and independent between parts of a pool."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import oracle as oracle
from smh.core import generate, hashing, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from tests.core.cases import seeds

NUMPY = Kernels(np)


@given(seeds, st.integers(0, 2**17))
def test_keys_equal_the_oracle(seed, stream):
    assert hashing.key(seed, stream) == oracle.key(seed, stream)


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
@pytest.mark.parametrize("dtype", ["uint32", "int64"])
@given(seed=seeds, start=st.integers(0, 2**31 - 100))
def test_words_equal_the_oracle_in_both_types(xp, dtype, seed, start):
    i = xp.asarray(np.arange(start, start + 64).astype(dtype))
    actual = hashing.words(xp, seed, i)
    assert actual.dtype == getattr(xp, dtype)
    assert [int(word) for word in actual] == [oracle.word(seed, j) for j in range(start, start + 64)]


def test_words_are_uniform():
    """Chi-square over 256 buckets, on the low and the high byte, for several keys; 360 is far out at 255 degrees."""
    i = np.arange(1 << 16, dtype=np.uint32)
    for seed in range(8):
        words = hashing.words(np, hashing.key(seed, 0), i)
        for byte in (words & 0xFF, words >> 24):
            expected = len(i) / 256
            assert np.sum((np.bincount(byte, minlength=256) - expected) ** 2) / expected < 360


def test_signs_are_balanced_and_independent_of_buckets():
    i = np.arange(1 << 16)
    negative = hashing.signs(np, 5, 0, i, np.int64) < 0
    buckets = hashing.buckets(np, 5, 0, i, 16)
    counts = np.zeros((2, 16))
    np.add.at(counts, (negative.astype(int), buckets), 1)
    expected = len(i) / 32
    assert np.sum((counts - expected) ** 2) / expected < 62  # 31 degrees of freedom, far out


def test_parts_never_share_hash_functions():
    """Equal parts of sums, and of sums in sums, have seeds, indices and initial values of their own."""
    hash_pool = pools.Hash(hashes=2)
    plan = Plan.build({"a": (50, 40)}, ratio=0.5, pool=pools.Sum(hash_pool, pools.Sum(hash_pool, hash_pool), hash_pool))
    leaf_seeds = [leaf.seed for leaf in plan.pool.leaves(plan.seed)]
    assert len(set(leaf_seeds)) == len(leaf_seeds) == 4
    size = next(plan.pool.leaves(0)).pool.size
    tables = list(generate.indices(NUMPY, plan, np.arange(2000)).values())
    buckets = [table[:, m] % size for table in tables for m in (0, 1)]
    keys = {hashing.key(seed, 2 * m) for seed in leaf_seeds for m in (0, 1)}
    assert len(keys) == 8
    for first in range(8):
        for second in range(first):
            assert np.mean(buckets[first] == buckets[second]) < 0.05
    values = list(initial_variables(plan).values())[:4]
    for first in range(4):
        for second in range(first):
            assert np.mean(values[first].flat[:100] == values[second].flat[:100]) < 0.05


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_indices_of_a_slice_equal_those_of_the_range(xp):
    for pool in (pools.Matmul(), pools.Kronecker(), pools.Hash(hashes=3), pools.Sum("hash", "matmul")):
        plan = Plan.build({"a": (30, 20)}, ratio=0.9, pool=pool)
        whole = generate.indices(NUMPY, plan, np.arange(plan.capacity))
        for name, part in generate.indices(Kernels(xp), plan, xp.arange(123, 456, dtype=xp.int64)).items():
            assert part.dtype == xp.int64
            assert np.array_equal(np.asarray(part), whole[name][123:456])


@given(seeds)
def test_signs_equal_the_oracle(seed):
    plan = Plan.build({"a": (25, 20)}, ratio=0.2, pool=pools.Hash(hashes=3), seed=seed)
    i = np.arange(500)
    found = plan.pool.signs(NUMPY, i, seed)
    assert np.array_equal(found, oracle.signs(plan.to_dict(), i)["pool/table"])
    assert set(np.unique(found)) == {-1, 1}
    unsigned = Plan.build({"a": (25, 20)}, ratio=0.2, pool=pools.Hash(signed=False), seed=seed)
    assert np.all(unsigned.pool.signs(NUMPY, i, seed) == 1)
