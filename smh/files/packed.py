"""Packed checkpoints: integers of the pool and of kept tensors entropy-coded (specification, section 12.1).

The name of a coded tensor is ``coded/`` and the name of the tensor that it stands for; its bytes are a stream of
:mod:`smh.files.coder`. Of the arrays of 128 or more integers, those are coded that get smaller, so one content has one
packed file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from smh.core.integers import pool_arrays
from smh.core.plan import Plan
from smh.core.rate import FEWEST_CODED, MOST
from smh.files.coder import decode, encode, least_bytes
from smh.files.integers import Arrays, from_stored, stored_bytes, to_stored
from smh.files.kept import ROUNDED, Rounding
from smh.strict_json import check, short

CODED = "coded/"
"""The prefix of coded tensors."""

_Integers = tuple[str, int, tuple[int, ...]]  # name in the file, bits, shape


def integer_tensors(plan: Plan, rounded: Mapping[str, Rounding]) -> tuple[list[_Integers], list[_Integers]]:
    """Return names, bits and shapes of the integers in a file: those of the pool, and those of kept tensors."""
    pool = [(name, bits, shape) for name, bits, shape, _ in pool_arrays(plan)]
    return pool, [(ROUNDED + name, one.bits, one.shape) for name, one in rounded.items()]


def pack_tensors(plan: Plan, tensors: Mapping[str, np.ndarray], rounded: Mapping[str, Rounding]) -> Arrays:
    """Return the tensors of a file with integers coded where that makes them smaller."""
    packed = dict(tensors)
    for name, bits, shape in _codable(plan, rounded):
        stream = _stream(name, bits, shape, tensors[name])
        if stream is not None:
            del packed[name]
            packed[CODED + name] = np.frombuffer(stream, np.uint8)
    return packed


def unpack_tensors(plan: Plan, tensors: Mapping[str, np.ndarray], rounded: Mapping[str, Rounding]) -> Arrays:
    """Return the tensors of a file with the coded ones as their integers, after the checks of :func:`check_coded`.

    Raises :class:`~smh.CheckpointError` unless the file is packed as :func:`pack_tensors` does it, or not at all.
    """
    unpacked = dict(tensors)
    if not coded_names(tensors):
        return unpacked
    for name, bits, shape in _codable(plan, rounded):
        if CODED + name in tensors:
            stream = unpacked.pop(CODED + name).tobytes()
            unpacked[name] = to_stored(bits, decode(stream, math.prod(shape), bits).reshape(shape))
        else:
            smaller = _stream(name, bits, shape, tensors[name])
            check(smaller is None, f"{name!r} must be coded where that makes it smaller", tensors[name].nbytes)
    return unpacked


def coded_names(names: Iterable[str]) -> list[str]:
    """Return those of the names of a file that are of coded tensors, without the prefix."""
    return [name.removeprefix(CODED) for name in names if name.startswith(CODED)]


def check_coded(plan: Plan, entries: Mapping[str, Any], rounded: Mapping[str, Rounding]) -> None:
    """Raise :class:`~smh.CheckpointError` unless the coded tensors of a header can be integers of this file.

    Entries are dtype and shape.
    """
    sizes, arrays = {}, {}
    for group in integer_tensors(plan, rounded):
        for name, bits, shape in group:
            sizes[CODED + name], arrays[CODED + name] = len(group), (bits, shape)
    for name, entry in entries.items():
        if not name.startswith(CODED):
            continue
        what = f"coded tensor {short(name)} must"
        check(name in arrays, f"{what} be an array of the pool or a rounded kept tensor", name)
        check(sizes[name] <= MOST, f"{what} be one of at most {MOST} arrays", sizes[name])
        bits, shape = arrays[name]
        check(math.prod(shape) >= FEWEST_CODED, f"{what} have at least {FEWEST_CODED} integers", shape)
        dtype, axes = entry
        check(dtype == "U8" and len(axes) == 1, f"{what} be U8 with one axis", entry)
        least, most = least_bytes(math.prod(shape)), stored_bytes(bits, shape)
        check(least <= axes[0] < most, f"{what} have at least {least} bytes and less than {most}", axes[0])


def _codable(plan: Plan, rounded: Mapping[str, Rounding]) -> list[_Integers]:
    return [each for group in integer_tensors(plan, rounded) if len(group) <= MOST for each in group]


def _stream(name: str, bits: int, shape: tuple[int, ...], array: np.ndarray) -> bytes | None:
    """Return the stream of a stored array, or None where it is not to be coded."""
    if math.prod(shape) < FEWEST_CODED:
        return None
    stream = encode(from_stored(name, bits, shape, array), bits)
    return stream if len(stream) < array.nbytes else None
