"""Headers of safetensors files, of which nothing is trusted: what checkpoints and plain files are read by.

Limits keep what a hostile header can cost within bounds; every failure is one :class:`~smh.CheckpointError`.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
from typing import Any

import numpy as np

from smh.core.views import MAX_AXES
from smh.errors import CheckpointError
from smh.strict_json import MAX_HEADER, check, check_limits, short

DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}
"""Names of dtypes in NumPy, by those of the format, as far as checkpoints hold them."""

SURROGATE = re.compile("[\ud800-\udfff]")  # not text: UTF-8 cannot carry it


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading, without waiting for the writer of a named pipe."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))


def read_header(file: io.BufferedReader) -> tuple[bytes, int]:
    """Return the header, which is small enough to be parsed, and how many bytes of data follow."""
    status = os.fstat(file.fileno())
    check(stat.S_ISREG(status.st_mode), "it must be a regular file", stat.filemode(status.st_mode))
    size = status.st_size
    check(size >= 8, "a safetensors file begins with its header's length, the first 8 bytes, which must be there", size)
    length = int.from_bytes(file.read(8), "little")
    check(length <= MAX_HEADER, f"the header of a safetensors file must have at most {MAX_HEADER} bytes", length)
    check(8 + length <= size, f"its header must be there up to byte {8 + length}: it is cut", size)
    header = file.read(length)
    check_limits(header)
    return header, size - 8 - length


def check_tensor(what: str, name: str, entry: Any) -> None:
    """Raise unless name, keys, shape and offsets of an entry are such at all."""
    check(not SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
    keys = {"data_offsets", "dtype", "shape"}
    check(isinstance(entry, dict) and entry.keys() == keys, f"{what} have {sorted(keys)}", entry)
    shape, offsets = entry["shape"], entry["data_offsets"]
    check(are_sizes(shape) and len(shape) <= MAX_AXES, f"{what} have a shape, of at most {MAX_AXES} axes", shape)
    check(are_sizes(offsets) and len(offsets) == 2, f"{what} have two data_offsets", offsets)


def are_sizes(value: Any) -> bool:
    """Say whether a value is a list of whole numbers, none below 0."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def check_place(what: str, entry: dict[str, Any], bits: int, position: int) -> int:
    """Return where the data of a tensor end, or raise unless they start at ``position`` and have its size."""
    most = bits * math.prod(axis or 1 for axis in entry["shape"])  # NumPy counts an axis of 0 like this, too
    check(most < 2**63, f"{what} have less than 2**60 bytes", entry["shape"])
    size = bits * math.prod(entry["shape"])
    check(size % 8 == 0, f"{what} fill whole bytes", entry)
    stop: int = position + size // 8
    offsets = entry["data_offsets"]
    check(offsets == [position, stop], f"{what} have the data_offsets {[position, stop]}", offsets)
    return stop


def read_tensor(file: io.BufferedReader, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Read a tensor from where a file is, into an array of its own."""
    try:
        x = np.empty(shape, dtype)
    except MemoryError as error:
        raise CheckpointError(f"memory must hold tensor {short(name)}, got {shape} {dtype}") from error
    data = x.reshape(-1).view(np.uint8)
    count = file.readinto(data.data)
    check(count == data.size, f"tensor {short(name)} must have {data.size} bytes", count)
    return x


def check_bools(name: str, x: np.ndarray) -> None:
    """Raise if what claims to be bool has other bytes than 0 and 1."""
    largest = int(x.view(np.uint8).max(initial=0)) if x.dtype.name == "bool" else 0
    check(largest <= 1, f"tensor {short(name)} must be of bytes 0 and 1", largest)


def dtype_of(code: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of one of :data:`DTYPES`."""
    if code == "BF16":
        try:
            import ml_dtypes  # noqa: F401  (it teaches NumPy the name)
        except ImportError as error:
            raise CheckpointError("BF16 needs another package: pip install ml_dtypes, got none") from error
    return np.dtype(DTYPES[code]).newbyteorder("<")
