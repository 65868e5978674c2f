"""NumPy's kernels change no bit: each against the default, and the core on them against the oracle."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.bits import assert_same_bits
from smh.backends import numpy_kernels
from smh.backends.numpy_kernels import NumpyKernels
from smh.core.kernels import Kernels
from tests.core.cases import (
    KINDS,
    check,
    check_against,
    check_golden,
    floats,
    matmul_cases,
    matmul_plans,
    plans,
    seeds,
    values,
)

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
DEFAULT = Kernels(np)


class SmallBlocks(NumpyKernels):
    """Blocks and strips of a few elements, so that small plans have several."""

    block_elements = product_elements = 40
    room_share = strip_share = 0.3


class Counting(SmallBlocks):
    """Counts how often all gradients came from one pass, and how often from the plain way."""

    def __init__(self):
        super().__init__()
        self.fused = self.plain = 0

    def matmul_gradients(self, *args):
        found = super().matmul_gradients(*args)
        self.fused += found is not None
        self.plain += found is None
        return found


@settings(max_examples=60, **RELAXED)
@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
def test_every_plan_has_the_bits_of_the_oracle(plan, seed, kind):
    check(SmallBlocks(), plan, *values(plan, seed, kind))


def test_one_pass_over_cotangents_has_the_bits_of_the_oracle():
    kernels = Counting()

    @settings(max_examples=150, **RELAXED)
    @given(
        plan=matmul_plans(),
        seed=seeds,
        kind=st.sampled_from(["normal", "normal", "ties", "wide", "zeros", "tiny", "edges", "special"]),
        powers=st.tuples(st.integers(-60, 60), st.integers(-29, 28)),
        missing=st.booleans(),
    )
    def holds(plan, seed, kind, powers, missing):
        rng = np.random.default_rng(seed)
        variables = {name: floats(rng, shape, "normal") for name, shape in plan.variable_shapes.items()}
        for tensor in plan.tensors:
            if tensor.learn_scale:
                scale = rng.uniform(0.5, 1) * 2.0 ** (powers[1] + tensor.kappa) * rng.choice([-1, 1])
                variables[tensor.scale_variable] = np.float32(scale) * np.ones((), dtype=np.float32)
        cotangents = {t.name: floats(rng, t.viewed_shape, kind) for t in plan.tensors}
        with np.errstate(all="ignore"):
            cotangents = {name: np.ldexp(g, powers[0]).astype(np.float32) for name, g in cotangents.items()}
        if missing:
            cotangents.pop(plan.tensors[len(plan.tensors) // 2].name)
        check(kernels, plan, variables, cotangents)

    holds()
    assert kernels.fused > 60
    assert kernels.plain > 5


def test_both_ways_have_the_bits_of_the_default_kernels(monkeypatch):
    """Sizes of 1, fixed scales and exponents, scales to 2**30, cotangents from 2**-130 to 2**100; tails everywhere."""
    monkeypatch.setattr(numpy_kernels, "_CHUNK", 7)
    small, whole = Counting(), NumpyKernels()

    @settings(max_examples=250, **RELAXED)
    @given(case=matmul_cases())
    def holds(case):
        for kernels in (small, whole):
            check_against(kernels, DEFAULT, *case)

    holds()
    assert small.fused > 20
    assert small.plain > 20


@pytest.mark.parametrize("kernels", [NumpyKernels(), SmallBlocks()], ids=["blocks", "small blocks"])
def test_the_golden_vectors_pass(kernels):
    check_golden(kernels)


@settings(max_examples=150, **RELAXED)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    terms=st.sampled_from([1, 3, 300, 1030]),
    bits=st.sampled_from([1, 7, 8, 15]),
    unit=st.integers(-88, 98),
    scale=st.sampled_from([0.0, 1.0, -0.3, 2.0**-30, -(2.0**29), float("nan")]),
    seed=seeds,
    special=st.booleans(),
)
def test_scaled_products(rows, columns, terms, bits, unit, scale, seed, special):
    rng = np.random.default_rng(seed)
    left, right = (
        rng.integers(-(2**bits) + 1, 2**bits, shape).astype(np.float32) for shape in ((rows, terms), (terms, columns))
    )
    if special:
        left[...] = np.nan
    start = int(rng.integers(0, rows * columns))
    stop = int(rng.integers(start + 1, rows * columns + 1))
    exact_terms = 2 ** (24 - 2 * bits) if bits <= 8 else 0
    unit = min(unit, 100 - 2 * bits)  # no plan has larger ones: gain 20, exponents 30
    cuts = sorted({start, stop, *rng.integers(start, stop, 3).tolist()})
    parts = [(np.float32(scale) * (-1) ** k, *ends) for k, ends in enumerate(itertools.pairwise(cuts))]
    parts = [part for part in parts if rng.random() < 0.8] or parts
    arguments = (left, right, np.float32(2.0**unit), exact_terms, parts)
    with np.errstate(all="ignore"):
        expected = DEFAULT.scaled_products(*arguments)
        for kernels in (NumpyKernels(), SmallBlocks()):
            for found, wanted in zip(kernels.scaled_products(*arguments), expected, strict=True):
                assert_same_bits(found, wanted)


@settings(max_examples=60, **RELAXED)
@given(count=st.integers(1, 300), size=st.integers(1, 20), seed=seeds)
def test_segment_sums(count, size, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**22), 2**22, count).astype(np.float64)
    segments = rng.integers(0, size, count)
    found, expected = (kernels.segment_sum(x, segments, size) for kernels in (NumpyKernels(), DEFAULT))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64


def test_tiles():
    kernels = SmallBlocks()
    whole = np.arange(200, dtype=np.float32)
    np.testing.assert_array_equal(kernels.tiles(lambda start, stop: whole[start:stop], 3, 170), whole[3:170])
    sums = kernels.sum_tiles(lambda start, stop: np.asarray([whole[start:stop].sum(dtype=np.float64)]), 3, 170)
    np.testing.assert_array_equal(sums, [whole[3:170].sum(dtype=np.float64)])


@pytest.mark.parametrize(
    ("size", "terms", "exact"), [(127, 1100, False), (120, 1100, True), (32767, 1, False), (4095, 1, True)]
)
def test_products_take_float32_where_no_sum_of_the_present_integers_can_reach_2_24(size, terms, exact):
    left = np.full((3, terms), size, dtype=np.float32)
    right = left.T.copy()
    right[-1] -= 1.0
    assert (numpy_kernels._sums_dtype(left, right, 0) is np.float32) == exact
    unit = np.float32(1.0)
    expected = (left.astype(np.int64) @ right.astype(np.int64)).astype(np.float32).reshape(-1)
    assert_same_bits(NumpyKernels().scaled_products(left, right, unit, 0, [(1.0, 0, 9)])[0], expected)
