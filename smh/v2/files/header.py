"""Headers of safetensors files, of which nothing is trusted: what checkpoints and plain files are read by.

Limits keep what a hostile header can cost within bounds; every failure is one :class:`~smh.CheckpointError`.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import reprlib
import stat
from typing import Any

import numpy as np

from smh.v2.errors import CheckpointError

MAX_HEADER, MAX_VALUES = 8 << 20, 1 << 19
"""Most bytes and JSON values of a header (some 20,000 tensors): parsing one allocates less than 128 MiB."""
MAX_AXES = 64
"""The most axes of a tensor, which is what NumPy takes."""
MAX_NESTING = 64
"""The most lists and objects that lie in one another."""

DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}
"""Names of dtypes in NumPy, by those of the format, as far as checkpoints hold them."""

_STRINGS = re.compile(r'"[^"]*+"')
_NO_BRACKETS = re.compile(r"[^][{}]++")
_INNERMOST = re.compile(r"\[\]|\{\}")
SURROGATE = re.compile("[\ud800-\udfff]")  # not text: UTF-8 cannot carry it
short = reprlib.Repr().repr  # shows what was received, but only the ends of what is large or deep


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


def check_limits(header: bytes, what: str = "a header") -> None:
    """Raise unless a header, or other JSON, is small enough to be parsed."""
    check(len(header) <= MAX_HEADER, f"{what} must have at most {MAX_HEADER} bytes", len(header))
    # At least as many as parsing makes, those of a plan included, which is JSON in a string.
    values = sum(header.count(character) for character in (b",", b"[", b"{"))
    check(values <= MAX_VALUES, f"{what} must have at most {MAX_VALUES} JSON values", values)


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


def check(condition: bool, what: str, got: Any) -> None:
    """Raise CheckpointError with what there must be and what there is, unless a condition holds."""
    if not condition:
        raise CheckpointError(f"{what}, got {short(got)}")


def parse(text: str | bytes, where: str) -> Any:
    """Parse JSON, without Python's additions to it and without what it would take silently."""
    try:
        plain = text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")  # names are checked later
        # json.loads itself would also take UTF-16 and UTF-32
        _check_nesting(plain)
        return json.loads(
            plain, object_pairs_hook=_unique, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{where} must be plain JSON in UTF-8: {error}") from error


def _check_nesting(text: str) -> None:
    """Raise unless JSON is flat enough for any parser; Python's own limit can be set so high that it crashes."""
    unquoted = _STRINGS.sub("", text.replace("\\\\", "").replace('\\"', ""))
    brackets = _NO_BRACKETS.sub("", unquoted)
    for _ in range(MAX_NESTING):
        brackets = brackets.replace("[]", "").replace("{}", "")
    if len(brackets) > MAX_NESTING or (brackets and _INNERMOST.search(brackets)):
        raise ValueError(f"it has a recursion of more than {MAX_NESTING} lists and objects")


def dtype_of(code: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of one of :data:`DTYPES`."""
    if code == "BF16":
        try:
            import ml_dtypes  # noqa: F401  (it teaches NumPy the name)
        except ImportError as error:
            raise CheckpointError("BF16 needs another package: pip install ml_dtypes, got none") from error
    return np.dtype(DTYPES[code]).newbyteorder("<")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"every key must come once, got {short(name)} twice")
        result[name] = value
    return result


def _number(text: str) -> int | float:
    # The time to read an integer grows with the square of its length.
    if len(text) > 32 or not math.isfinite(float(text)):
        raise ValueError(f"a number must be finite and have at most 32 characters, got {short(text)}")
    return int(text) if text.lstrip("-").isdigit() else float(text)
