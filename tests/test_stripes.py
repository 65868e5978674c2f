"""Cotangents in stripes: the gradients are those of the whole matrix, wherever it is cut."""

import functools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import floats, kinds, seeds
from smh import exact, fast, stripes
from smh.backends.numpy import NumpyOps
from smh.grid import flush
from smh.ops import Ops
from smh.pools import Matmul
from smh.stripes import Stripe

SCALES = st.sampled_from([None, 1.0, -3.0, 0.3125, 2.0**-70, -(2.0**80), 0.0, np.inf, np.nan])


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def times(xp, scale, x):
    return flush(xp, flush(xp, x) * scale)


def cut(matrix, scales, at, asarray=np.asarray, xp=np):
    """Return a matrix in stripes of given lengths, each multiplied when it is read."""
    ends = [0, *at, matrix.shape[0]]
    return [
        Stripe(asarray(matrix[start:stop]), None if scale is None else functools.partial(times, xp, scale))
        for start, stop, scale in zip(ends[:-1], ends[1:], scales, strict=True)
    ]


def small_ops():
    ops = NumpyOps()
    ops.block_elements = ops.product_elements = 64
    return ops


@given(seeds, kinds, st.sampled_from([3, 40, 2047, 2049, 4500]), st.data())
def test_gradients_are_those_of_the_whole(seed, kind, rows, data):
    rng = np.random.default_rng(seed)
    left, b = floats(rng, (rows, 3), kind), floats(rng, (3, 4), kind)
    cotangent = floats(rng, (rows, 4), kind)
    at = sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=4)))
    chosen = data.draw(st.lists(SCALES, min_size=len(at) + 1, max_size=len(at) + 1))
    whole = np.concatenate([stripe.of(stripe.rows) for stripe in cut(cotangent, chosen, at)])
    expected = oracle.product(whole, b.T), oracle.product(left.T, whole)
    before = cotangent.copy()
    for ops in (NumpyOps(), small_ops(), Ops(np)):
        actual = exact.factor_gradients(ops, left, b, cut(cotangent, chosen, at))
        assert_same_bits(actual[0], expected[0], "left")
        assert_same_bits(actual[1], expected[1], "right")
    assert_same_bits(cotangent, before, "the cotangent is not changed")
    strict = array_api_strict.asarray
    actual = exact.factor_gradients(
        Ops(array_api_strict), strict(left), strict(b), cut(cotangent, chosen, at, strict, array_api_strict)
    )
    assert_same_bits(np.asarray(actual[0]), expected[0], "left, under array-api-strict")
    assert_same_bits(np.asarray(actual[1]), expected[1], "right, under array-api-strict")


@given(seeds, st.integers(2, 60), st.data())
def test_fast_gradients_are_those_of_the_whole(seed, rows, data):
    rng = np.random.default_rng(seed)
    left, b, cotangent = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 3), (3, 4), (rows, 4)))
    at = sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=4)))
    chosen = data.draw(st.lists(st.sampled_from([None, 1.0, -3.0]), min_size=len(at) + 1, max_size=len(at) + 1))
    whole = np.concatenate([stripe.of(stripe.rows) for stripe in cut(cotangent, chosen, at)])
    actual = fast.factor_gradients(NumpyOps(), left, b, cut(cotangent, chosen, at))
    assert np.allclose(actual[0], whole @ b.T, atol=1e-4)
    assert np.allclose(actual[1], left.T @ whole, atol=1e-4)


@given(seeds, st.integers(1, 9), st.integers(1, 3), st.integers(0, 2), st.data())
def test_parts_of_a_pool_are_joined_or_read_where_they_are(seed, n, m, gain, data):
    """Parts begin and end within rows, are shorter than a row, or hold many: the gradients are always the same."""
    rng = np.random.default_rng(seed)
    pool = Matmul(n=n, m=m, gain=gain)
    ops = NumpyOps()
    variables = {name: floats(rng, shape, "normal") for name, shape in pool.local_shapes().items()}
    g = floats(rng, (n * n,), "wide")
    at = sorted(data.draw(st.sets(st.integers(1, n * n - 1), max_size=5))) if n > 1 else []
    chosen = data.draw(st.lists(SCALES, min_size=len(at) + 1, max_size=len(at) + 1))
    parts = cut(g, chosen, at)
    joined = stripes.join(ops, exact.map_rows, parts, g)
    assert_same_bits(joined, np.concatenate([part.of(part.rows) for part in parts]), "joined")
    expected = pool.bind(ops, exact, variables, seed=0).pull(joined.copy())
    actual = pool.bind(ops, exact, variables, seed=0).pull_parts(parts)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)
