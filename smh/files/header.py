"""Reading untrusted headers of safetensors files, for checkpoints and plain files.

Limits bound the time and memory that a hostile header can take. Every failure is one :class:`~smh.CheckpointError`.
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
from smh.text import SURROGATE

DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
"""NumPy names of the dtypes of the format that checkpoints support: those of whole bytes."""

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""The names of these dtypes in the format, by their NumPy names."""

FOREIGN = frozenset(name for name in DTYPES.values() if name.startswith(("bfloat", "float8")))
"""The dtypes that NumPy knows from the package ``ml_dtypes``."""

_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"BOOL": 8, "U8": 8, "U16": 16, "U32": 32, "U64": 64, "I8": 8, "I16": 16, "I32": 32, "I64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}


class OtherFileError(CheckpointError):
    """A complete file of an unsupported kind."""


_LOAD = "not a safetensors file: load it, and save its tensors with safetensors"
_OTHERS = {
    rb"PK\x03\x04.{26}[^/]{0,30}\.npy": f"an archive of NumPy (.npz), {_LOAD}",
    rb"PK\x03\x04.{26}(metadata|config)\.json": f"a model of Keras (.keras), {_LOAD}",
    rb"PK\x03\x04": f"an archive of torch.save (.pt, .pth, .bin), {_LOAD}",
    rb"\x80[\x02-\x05]": f"a pickle, as torch.save wrote it before PyTorch 1.6, {_LOAD}",
    rb"\x89HDF\r\n": f"an HDF5 file (.h5), {_LOAD}",
    rb"\x93NUMPY": f"an array of NumPy (.npy), {_LOAD}",
    rb"\x1f\x8b": "compressed by gzip: unpack it first",
    rb"version https://git-lfs": "a pointer of git-lfs, not the file itself: run git lfs pull",
    rb"(?i:\s*<(!doctype|html|\?xml))": "a web page, not the file itself: download it again",
    rb"[\t\n\r -~]{8}": "a text file, not a safetensors file",
}
"""The first bytes of files of other kinds, and the kinds."""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading, without waiting for the writer of a named pipe."""
    if os.path.isdir(path):
        files = sorted(name for name in os.listdir(path) if os.fsdecode(name).endswith(".safetensors"))
        what = f"name one in it, such as {os.fsdecode(files[0])!r}" if files else "it holds no .safetensors file"
        raise OtherFileError(f"it is a folder, not a file: {what}")
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))


def read_header(file: io.BufferedReader) -> tuple[bytes, int]:
    """Return the header, which is small enough to parse, and the number of bytes of data after it."""
    status = os.fstat(file.fileno())
    check(stat.S_ISREG(status.st_mode), "it must be a regular file", stat.filemode(status.st_mode))
    size = status.st_size
    check(size >= 8, "a safetensors file begins with its header's length, the first 8 bytes, which must be there", size)
    start = file.read(64)
    for pattern, what in _OTHERS.items() if start[8:9] != b"{" else ():
        if re.match(pattern, start, re.DOTALL):
            raise OtherFileError(f"it is {what}")
    length = int.from_bytes(start[:8], "little")
    file.seek(8)
    check(length <= MAX_HEADER, f"the header of a safetensors file must have at most {MAX_HEADER} bytes", length)
    check(8 + length <= size, f"its header must be there up to byte {8 + length}: it is cut", size)
    header = file.read(length)
    check_limits(header)
    return header, size - 8 - length


def check_tensor(what: str, name: str, entry: Any) -> None:
    """Raise unless name, keys, shape and offsets of an entry have valid types."""
    check(not SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
    keys = {"data_offsets", "dtype", "shape"}
    check(isinstance(entry, dict) and entry.keys() == keys, f"{what} have {sorted(keys)}", entry)
    shape, offsets = entry["shape"], entry["data_offsets"]
    check(are_sizes(shape) and len(shape) <= MAX_AXES, f"{what} have a shape, of at most {MAX_AXES} axes", shape)
    check(are_sizes(offsets) and len(offsets) == 2, f"{what} have two data_offsets", offsets)


def are_sizes(value: Any) -> bool:
    """Return whether a value is a list of nonnegative integers."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def check_place(what: str, entry: dict[str, Any], position: int) -> int:
    """Return the end of the data of a tensor, or raise unless they start at ``position`` and have the right size."""
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    check(isinstance(dtype, str) and dtype in _BITS, f"{what} have a dtype of {list(_BITS)}", dtype)
    most = _BITS[dtype] * math.prod(axis or 1 for axis in shape)  # NumPy also counts an axis of 0 like this
    check(most < 2**63, f"{what} have less than 2**60 bytes", shape)
    size = _BITS[dtype] * math.prod(shape)
    check(size % 8 == 0, f"{what} fill whole bytes", entry)
    stop: int = position + size // 8
    check(offsets == [position, stop], f"{what} have the data_offsets {[position, stop]}", offsets)
    return stop


def read_tensor(file: io.BufferedReader, name: str, shape: tuple[int, ...], code: str) -> np.ndarray:
    """Read a tensor at the position of a file into a separate array. ``code`` is its dtype in the format."""
    dtype = dtype_of(name, code)
    try:
        x = np.empty(shape, dtype)
    except MemoryError as error:
        raise CheckpointError(f"memory must hold tensor {short(name)}, got {shape} {dtype}") from error
    data = x.reshape(-1).view(np.uint8)
    count = file.readinto(data.data)
    check(count == data.size, f"tensor {short(name)} must have {data.size} bytes", count)
    return x


def check_bools(name: str, x: np.ndarray) -> None:
    """Raise if a bool tensor has bytes other than 0 and 1."""
    largest = int(x.view(np.uint8).max(initial=0)) if x.dtype.name == "bool" else 0
    check(largest <= 1, f"tensor {short(name)} must be of bytes 0 and 1", largest)


def dtype_of(name: str, code: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of a tensor, or raise if it is not in :data:`DTYPES`."""
    advice = "convert it to float32, float16 or bfloat16"
    check(code in DTYPES, f"the dtype of tensor {short(name)} must be one that smh reads: {advice}", code)
    if DTYPES[code] in FOREIGN:
        try:
            import ml_dtypes  # noqa: F401  (registers the name with NumPy)
        except ImportError as error:
            raise CheckpointError(f"{code} needs another package: pip install ml_dtypes, got none") from error
    return np.dtype(DTYPES[code]).newbyteorder("<")
