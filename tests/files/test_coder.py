"""Streams of integers: those of the specification, bit for bit, small, and refused where no writer writes them."""

import random
import tracemalloc

import numpy as np
import pytest

import smh
from smh.files.coder import decode, encode, entropy, least_bytes
from tests.files import oracle_coder

MIB = 2**20


def normal(count, bits, width, seed=0):
    """Return rounded normal numbers, clipped to the largest magnitude of some bits."""
    most = 2 ** (bits - 1) - 1
    x = np.random.default_rng(seed).normal(size=count) * width
    return np.clip(np.rint(x), -most, most).astype(np.int8 if bits <= 8 else np.int16)


def grid(x, bits=8):
    """Return integers as a pool array has them: the largest magnitude takes all bits, or all but one."""
    most = 2 ** (bits - 1) - 1
    unit = 2.0 ** np.ceil(np.log2(np.abs(x).max() / most))
    return np.rint(x / unit).astype(np.int16)


CASES = {
    "one": normal(1, 8, 30),
    "two": normal(2, 2, 1),
    "2 bits": normal(300, 2, 0.5),
    "4 bits": normal(700, 4, 3),
    "8 bits": normal(900, 8, 30),
    "8 bits, small": normal(900, 8, 0.3),
    "12 bits": normal(400, 12, 400),
    "16 bits": normal(600, 16, 9000),
    "16 bits, small": normal(600, 16, 2),
    "zeros": np.zeros(1000, np.int8),
    "one value": np.full(400, -127, np.int8),
    "two values": np.array([127, -127] * 200, np.int8),
    "all values": np.arange(-127, 128, dtype=np.int8),
    "extremes": np.array([32767, -32767, 0, 1, -1] * 50, np.int16),
    "powers": np.array([s * 2**k for k in range(15) for s in (1, -1)], np.int16),
}
BITS = {"two": 2, "2 bits": 2, "4 bits": 4, "12 bits": 12, "16 bits": 16, "16 bits, small": 16}
BITS |= {"extremes": 16, "powers": 16}


@pytest.mark.parametrize("name", CASES)
def test_streams_are_those_of_the_specification(name):
    q, bits = CASES[name], BITS.get(name, 8)
    stream = encode(q, bits)
    assert stream == oracle_coder.encode(q.tolist())
    assert oracle_coder.decode(stream, q.size) == q.tolist()
    found = decode(stream, q.size, bits)
    assert found.dtype == (np.int8 if bits <= 8 else np.int16)
    assert np.array_equal(found, q)


def test_shapes_and_memory_orders_make_no_difference():
    q = normal(600, 8, 20).reshape(20, 30)
    assert encode(q, 8) == encode(q.reshape(-1), 8) == encode(np.asfortranarray(q), 8) == encode(q.astype(">i2"), 8)


def test_blocks_make_no_difference(monkeypatch):
    q = normal(3000, 16, 3000)
    stream = encode(q, 16)
    monkeypatch.setattr("smh.files.coder._BLOCK", 7)
    assert encode(q, 16) == stream
    assert np.array_equal(decode(stream, q.size, 16), q)


def distributions():
    rng = np.random.default_rng(1)
    count = 10_001
    yield "normal", grid(rng.normal(size=count)), 8
    yield "Laplace", grid(rng.laplace(size=count)), 8
    yield "heavy tails", grid(rng.standard_t(3, size=count)), 8
    yield "heavier tails", grid(rng.standard_t(2, size=count)), 8
    yield "uniform", grid(rng.uniform(-1, 1, size=count)), 8
    yield "4 bits", grid(rng.normal(size=count), 4), 4
    yield "fixed exponent", normal(count, 8, 1), 8
    yield "mostly 0", normal(count, 8, 0.4), 8
    yield "12 bits", grid(rng.normal(size=10 * count), 12), 12
    yield "16 bits", grid(rng.normal(size=10 * count), 16), 16


DISTRIBUTIONS = {name: (q, bits) for name, q, bits in distributions()}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_streams_take_at_most_2_percent_more_than_the_entropy(name):
    q, bits = DISTRIBUTIONS[name]
    size = len(encode(q, bits))
    assert size <= 1.02 * entropy(q)
    assert size >= 0.98 * entropy(q)  # the low bits of wide integers have less entropy than bits


def test_the_entropy_is_that_of_shannon():
    q = np.array([1] * 4 + [2] * 2 + [3, 4], np.int8)
    assert entropy(q) == 8 * 1.75 / 8
    assert entropy(np.zeros(9, np.int8)) == 0


# --- Streams that are not trusted


def test_a_stream_with_another_table_is_refused():
    q = normal(500, 8, 10).tolist()
    honest = oracle_coder.encode(q)
    others = 0
    for f in range(2, 8):
        for d in (2, 3):
            for rate in range(8):
                stream = oracle_coder.written(q, f, d, rate)
                assert oracle_coder.decode(stream, len(q)) == q
                if stream != honest:
                    others += 1
                    with pytest.raises(smh.CheckpointError, match="must be the one that its integers have"):
                        decode(stream, len(q), 8)
    assert others > 80


def test_bytes_at_the_end_are_refused():
    q = normal(500, 8, 10)
    stream = encode(q, 8)
    for more in (b"\0", b"\1", bytes(8)):
        with pytest.raises(smh.CheckpointError):
            decode(stream + more, q.size, 8)
    with pytest.raises(smh.CheckpointError):
        decode(stream[:-1], q.size, 8)


def test_integers_beyond_the_bits_are_refused():
    q = normal(500, 8, 30)
    assert np.abs(q).max() > 31
    with pytest.raises(smh.CheckpointError, match="at most the classes up to"):
        decode(encode(q, 8), q.size, 6)


@pytest.mark.parametrize("count", [100 * MIB, 2**31 - 1])
def test_a_short_stream_of_many_integers_is_refused_before_anything_is_allocated(count):
    stream = encode(np.zeros(1000, np.int8), 8)
    assert least_bytes(count) > len(stream)
    tracemalloc.start()
    with pytest.raises(smh.CheckpointError, match="a byte for 256"):
        decode(stream, count, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


def test_memory_is_that_of_the_integers():
    q = np.zeros(8 * MIB, np.int8)
    q[::1000] = 3
    stream = encode(q, 8)
    tracemalloc.start()
    decode(stream, q.size, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < q.size + 16 * MIB


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_any_bytes_are_refused_or_are_a_stream(bits):
    rng = random.Random(bits)
    honest = encode(normal(300, bits, 2 ** (bits - 2)), bits)
    accepted = 0
    for turn in range(400):
        content = bytearray(honest if turn % 2 else rng.randbytes(rng.randrange(2, 40)))
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            q = decode(bytes(content), 300, bits)
        except smh.CheckpointError:
            continue
        accepted += 1
        assert encode(q, bits) == bytes(content)
    assert accepted < 400


def test_a_table_whose_counts_would_overflow_is_refused():
    coder = oracle_coder.Coder()
    count, rate = 2**31 - 1, 7
    model = oracle_coder.starts(oracle_coder.differences(rate))
    first = oracle_coder.near(count // 1279, 3)
    steps, before = [], [first, first]
    while len(steps) < 1279:  # every class occurs as often as all integers
        steps.append(oracle_coder.near(count, 3) - (before[-2] + before[-1] + 1) // 2)
        before.append(oracle_coder.near(count, 3))
    for step in reversed(steps):
        coder.write(step + 127, model)
    for bits, field in ((10, 639), (3, rate), (1, 1), (3, 5)):
        coder.write(field, oracle_coder.uniform(bits))
    stream = coder.stream().ljust(least_bytes(count), b"\0")
    with pytest.raises(smh.CheckpointError, match="must have a sum near"):
        decode(stream, count, 16)


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(smh.CheckpointError, match=r"structured-multi-hashing\[pack\]"):
        encode(np.zeros(10, np.int8), 8)
