"""Kernels without float64 change no bit: each against the default, and the core on them against the oracle."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance import kernel_laws
from conformance.bits import Tally, assert_same_bits
from conformance.subject import Subject
from smh.backends.numpy import NumpyBackend
from smh.core import generate, narrow, pairs, pools
from smh.core.kernels import Kernels
from smh.core.narrow import NarrowKernels
from smh.core.plan import Plan
from tests.core.cases import KINDS, check, check_golden, floats, long_sums, plans, seeds, values

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
DEFAULT = Kernels(np)


class _Watched:
    """NumPy, whose functions neither take nor return float64 arrays, and which has no such type."""

    def __getattr__(self, name):
        if name == "float64":
            raise AssertionError("float64 was asked for")
        found = getattr(np, name)
        return _watched(found) if callable(found) and not isinstance(found, type) else found


def _watched(fn):
    def run(*args, **options):
        found = fn(*args, **options)
        for x in (*args, found):
            assert getattr(x, "dtype", None) != np.float64, f"{fn.__name__} met float64"
        return found

    return run


KERNELS = NarrowKernels(_Watched())


def test_the_golden_vectors_pass_without_float64():
    check_golden(KERNELS)


def test_every_kernel_has_the_bits_of_the_default():
    class Backend(NumpyBackend):
        kernels = KERNELS

    tally = Tally()
    kernel_laws.kernels(Subject(Backend(), "cpu", "numpy"), tally)
    assert tally.different == 0 < tally.bits


@settings(max_examples=60, **RELAXED)
@given(plan=plans(), seed=seeds, kind=st.sampled_from(KINDS))
def test_every_plan_has_the_bits_of_the_oracle(plan, seed, kind):
    check(KERNELS, plan, *values(plan, seed, kind))


def test_the_watch_can_fail():
    with pytest.raises(AssertionError, match="sum met float64"):
        KERNELS.xp.sum(np.ones(3))
    with pytest.raises(AssertionError, match="float64 was asked for"):
        check_golden(Kernels(KERNELS.xp))


@pytest.mark.parametrize("bits", [2, 8, 9, 16])
@pytest.mark.parametrize("terms", [1, 255, 511, 513, 1025, 2500])
def test_long_sums(bits, terms):
    plan, cases = long_sums(terms, bits)
    for variables, cotangents in cases:
        check(KERNELS, plan, variables, cotangents)


def test_many_rows_and_many_cells():
    """More rows than a slice adds in float32, more cells than int32 adds at a time, more ranges than one."""
    plan = Plan.build({"a": (1100, 1090)}, ratio=10**9, pool=pools.Matmul(n=1100, m=2), scale=1.0)
    both = Plan.build(
        {"a": (1000, 1100)}, ratio=10**9, pool=pools.Hash(size=3, hashes=2, capacity=1_100_000), scale=1.0
    )
    for each in (plan, both):
        variables = {name: floats(np.random.default_rng(3), x, "normal") for name, x in each.variable_shapes.items()}
        for kind in ("normal", "edges"):
            g = floats(np.random.default_rng(4), each.tensors[0].viewed_shape, kind)
            with np.errstate(all="ignore"):
                found = generate.vjp(KERNELS, each, variables, {"a": g})
                for name, x in generate.vjp(DEFAULT, each, variables, {"a": g}).items():
                    assert_same_bits(found[name], x, name)


_SIGNIFICANDS = st.integers(2**23, 2**24 - 1) | st.sampled_from([2**23, 2**23 + 1, 2**24 - 1, 2**24 - 2, 3 * 2**22])


@st.composite
def numbers(draw):
    """Draw float32 numbers of all magnitudes, subnormal and non-finite ones among them."""
    special = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 2.0**-120, 2.0**-88])
    m, e, sign = draw(_SIGNIFICANDS), draw(st.integers(-160, 104)), draw(st.sampled_from([1, -1]))
    with np.errstate(all="ignore"):
        return np.float32(draw(special) if draw(st.integers(0, 9)) == 0 else sign * np.ldexp(float(m), e))


def one(x):
    return np.asarray([x], dtype=np.float32)


@settings(max_examples=1500, **RELAXED)
@given(x=numbers(), y=numbers(), limit=st.booleans(), steps=st.integers(-3, 3), k=st.sampled_from([-120, -88]))
def test_products(x, y, limit, steps, k):
    """Also such as round to the limit of the floor."""
    with np.errstate(all="ignore"):
        if limit and np.isfinite(x) and x:
            y = (one(2.0**k / float(x)).view(np.int32) + np.int32(steps)).view(np.float32)[0]
        assert_same_bits(KERNELS.times(one(x), one(y), k), DEFAULT.times(one(x), one(y), k))


@settings(max_examples=1500, **RELAXED)
@given(st.data())
def test_sums(data):
    """Also such as cancel, and such as float64 rounds."""
    parts = data.draw(st.lists(numbers(), min_size=1, max_size=6))
    near = [
        np.float32(s * np.ldexp(float(m), int(np.frexp(x)[1]) - 24 - d))
        for x in parts
        if np.isfinite(x) and abs(x) > 2.0**-60 and abs(x) < 2.0**100
        for m, d, s in [
            data.draw(
                st.tuples(
                    _SIGNIFICANDS,
                    st.sampled_from([0, 1, 2, 24, 28, 29, 30, 31, 53, 54, 55, 56]),
                    st.sampled_from([1, -1]),
                )
            )
        ]
    ]
    parts = data.draw(st.permutations(parts + near))
    with np.errstate(all="ignore"):
        for k in (-120, -88):
            found, expected = (x.add([one(part) for part in parts], k) for x in (KERNELS, DEFAULT))
            assert_same_bits(found, expected, f"{parts}")


@settings(max_examples=400, **RELAXED)
@given(st.data())
def test_dots(data):
    """Also ties, and terms that are next to nothing beside the largest."""
    size = data.draw(st.integers(1, 9))
    pair = st.tuples(
        _SIGNIFICANDS, st.sampled_from([0, 1, 20, 29, 30, 31, 47, 48, 49, 50, 51, 80]), st.sampled_from([1, -1, 0])
    )
    low, power = data.draw(st.integers(-60, 80)), data.draw(st.integers(-40, 60))
    g = np.asarray(
        [s * np.ldexp(m, low - 24 - d) for m, d, s in data.draw(st.lists(pair, min_size=size, max_size=size))]
    )
    v = np.asarray(
        [s * np.ldexp(m, power - 24 - d) for m, d, s in data.draw(st.lists(pair, min_size=size, max_size=size))]
    )
    least = low + power - 53 + (size - 1).bit_length()
    exponent = np.asarray(least + data.draw(st.sampled_from([0, 1, 3, 5, 6, 7, 8, 20, 40, 53])), dtype=np.float32)
    kappa = data.draw(st.integers(0, 30))
    arguments = g.astype(np.float32), v.astype(np.float32), exponent, kappa
    with np.errstate(all="ignore"):
        assert_same_bits(KERNELS.rounded_dot(*arguments), DEFAULT.rounded_dot(*arguments))


@settings(max_examples=400, **RELAXED)
@given(
    x=st.integers(-(2**53), 2**53),
    shift=st.integers(0, 52),
    e=st.integers(-91, 68),
    f=st.integers(-44, 29),
    g=st.integers(0, 40),
)
def test_sums_are_rounded_once(x, shift, e, f, g):
    """Integers of all lengths up to 53 bits, and ties among them."""
    for n in (x, x >> shift, (x >> shift << shift) + (1 << max(0, shift - 1)) - 1):
        if abs(n) > 2**53:
            continue
        pair = pairs.Pair(*(np.asarray([part], dtype=np.int32) for part in (n >> 30, n & (2**30 - 1))))
        units = np.float32(2.0**e) * np.ones((), "f4"), np.float32(2.0**f) * np.ones((), "f4"), 2.0**g
        with np.errstate(all="ignore"):
            found, expected = KERNELS.rounded_sum(pair, *units), DEFAULT.rounded_sum(np.asarray([float(n)]), *units)
            assert_same_bits(found, expected, f"{n} {units}")


def test_longer_sums_in_float32_would_not_be_exact(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 32640, (8, 100_000)), rng.integers(0, 32640, (100_000, 8))  # up to 127 * 256 + 127
    wanted = (x @ y).astype(np.float32)
    given = [a.astype(np.float32) for a in (x, y)]
    assert_same_bits(NarrowKernels(np).product(*given, np.float32(1.0), 0), wanted, "exact")
    monkeypatch.setattr(narrow, "_TERMS", len(y))
    assert np.any(NarrowKernels(np).product(*given, np.float32(1.0), 0) != wanted)


def test_longer_sums_in_int32_would_not_be_exact(monkeypatch):
    x, segments = np.full(2**21, 2**22 - 1, dtype=np.float32), np.zeros(2**21, dtype=np.int64)
    g = np.full(2**17, 1.0 - 2.0**-24, dtype=np.float32)

    def results(k):
        found = k.sum_tiles(lambda i, j: k.bucket_sums(x[i:j], segments[i:j], 1), 0, x.size)
        return float(k.rounded_sum(found, np.float32(1.0))[0]), float(k.rounded_dot(g, g, np.float32(-36.0), 0))

    assert results(NarrowKernels(np)) == results(DEFAULT)
    monkeypatch.setattr(narrow, "_TILE", x.size)
    monkeypatch.setattr(pairs, "_LIMB", 18)
    assert not any(a == b for a, b in zip(results(NarrowKernels(np)), results(DEFAULT), strict=True))
