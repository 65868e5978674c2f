import math
import types

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import floats, kinds, seeds
from smh import exact, fast, grid, scales, sums
from smh.backends.numpy import NumpyOps
from smh.ops import Ops
from smh.pools import Matmul

OPS = NumpyOps()
floats_of_scales = st.sampled_from([0.0, 1.0, -0.7, 3e-3, 2.0**-90]).map(np.float32)
STRICT = Ops(array_api_strict)
TERMS = [1, 2, 7, 31, 32, 33, 64, 65, 511, 512, 513, 2047, 2048, 2049, 4097]


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def strict(x):
    return array_api_strict.asarray(x)


def unstrict(x):
    return np.asarray(x)


@pytest.mark.parametrize("terms", TERMS)
@settings(max_examples=25)
@given(seed=seeds, left=kinds, right=kinds, p=st.integers(1, 6), q=st.integers(1, 6))
def test_product_equals_the_oracle(terms, seed, left, right, p, q):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (p, terms), left), floats(rng, (terms, q), right)
    expected = oracle.product(a, b)
    assert_same_bits(exact.product(OPS, a, b), expected, "product")
    assert_same_bits(exact.transposed_product(OPS, np.ascontiguousarray(a.T), b), expected, "transposed product")
    assert_same_bits(unstrict(exact.product(STRICT, strict(a), strict(b))), expected, "under array-api-strict")
    # Long sums in blocks of a few rows at a time give the same bits.
    small = NumpyOps()
    small.block_elements = 64
    assert_same_bits(exact.product(small, a, b), expected, "small blocks")
    assert_same_bits(exact.transposed_product(small, a.T.copy(), b), expected, "small blocks, transposed")


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
@pytest.mark.parametrize("terms", [32, 512, 2048, 4097])
def test_rows_of_one_sign_are_exact_too(terms, sign):
    """The sums reach the bound of 2**53 here: all terms at the top of their grid."""
    rng = np.random.default_rng(terms)
    a = (sign * rng.uniform(0.999, 1, (4, terms))).astype(np.float32)
    a[0] = np.nextafter(np.float32(sign), np.float32(0))
    b = rng.uniform(0.999, 1, (terms, 4)).astype(np.float32)
    assert_same_bits(exact.product(OPS, a, b), oracle.product(a, b))


@given(seeds, kinds, st.sampled_from([5, 33, 100, 2048]))
def test_product_does_not_depend_on_the_order_of_terms(seed, kind, terms):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (5, terms), kind), floats(rng, (terms, 4), kind)
    order = rng.permutation(terms)
    assert_same_bits(exact.product(OPS, a[:, order], b[order]), exact.product(OPS, a, b))


@given(seeds, kinds, st.sampled_from([3, 40, 2049]))
def test_product_transposes(seed, kind, terms):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (5, terms), kind), floats(rng, (terms, 4), kind)
    assert_same_bits(exact.product(OPS, b.T, a.T).T, exact.product(OPS, a, b))


@given(seeds, kinds, st.integers(1, 9), st.integers(1, 7))
def test_rows_and_columns_can_be_computed_alone(seed, kind, row, column):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (10, 37), kind), floats(rng, (37, 8), kind)
    whole = exact.product(OPS, a, b)
    assert_same_bits(exact.product(OPS, a[row:], b), whole[row:])
    assert_same_bits(exact.multiply(OPS, a[:row], exact.right(OPS, b), 0, column), whole[:row, :column])
    assert_same_bits(exact.multiply(OPS, a, exact.right(OPS, b), column, 8), whole[:, column:])


@given(seeds, kinds, st.integers(1, 400))
def test_strips_of_a_large_right_operand_give_the_same_bits(seed, kind, strip):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (5, 40), kind), floats(rng, (40, 9), kind)
    whole = exact.product(OPS, a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OPS, "strip_elements", strip)
        assert_same_bits(exact.product(OPS, a, b), whole)
        assert_same_bits(exact.multiply(OPS, a, exact.right(OPS, b), 2, 7), whole[:, 2:7])


@pytest.mark.parametrize("make", [NumpyOps, lambda: Ops(np)], ids=["in place", "joined"])
@given(seed=seeds, kind=kinds, strip=st.integers(1, 400), block=st.integers(1, 60), scale=floats_of_scales)
def test_entries_are_finished_once_wherever_they_are_made(make, seed, kind, strip, block, scale):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (7, 40), kind), floats(rng, (40, 9), kind)
    ops = make()
    ops.block_elements, ops.product_elements, ops.strip_elements = block, 2 * block, strip
    with np.errstate(all="ignore"):
        actual = exact.multiply(ops, a, exact.right(ops, b), 0, 9, scales.finish(ops, scale, ()))
    assert_same_bits(actual, oracle.multiply(scale, oracle.product(a, b)))


@pytest.mark.parametrize("scale", [None, np.float32(-0.7)], ids=["plain", "scaled"])
def test_zeros_are_positive_whatever_zeros_a_matrix_product_gives(scale):
    def matmul(a, b):
        product = np.matmul(a, b)
        return np.where(product == 0.0, -0.0, product)

    ops = NumpyOps()
    ops.xp = types.SimpleNamespace(**{**vars(np), "matmul": matmul})
    a, b = np.asarray([[0.0, 0.0], [1.0, 2.0]], dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    finish = None if scale is None else scales.finish(ops, scale, ())
    expected = oracle.product(a, b) if scale is None else oracle.multiply(scale, oracle.product(a, b))
    assert_same_bits(exact.multiply(ops, a, exact.right(ops, b), 0, 3, finish), expected)
    square = {"left": a, "right": b[:, :2]}
    pool = Matmul(n=2, m=2, gain=1).bind(ops, exact, square, seed=0)
    gained = oracle.multiply(4.0, oracle.product(*square.values())).reshape(-1)
    assert_same_bits(pool.read(0, 4, finish), gained if scale is None else oracle.multiply(scale, gained))


@given(seeds, st.integers(-60, 60), st.integers(-50, 50))
def test_scaling_by_powers_of_two_scales_the_product(seed, x, y):
    rng = np.random.default_rng(seed)
    a, b = floats(rng, (4, 50), "normal"), floats(rng, (50, 4), "normal")
    # Away from the flush threshold: the smallest normal deviates used here are far above 2**-30.
    a, b = np.where(abs(a) < 2.0**-9, np.float32(1), a), np.where(abs(b) < 2.0**-9, np.float32(1), b)
    scaled = exact.product(OPS, np.ldexp(a, x).astype(np.float32), np.ldexp(b, y).astype(np.float32))
    plain = exact.product(OPS, a, b).astype(np.float64)
    expected = np.ldexp(plain, x + y)
    expected = np.where(abs(expected) < 2.0**-120, 0, expected).astype(np.float32)
    assert_same_bits(scaled, expected)


@pytest.mark.parametrize("terms", [10, 300, 2100])
def test_error_stays_within_what_grids_and_one_rounding_allow(terms):
    """Every operand moves by at most half a unit of its grid, and the result by half a unit in its last place."""
    rng = np.random.default_rng(0)
    a, b = floats(rng, (40, terms), "normal"), floats(rng, (terms, 40), "normal")
    reference = np.asarray([[math.fsum(a[i].astype(float) * b[:, j]) for j in range(40)] for i in range(40)])
    bits = exact.grid_bits(terms)
    half_a = np.ldexp(1.0, np.frexp(abs(a).max(axis=1))[1] - bits - 1)[:, None]
    half_b = np.ldexp(1.0, np.frexp(abs(b).max(axis=0))[1] - bits - 1)[None, :]
    moved = half_a * abs(b).sum(axis=0, dtype=float) + half_b * abs(a).sum(axis=1, dtype=float)[:, None]
    bound = moved + terms * half_a * half_b
    actual = exact.product(OPS, a, b)
    assert np.all(abs(actual - reference) <= bound + 2.0**-24 * (abs(reference) + bound))
    scale = abs(a).astype(float) @ abs(b).astype(float)
    assert np.max(abs(actual - reference) / scale) < 2.0**-22
    assert np.all(abs(fast.multiply(OPS, a, b, 0, 40) - reference) <= 4 * terms * 2.0**-24 * scale)


@given(seeds, kinds, st.integers(1, 5000))
def test_dot_equals_the_oracle(seed, kind, terms):
    rng = np.random.default_rng(seed)
    a, c = floats(rng, (terms,), kind), floats(rng, (terms,), "wide" if seed % 2 else kind)
    assert_same_bits(exact.dot(OPS, a, c), oracle.exact_dot(a, c))
    order = rng.permutation(terms)
    assert_same_bits(exact.dot(OPS, a[order], c[order]), exact.dot(OPS, a, c))
    small = NumpyOps()
    small.block_elements = 1 + seed % 700
    assert_same_bits(exact.dot(small, a, c), exact.dot(OPS, a, c))
    assert_same_bits(exact.dot(Ops(np), a, c), exact.dot(OPS, a, c))


@given(seeds, kinds, st.integers(1, 3000), st.integers(1, 50))
def test_segment_sum_equals_the_oracle(seed, kind, terms, size):
    rng = np.random.default_rng(seed)
    x, segments = floats(rng, (terms,), kind), rng.integers(0, size, terms)
    expected = oracle.exact_segment_sum(oracle.flush(x).astype(np.float64), segments, size)
    assert_same_bits(sums.segment_sum(OPS, x, segments, size), expected, "numpy")
    actual = sums.segment_sum(STRICT, strict(x), strict(segments), size)
    assert_same_bits(unstrict(actual), expected, "under array-api-strict")


@given(seeds, st.integers(1, 3000))
def test_sum_equals_the_oracle(seed, terms):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.uniform(-1, 1, terms), rng.integers(-200, 200, terms))
    if seed % 3 == 0:
        x[rng.integers(0, terms)] = rng.choice([np.nan, np.inf, 0.0])
    assert_same_bits(sums.exact_sum(OPS, x), oracle.exact_sum(x))


@given(seeds)
def test_rounding_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.uniform(-1, 1, 200), rng.integers(-130, 130, 200))
    half = x.astype(np.float32).astype(np.float64) + np.ldexp(0.5, np.frexp(x)[1] - 24)  # ties
    x = np.concatenate([x, half, [2.0**-120, np.nextafter(2.0**-120, 0), -0.0, np.inf, -np.inf, np.nan, 3.5e38]])
    expected = np.where(abs(x) < 2.0**-120, 0.0, x).astype(np.float32)
    assert_same_bits(exact.rounded(np, x), expected)


@pytest.mark.parametrize(
    ("terms", "bits"),
    [(1, 24), (32, 24), (33, 23), (128, 23), (129, 22), (512, 22), (513, 21), (2048, 21), (10**6, 21)],
)
def test_grid_bits(terms, bits):
    assert exact.grid_bits(terms) == bits
    assert 2 * bits + math.ceil(math.log2(min(terms, 2048))) <= 53


def test_nothing_is_written_into_arguments():
    rng = np.random.default_rng(0)
    a, b = floats(rng, (4, 5), "special"), floats(rng, (5, 4), "special")
    a.flags.writeable = b.flags.writeable = False
    exact.product(OPS, a, b)
    exact.transposed_product(OPS, b, b)
    exact.dot(OPS, a.reshape(-1), b.reshape(-1))
    sums.segment_sum(OPS, a.reshape(-1), np.arange(20), 20)


@pytest.mark.parametrize("unit", [-62, -61, -60, -59], ids=str)
@pytest.mark.parametrize("terms", [1, 3, 600, 2100])
def test_the_smallest_sums_are_flushed_and_zeros_are_positive(unit, terms):
    """Around the units at which the flush of the result is left out; and where all products are -0."""
    rng = np.random.default_rng(terms)
    bits = exact.grid_bits(terms)
    # Rows of a few units beside one number that sets the grid; columns likewise.
    a, b = (np.ldexp(rng.integers(-1, 2, (6, terms)), unit).astype(np.float32) for _ in range(2))
    a[:, 0], b[:, -1] = np.ldexp(1.0, unit + bits - 1), np.ldexp(1.0, unit + bits - 1)
    a[:, -1] = b[:, 0] = 0.0
    a[0], b[1] = 0.0, -1.0
    expected = oracle.product(a, b.T)
    assert_same_bits(exact.product(OPS, a, b.T), expected)
    assert_same_bits(exact.transposed_product(OPS, a.T.copy(), b.T.copy()), expected)
    assert not np.signbit(exact.product(OPS, a[:1], b.T)).any()


@given(st.floats(min_value=2.0**-240, max_value=2.0**256, exclude_max=True))
def test_floor_power_is_the_leading_power_of_two(x):
    expected = math.ldexp(0.5, math.frexp(x)[1])
    for value in (x, expected, math.nextafter(expected, math.inf), 1.5 * expected):
        assert float(grid.floor_power(np, np.asarray(value))) == expected
    below = math.nextafter(expected, 0.0)
    assert float(grid.floor_power(np, np.asarray(below))) == max(expected / 2, 2.0**-240)


@pytest.mark.parametrize(("x", "expected"), [(0.0, 2.0**-240), (2.0**-300, 2.0**-240), (np.nan, np.nan)])
def test_floor_power_where_there_is_none(x, expected):
    np.testing.assert_equal(float(grid.floor_power(np, np.asarray(x))), expected)
