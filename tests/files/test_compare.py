"""Comparison: every bit counts, and distances are counted on the line of all floats."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smh.files import compare as comparing
from smh.files.compare import Difference, compare, compare_all

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_ulps_are_places_on_the_line_of_all_floats(dtype):
    line = np.arange(2**16).astype(np.uint16).view(dtype)
    numbers = [x for x in line if not np.isnan(np.float32(x))]
    places = {}  # both zeros have one
    for place, (_, group) in enumerate(itertools.groupby(sorted(numbers, key=np.float32), key=np.float32)):
        places.update({x.tobytes(): place for x in group})
    rng = np.random.default_rng(0)
    a, b = (np.asarray([numbers[i] for i in rng.integers(0, len(numbers), 500)], dtype=dtype) for _ in range(2))
    for x, y in zip(a, b, strict=True):
        found = compare("x", x, y)
        assert found.max_ulps == abs(places[x.tobytes()] - places[y.tobytes()])
        assert found.bits == bin(int(x.view(np.uint16)) ^ int(y.view(np.uint16))).count("1")


@given(x=st.floats(width=32, allow_nan=False), steps=st.integers(0, 40))
def test_steps_to_the_next_number_are_ulps(x, steps):
    for dtype in (np.float32, np.float64):
        y = start = dtype(x)
        for _ in range(steps):
            y = np.nextafter(y, dtype(-np.inf if x > 0 else np.inf))
        found = compare("x", start, y)
        assert (found.max_ulps or 0) == steps
        assert found.same == (steps == 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_infinities_and_ends(dtype):
    def value(x):
        return np.asarray(x, dtype=dtype)

    bits = 8 * value(0).itemsize
    info = ml_dtypes.finfo(dtype)
    assert compare("x", value(0.0), value(-0.0)) == Difference("x", "", 1, 1, 1, 0)
    assert compare("x", value(np.inf), value(np.inf)).same
    assert compare("x", info.max, value(np.inf)).max_ulps == 1
    smallest = np.asarray(1).astype(f"u{bits // 8}").view(dtype)
    assert compare("x", smallest, -smallest).max_ulps == 2
    whole = compare("x", value(-np.inf), value(np.inf))
    assert whole.bits == 1
    assert whole.max_ulps == 2 * int(value(np.inf).view(f"u{bits // 8}"))


def test_nans_are_the_same_by_bits_or_all_of_them():
    a = np.asarray([np.nan, np.nan, 1], np.float32)
    b = a.copy()
    b.view(np.uint32)[1] ^= 1
    assert compare("x", a, a.copy()).same
    assert compare("x", a, b) == Difference("x", "", 3, 1, 1, None, 1)
    assert compare("x", a, b, any_nan=True).same
    mixed = np.asarray([1, np.nan, 2], np.float32)
    found = compare("x", a, mixed, any_nan=True)
    assert (found.different, found.nans, found.max_ulps) == (2, 1, 2**23)
    assert "1 NaN" in str(found)


def test_integers_and_booleans_by_equality():
    assert compare("x", np.asarray([1, 2, 3]), np.asarray([1, 2, 7])) == Difference("x", "", 3, 1, 1)
    assert compare("x", np.asarray([True, False]), np.asarray([True, True])) == Difference("x", "", 2, 1, 1)
    assert compare("x", np.zeros((0, 3)), np.zeros((0, 3))).same


def test_shapes_dtypes_and_byte_order():
    x = np.arange(6, dtype=np.float32)
    assert compare("x", x.reshape(2, 3), x.reshape(3, 2)).why == "shape 2 x 3 against 3 x 2"
    assert compare("x", x[0], x[:1]).why == "shape of a scalar against 1"
    assert compare("x", x, x.astype(np.float64)).why == "float32 against float64"
    assert not compare("x", x, x.astype(np.float64)).same
    assert compare("x", x, x.astype(">f4")).same
    assert compare("x", x.reshape(2, 3).T, np.ascontiguousarray(x.reshape(2, 3).T)).same


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 19), st.integers(0, 31)), max_size=9, unique=True))
def test_blocks_add_up(block, flips):
    a = np.ones(20, np.float32)
    b = a.copy()
    for place, bit in flips:
        b.view(np.uint32)[place] ^= np.uint32(1 << bit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_BLOCK", block)
        found = compare("x", a, b)
    assert (found.elements, found.bits) == (20, len(flips))
    assert found.different == len({place for place, _ in flips})
    distances = [abs(int(y) - int(x)) for x, y in zip(a.view(np.int32), b.view(np.int32), strict=True) if 0 < y]
    if len(distances) == 20 and not np.isnan(b).any():
        assert (found.max_ulps or 0) == max(distances)


def test_names_in_one_only_and_plain_data():
    a = {"x": np.zeros(2), "y": np.ones(3, np.float32), "only": np.zeros(1)}
    b = {"y": np.ones(3, np.float32), "x": np.ones(2), "other": np.zeros(1)}
    calls = []
    found = compare_all(a, b, advance=lambda: calls.append(1))
    assert (found.compared, found.bits, len(calls)) == (2, 2 * 64 + 3 * 32, 2)
    assert (found.only_first, found.only_second) == (["only"], ["other"])
    assert [difference.name for difference in found.differences] == ["x"]
    assert not found.same
    assert found.to_dict()["differences"][0]["different"] == 2
    assert compare_all(a, dict(a)).same
    assert not compare_all(a, {}).same
    assert not compare_all({}, b).same
    nans = {"w": np.asarray([np.nan], np.float32)}, {"w": -np.asarray([np.nan], np.float32)}
    assert not compare_all(*nans).same
    assert compare_all(*nans, any_nan={"w"}).same
