"""Kept tensors on grids: by an oracle in whole numbers and fractions, and which of them are rounded."""

import hashlib
import json
import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import smh
from smh.files.digests import kept_digest
from smh.files.kept import Rounding, relative_error, restored, round_kept, rounded, values

# Significant bits, the exponent of the smallest number above 0, and that of the bound above the largest.
FORMATS = {
    "float16": (11, -24, 16),
    "bfloat16": (8, -133, 128),
    "float32": (24, -149, 128),
    "float64": (53, -1074, 1024),
}
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in FORMATS}
WIDTHS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}


def grid_of(numbers, bits):
    """Return the integers and the exponent of the grid of section 3.1, or None if it ends below."""
    top = 2 ** (bits - 1) - 1
    try:
        exact = [Fraction(*struct.unpack("<f", struct.pack("<f", x))[0].as_integer_ratio()) for x in numbers]
    except OverflowError:  # beyond float32
        return None
    most = max(map(abs, exact))
    if most < Fraction(1, 2**30):
        return [0] * len(numbers), None
    e = -29
    while most > Fraction(top, top + 1) * Fraction(2) ** e:
        e += 1
    if e > 30:
        return None
    return [round(x / Fraction(2) ** (e - bits + 1)) for x in exact], e  # of a fraction, round is half to even


def holds(x, dtype):
    """Return whether a dtype has a number."""
    digits, least, bound = FORMATS[dtype]
    whole = x / Fraction(2) ** least
    if whole.denominator != 1 or abs(x) >= Fraction(2) ** bound:
        return False
    odd = abs(whole.numerator)
    while odd and odd % 2 == 0:
        odd //= 2
    return odd < 2**digits


def expected(numbers, dtype, bits):
    """Return bits, integers and exponent of a tensor by the rule of the documentation, or None."""
    for tried in sorted({bits, 16}):
        found = grid_of(numbers, tried) if tried < WIDTHS[dtype] and len(numbers) > 1 else None
        if found is None:
            continue
        q, e = found
        if min(numbers) < 0:
            kept = any(q)
        else:
            kept = all(each >= 16 for each, x in zip(q, numbers, strict=True) if x)
        unit = Fraction(2) ** ((e or 0) - tried + 1)
        kept = kept or all(each * unit == Fraction(x) for each, x in zip(q, numbers, strict=True))
        if kept and all(holds(each * unit, dtype) for each in q):
            return tried, q, e
    return None


KINDS = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "positive": lambda rng, size: rng.uniform(0.1, 1, size),
    "wide": lambda rng, size: np.exp(rng.normal(0, 6, size)),
    "wide and signed": lambda rng, size: np.exp(rng.normal(0, 6, size)) * rng.choice([-1, 1], size),
    "ties": lambda rng, size: rng.integers(-255, 256, size) / 2,
    "fine ties": lambda rng, size: rng.integers(-65535, 65536, size) / 2,
    "zeros": lambda rng, size: np.zeros(size) * rng.choice([-1, 1], size),
    "few": lambda rng, size: rng.choice([0, 0, 0, 1], size),
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(sorted(FORMATS)),
    bits=st.sampled_from([8, 16]),
    size=st.integers(1, 40),
    shift=st.sampled_from([0, 0, 0, -40, -30, -29, -16, 9, 23, 29, 60, 140]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rounding_is_that_of_the_oracle(kind, dtype, bits, size, shift, seed):
    x = KINDS[kind](np.random.default_rng(seed), size) * 2.0**shift
    with np.errstate(over="ignore"):
        x = x.astype(DTYPES[dtype])
    if not np.isfinite(x).all():
        x = np.ones_like(x)
    numbers = [float(each) for each in x]
    found, wanted = rounded("x", x, bits), expected(numbers, dtype, bits)
    if wanted is None:
        assert found is None
        return
    q, rounding = found
    assert (rounding.bits, q.tolist(), rounding.exponent) == wanted
    assert (rounding.dtype, rounding.shape, q.dtype) == (dtype, x.shape, np.dtype(f"<i{rounding.bits // 8}"))
    y = restored("x", q, rounding)
    unit = Fraction(2) ** ((rounding.exponent or 0) - rounding.bits + 1)
    assert y.dtype == x.dtype
    assert [Fraction(float(each)) for each in y] == [each * unit for each in q.tolist()]
    assert not np.signbit(y[y == 0]).any()
    # What is rounded comes back as it is, by its bits.
    again, roundings = round_kept({"x": y}, {"x": rounding.bits})
    assert again["x"].tolist() == q.tolist()
    assert roundings["x"] == rounding
    again, rounding_again = rounded("x", y, rounding.bits)
    assert (again.tolist(), rounding_again) == (q.tolist(), rounding)
    if numbers and min(numbers) >= 0:
        assert all(abs(a - b) <= b / 31 for a, b in zip(map(float, y), numbers, strict=True))


def variances(smallest):
    return np.array([1.0, 0.5, smallest], np.float32)


@pytest.mark.parametrize(
    ("smallest", "bits"), [(1.0, 8), (15.5 / 64, 8), (15.4 / 64, 16), (1e-3, 16), (1e-6, None), (0.0, 8)]
)
def test_no_variance_becomes_zero(smallest, bits):
    found = rounded("running_var", variances(smallest), 8)
    assert (found and found[1].bits) == bits


def test_a_negative_number_makes_a_tensor_signed():
    x = np.append(variances(1e-6), np.float32(-1))
    q, rounding = rounded("bias", x, 8)
    assert rounding.bits == 8
    assert q.tolist() == [64, 32, 0, -64]


def test_rounding_again_changes_nothing_though_all_negative_values_became_zero():
    x = np.array([64, 1, -0.1], np.float32)
    q, rounding = rounded("bias", x, 8)
    assert q.tolist() == [64, 1, 0]
    again, same = rounded("bias", values("bias", q, rounding), 8)
    assert (again.tolist(), same) == (q.tolist(), rounding)


LEFT = {
    "one value": np.array([3.0], np.float32),
    "a scalar": np.float32(3),
    "no value": np.zeros((0, 3), np.float32),
    "integers": np.arange(5),
    "bools": np.array([True, False]),
    "complex": np.ones(3, np.complex64),
    "float8": np.ones(3, ml_dtypes.float8_e5m2),
    "too large": np.array([1, -(2.0**30)], np.float32),
    "too large for float32": np.array([1, -1e300]),
    "too small": np.array([2.0**-31, -(2.0**-40)], np.float32),
    "overflow of float16": np.array([65504, -1], np.float16),
    "not finite, and not rounded": np.array([np.nan]),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_rounded(what):
    assert round_kept({"x": np.asarray(LEFT[what])}, 8) == ({}, {})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_to_8_bits_only(dtype):
    x = np.array([0.5, -3.0, 0.1], DTYPES[dtype])
    assert rounded("x", x, 8)[1].bits == 8
    assert rounded("x", x, 16) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite_is_refused_by_name(value, dtype):
    with pytest.raises(smh.VariableError, match=rf"'bn\.bias' cannot be rounded.*without kept_bits; got {value}"):
        round_kept({"fine": np.ones(3), "bn.bias": np.array([1, value], DTYPES[dtype])}, 8)


def test_bits_by_name_change_no_value():
    x = {"a": np.array([0.5, -3.0, 0.1], np.float32), "b": np.array([0.5, -3.0], np.float32), "c": np.ones(2)}
    integers, roundings = round_kept(x, {"a": 8, "b": 8})
    assert list(roundings) == list(integers) == ["b"]  # a would change, c is not named
    assert round_kept(x, None) == ({}, {})


@pytest.mark.parametrize("dtype", FORMATS)
def test_blocks_are_not_seen(dtype, monkeypatch):
    x = np.random.default_rng(1).standard_normal((4, 25)).astype(DTYPES[dtype])
    q, rounding = rounded("x", x, 8)
    whole = restored("x", q, rounding)
    monkeypatch.setattr("smh.files.kept._BLOCK", 7)
    assert restored("x", q, rounding).tobytes() == whole.tobytes()
    assert whole.shape == x.shape


def test_the_last_block_is_checked_too(monkeypatch):
    monkeypatch.setattr("smh.files.kept._BLOCK", 2)
    q = np.array([0, 64, 1], np.int8)  # the last one is too small for float16
    with pytest.raises(smh.CheckpointError, match="must fit float16"):
        restored("x", q, Rounding(8, "float16", -20, (3,)))
    assert restored("x", q, Rounding(8, "float16", -17, (3,)))[2] == 2.0**-24


@pytest.mark.parametrize("bits", [8, 16])
def test_errors_are_within_half_a_unit(bits):
    x = np.random.default_rng(0).standard_normal(1000)
    q, rounding = rounded("x", x, bits)
    y = restored("x", q, rounding)
    assert np.abs(x - y).max() <= 1.01 * 2.0 ** (rounding.exponent - bits)
    assert relative_error(x, y) == pytest.approx(math.sqrt(np.sum((x - y) ** 2) / np.sum(x**2)))
    assert 2.0 ** -(bits + 1) < relative_error(x, y) < 5 * 2.0**-bits
    assert relative_error(x, x) == relative_error(0 * x, 0 * x) == 0


# --- The digest of kept tensors


def test_the_digest_is_that_of_the_specification():
    kept = {"b\u00e9": np.arange(6, dtype=">f8").reshape(2, 3).T, "a": np.array(True), "c": np.zeros((0, 2), np.int16)}
    lines = ['["a","BOOL",[]]', '["b\\u00e9","F64",[3,2]]', '["c","I16",[0,2]]']
    data = [b"\1", struct.pack("<6d", 0, 3, 1, 4, 2, 5), b""]
    text = b"".join(line.encode() + b"\n" + part for line, part in zip(lines, data, strict=True))
    assert kept_digest(kept) == hashlib.sha256(text).hexdigest()
    assert kept_digest(dict(reversed(kept.items()))) == kept_digest(kept)


def test_the_digest_tells_names_dtypes_shapes_and_bits():
    x = np.array([0.0, 1.0], np.float32)
    others = [{"b": x}, {"a": x.astype(np.float64)}, {"a": x[None]}, {"a": -x}, {"a": x, "b": x}, {}]
    digests = {kept_digest(kept) for kept in [{"a": x}, *others]}
    assert len(digests) == 1 + len(others)


def test_the_list_in_the_metadata_is_plain():
    _, rounding = rounded("x", np.array([[0.5, -3.0]], np.float32), 8)
    assert json.dumps(rounding.to_list()) == '[8, "F32", 2, [1, 2]]'
