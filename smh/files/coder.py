"""Entropy coding of integers (specification, section 12.1): ANS by constriction, with models of integers only.

A stream is decoded with nothing but the number of integers and their bits. It begins with a table of frequencies. Equal
integers give equal streams, and :func:`decode` refuses every stream that :func:`encode` does not write: one array has
one stream.

constriction takes probabilities as float64. Symbol i of n starts at ``floor(s * (2**24 - n) / S) + i``, where s is the
sum of the probabilities before i and S that of all. Here they are f - 1 for frequencies f with the sum 2**24. The
factor is then exactly 1 and all sums are whole numbers below 2**53, so these frequencies are used as they are: no float
decides anything.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from smh.errors import install_line
from smh.files.header import OtherFileError
from smh.strict_json import check

DENSEST = 256
"""The most integers for each byte of a stream. It bounds the memory that a small file can take."""

_PRECISION = 24  # bits of frequencies
_LARGEST = 1 << 15  # the largest magnitude of an int16
_BLOCK = 1 << 18  # integers held in wider types at a time
_FINENESS = (2, 3, 4, 5, 6, 7)  # significant bits of magnitudes that tell classes apart
_DIGITS = (2, 3)  # significant bits of the counts in a table
_RATES = (0, 2, 4, 6, 8, 10, 12, 14)  # sixteenths to which the weight of a difference falls from one to the next
_FIELDS = (3, 1, 3, 10)  # bits of the numbers before a table
_WIDEST = 127  # the largest difference in a table
_LOGARITHMS = np.array([max((x**256).bit_length() - 1, 0) for x in range(512)])  # in 1/256 bits, rounded down


class _Table(NamedTuple):
    """A table of frequencies: how classes are made, and the code of a count for each class 0, 1, -1, 2, -2 ..."""

    fineness: int
    digits: int
    rate: int
    codes: np.ndarray


def encode(q: np.ndarray, bits: int) -> bytes:
    """Return the stream of integers.

    Parameters
    ----------
    q : numpy.ndarray
        One or more integers, of any shape and integer dtype, with magnitudes below ``2**(bits - 1)``.
    bits : int
        From 2 to 16.

    Returns
    -------
    bytes
        The stream: at least one byte for every 256 integers.

    Raises
    ------
    CheckpointError
        If constriction is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.array([0, 1, 0, 0, -1, 0, 0, 0] * 1000, dtype=np.int8)
    >>> stream = encode(q, 8)
    >>> len(stream), bool(np.all(decode(stream, q.size, 8) == q))
    (1068, True)
    """
    models, coder = _library().stream.model, _library().stream.stack.AnsCoder()
    q = q.reshape(-1)
    table = _best(_histogram(q))
    # A stack: the value read first is written last.
    for low in range(_low_bits(table), 0, -1):
        for block in map(np.abs, _blocks(q, backwards=True)):
            members = block[_lows(block, table.fineness) == low]
            if members.size:
                coder.encode_reverse(members & (1 << low) - 1, models.Uniform(1 << low))
    present = np.flatnonzero(table.codes)
    if present.size > 1:
        model = _model(_starts(table.codes[present], table.digits))
        index = np.zeros(table.codes.size, np.int32)
        index[present] = np.arange(present.size)
        for block in _blocks(q, backwards=True):
            coder.encode_reverse(index[_places(block, table.fineness)], model)
    coder.encode_reverse(_differences(table, q.size) + _WIDEST, _rate_model(table.rate))
    fields = (table.fineness - _FINENESS[0], table.digits - _DIGITS[0], table.rate, table.codes.size // 2)
    for width, field in reversed(list(zip(_FIELDS, fields, strict=True))):
        coder.encode_reverse(np.array([field], np.int32), models.Uniform(1 << width))
    stream: bytes = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return stream.ljust(least_bytes(q.size), b"\0")


def decode(stream: bytes, count: int, bits: int) -> np.ndarray:
    """Return the integers of a stream, which is not trusted.

    Parameters
    ----------
    stream : bytes
        What :func:`encode` has returned.
    count : int
        The number of integers, 1 or more.
    bits : int
        The bits of the integers, as for :func:`encode`.

    Returns
    -------
    numpy.ndarray
        The integers, shape (count,), int8 up to 8 bits and int16 above.

    Raises
    ------
    CheckpointError
        If the stream is not the one that :func:`encode` returns for its integers, or if constriction is not installed.
    """
    check(len(stream) >= least_bytes(count), f"a stream must have a byte for {DENSEST} of its {count} integers", stream)
    models, stack = _library().stream.model, _library().stream.stack
    words = stream.rstrip(b"\0")
    coder = stack.AnsCoder(np.frombuffer(words.ljust(-(-len(words) // 4) * 4, b"\0"), "<u4").astype(np.uint32))
    table = _read_table(coder, models, count, bits)
    present = np.flatnonzero(table.codes)
    classes = (present + 1) // 2
    values = np.where(present % 2, 1, -1) * _starts(classes, table.fineness)  # the smallest magnitude of each class
    q: np.ndarray = np.empty(count, np.int8 if bits <= 8 else np.int16)
    if present.size > 1:
        model = _model(_starts(table.codes[present], table.digits))
        for start in range(0, count, _BLOCK):
            part = q[start : start + _BLOCK]
            part[:] = values[coder.decode(model, part.size)]
    else:
        q[:] = values[0]
    for low in range(1, _low_bits(table) + 1):
        for start in range(0, count, _BLOCK):
            part = q[start : start + _BLOCK]
            # Adding low bits does not change how many a magnitude has.
            members = np.flatnonzero(_lows(np.abs(part.astype(np.int32)), table.fineness) == low)
            if members.size:
                added = coder.decode(models.Uniform(1 << low), members.size)
                part[members] += (np.sign(part[members]) * added).astype(q.dtype)
    check(encode(q, bits) == stream, "a stream must be the one that its integers have", stream)
    return q


def least_bytes(count: int) -> int:
    """Return the fewest bytes of a stream of a number of integers."""
    return -(-count // DENSEST)


def entropy(q: np.ndarray) -> float:
    """Return the entropy of integers, in bytes for all of them: no code of single integers is shorter.

    Examples
    --------
    >>> import numpy as np
    >>> entropy(np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype=np.int8))
    1.0
    """
    counts = _histogram(q.reshape(-1))
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(q.size / counts))) / 8


def _library() -> Any:
    try:
        return importlib.import_module("constriction")
    except ModuleNotFoundError as error:
        raise OtherFileError(f"integers that are entropy-coded need constriction: {install_line('pack')}") from error


def _blocks(q: np.ndarray, backwards: bool = False) -> Iterator[np.ndarray]:
    """Iterate over blocks of integers, as int32."""
    starts = range(0, q.size, _BLOCK)
    for start in reversed(starts) if backwards else starts:
        yield q[start : start + _BLOCK].astype(np.int32)


def _histogram(q: np.ndarray) -> np.ndarray:
    """Return how often each value from the least to the largest possible occurs."""
    counts = np.zeros(2 * _LARGEST + 1, np.int64)
    for block in _blocks(q):
        counts += np.bincount(block + _LARGEST, minlength=counts.size)
    return counts


# --- Short numbers: magnitudes and counts with a few significant bits


def _lows(x: np.ndarray, digits: int) -> np.ndarray:
    """Return how many bits nonnegative numbers below 2**52 have beyond their significant ones."""
    significant: np.ndarray = np.frexp(x.astype(np.float64))[1]
    return np.asarray(np.maximum(significant - digits, 0))


def _shorten(x: np.ndarray, digits: int) -> np.ndarray:
    """Return the code of the significant bits of nonnegative numbers. Codes are consecutive and in order."""
    low = _lows(x, digits).astype(np.int64)
    return np.asarray((low << digits - 1) + (x >> low))


def _starts(codes: np.ndarray, digits: int) -> np.ndarray:
    """Return the smallest number with each code."""
    low = np.maximum((codes >> digits - 1) - 1, 0).astype(np.int64)
    return np.asarray((codes - (low << digits - 1)) << low)


def _round(x: np.ndarray, digits: int) -> np.ndarray:
    """Return the code of the nearest number that has one, of the larger in the middle."""
    return _shorten(x + (1 << _lows(x, digits).astype(np.int64) >> 1), digits)


# --- Tables


def _places(q: np.ndarray, fineness: int) -> np.ndarray:
    """Return the places in a table of integers: 0 for the class 0, then 1, -1, 2, -2 ..."""
    return np.asarray(2 * _shorten(np.abs(q), fineness) - (q > 0))


def _low_bits(table: _Table) -> int:
    """Return how many bits a table leaves to the largest magnitudes."""
    return max((table.codes.size // 2 >> table.fineness - 1) - 1, 0)


def _differences(table: _Table, count: int) -> np.ndarray:
    """Return the codes of a table minus the mean of the two codes before each, int32."""
    first = _first(count, table.codes.size, table.digits)
    before = np.concatenate([[first, first], table.codes])
    return np.asarray(table.codes - (before[:-2] + before[1:-1] + 1 >> 1), np.int32)


def _first(count: int, size: int, digits: int) -> int:
    return int(_round(np.array(count // size), digits))


@functools.cache
def _rate_model(rate: int) -> Any:
    return _model(_rate_weights(rate))


@functools.cache
def _rate_lengths() -> np.ndarray:
    lengths: np.ndarray = np.stack([_lengths(_rate_weights(rate)) for rate in range(len(_RATES))])
    return lengths


def _rate_weights(rate: int) -> np.ndarray:
    """Return the weights of the differences from the least to the largest one."""
    falling = [1 << 20]
    for _ in range(_WIDEST):
        falling.append(falling[-1] * _RATES[rate] >> 4)
    return np.array(falling[:0:-1] + falling)


def _frequencies(weights: np.ndarray) -> np.ndarray:
    """Return frequencies of 1 or more with the sum 2**24, in proportion to weights."""
    sums = np.cumsum(weights) * ((1 << _PRECISION) - weights.size) // np.sum(weights)
    return np.asarray(np.diff(sums, prepend=0) + 1)


def _model(weights: np.ndarray) -> Any:
    probabilities = (_frequencies(weights) - 1).astype(np.float64)
    return _library().stream.model.Categorical(probabilities, perfect=False)


def _lengths(weights: np.ndarray) -> np.ndarray:
    """Return the lengths of symbols in 1/256 bits, from the first nine bits of their frequencies."""
    x = _frequencies(weights)
    low = _lows(x, 9)
    return np.asarray((_PRECISION - low) * 256 - _LOGARITHMS[x >> low])


def _best(values: np.ndarray) -> _Table:
    """Return the table for a histogram with the shortest stream, the first of several."""
    present = np.flatnonzero(values)
    q, counts = present - _LARGEST, values[present]
    total = int(counts.sum())
    found: list[tuple[int, _Table]] = []
    for fineness in _FINENESS:
        places = _places(q, fineness)
        size = 2 * int(_shorten(np.abs(q).max(), fineness)) + 1
        members = np.bincount(places, counts, size).astype(np.int64)  # below 2**31: exact as floats
        low_bits = int(np.sum(counts * _lows(np.abs(q), fineness))) * 256
        for digits in _DIGITS:
            codes = _round(members, digits)
            used = codes > 0
            symbols = int(np.sum(members[used] * _lengths(_starts(codes[used], digits)))) if used.sum() > 1 else 0
            differences = _differences(_Table(fineness, digits, 0, codes), total)
            costs = _rate_lengths()[:, differences + _WIDEST].sum(axis=1)
            rate = int(np.argmin(costs))
            found.append((low_bits + symbols + int(costs[rate]), _Table(fineness, digits, rate, codes)))
        if low_bits == 0:
            break  # a class for each value: more significant bits change nothing
    return min(found, key=lambda each: each[0])[1]


def _read_table(coder: Any, models: Any, count: int, bits: int) -> _Table:
    """Return the table at the beginning of a stream."""
    fields = [int(coder.decode(models.Uniform(1 << width))) for width in _FIELDS]
    fineness, digits, rate = fields[0] + _FINENESS[0], fields[1] + _DIGITS[0], fields[2]
    check(fineness in _FINENESS, f"classes of integers must have one of {_FINENESS} significant bits", fineness)
    last = int(_shorten(np.array((1 << bits - 1) - 1), fineness))
    check(fields[3] <= last, f"a table must have at most the classes up to {last}", fields[3])
    size, most = 2 * fields[3] + 1, int(_round(np.array(count), digits))
    model = _rate_model(rate)
    codes = [_first(count, size, digits)] * 2
    for _ in range(size):
        code = (codes[-2] + codes[-1] + 1 >> 1) + int(coder.decode(model)) - _WIDEST
        check(0 <= code <= most, f"counts of {count} integers must have codes up to {most}", code)
        codes.append(code)
    found = np.array(codes[2:])
    total = int(_starts(found, digits).sum())
    check(0 < total <= 2 * count, f"the counts of a table must have a sum near {count}", total)
    return _Table(fineness, digits, rate, found)
