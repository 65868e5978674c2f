"""Plain safetensors files of any origin, read one tensor at a time.

Not through the safetensors library: to NumPy it gives no bfloat16 unless another package has taught NumPy the name, and
a mapped file that is cut while it is read ends the process. Here the header is checked like that of a checkpoint, and
each tensor is read into an array of its own, from the file that was checked.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from smh.checkpoint import _SURROGATE, MAX_HEADER, MAX_VALUES, _are_sizes, _check, _dtype, _parse, _short
from smh.errors import CheckpointError, UnknownNameError, near_names

FLOATS = ("F16", "BF16", "F32", "F64")
"""The dtypes whose tensors can be hashed."""

_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"BOOL": 8, "U8": 8, "U16": 16, "U32": 32, "U64": 64, "I8": 8, "I16": 16, "I32": 32, "I64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}
_UNREADABLE = ("F4", "F6_", "F8_", "C64")  # how dtypes begin that NumPy, or a checkpoint, does not have
_MAX_AXES = 64  # of NumPy


class DenseFile(Mapping[str, np.ndarray]):
    """A plain safetensors file: a mapping from names to tensors, each read when it is asked for.

    The header is checked when the file is opened. Tensors are in the order of their data.

    Parameters
    ----------
    path : str or os.PathLike
        The file. It stays open until :meth:`close`, or the end of a ``with`` block.

    Attributes
    ----------
    path : str
        The file.
    shapes : dict of str to tuple of int
        The shapes of all tensors.
    dtypes : dict of str to str
        Their dtypes in the words of the format, such as ``"F32"``.
    sizes : dict of str to int
        How many bytes each has in the file.

    Raises
    ------
    CheckpointError
        If the file is cut, lying, no safetensors file at all, or a checkpoint, whose weights are not in it.
    OSError
        If the system cannot open or read the path.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc": np.ones((2, 3), dtype=np.float16)}, f"{folder}/plain.safetensors")
    ...     with DenseFile(f"{folder}/plain.safetensors") as file:
    ...         file.shapes, file.dtypes, file["fc"].sum()
    ({'fc': (2, 3)}, {'fc': 'F16'}, np.float16(6.0))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(_open(path))
            with _telling(path):
                tree, self._start, size = _read_header(self._file)
                if _is_checkpoint(tree):
                    raise CheckpointError(
                        "it is a checkpoint of smh, whose weights are generated, where a plain safetensors file is "
                        "wanted: smh materialize makes one of it"
                    )
                self._starts = self._check_entries(tree, size)
            stack.pop_all()

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype of the file, bfloat16 as float32.

        Raises
        ------
        UnknownNameError
            If there is no such tensor.
        CheckpointError
            If its dtype is one that NumPy does not have, or the file has been cut since it was opened.
        """
        if self.dtypes.get(name) != "BF16":
            return self.stored(name)
        with _telling(self.path):
            wide = self._read(name, np.dtype("<u2")).astype("<u4")
        wide <<= 16
        return wide.view("<f4")

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; names, shapes and dtypes stay known."""
        self._file.close()

    def stored(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype of the file, also bfloat16, which needs the package ``ml_dtypes``.

        Raises
        ------
        UnknownNameError
            If there is no such tensor.
        CheckpointError
            If its dtype is one that NumPy does not have, or the file has been cut since it was opened.
        """
        dtype = self.stored_dtype(name)
        with _telling(self.path):
            return self._read(name, dtype)

    def stored_dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype that :meth:`stored` gives a tensor, or raise as it does."""
        if name not in self.shapes:
            raise UnknownNameError(f"{self.path!r} has no tensor {name!r}: {near_names(str(name), self.shapes)}")
        code = self.dtypes[name]
        with _telling(self.path):
            advice = "convert it to float32, float16 or bfloat16"
            readable = not code.startswith(_UNREADABLE)
            _check(readable, f"the dtype of tensor {_short(name)} must be one that smh reads: {advice}", code)
            return _dtype(code)

    def _read(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        shape = self.shapes[name]
        try:
            x = np.empty(shape, dtype)
        except MemoryError as error:
            raise CheckpointError(f"memory must hold tensor {_short(name)}, got {shape} {dtype}") from error
        data = x.reshape(-1).view(np.uint8)
        self._file.seek(self._start + self._starts[name])
        count = self._file.readinto(data.data)
        _check(count == data.size, f"tensor {_short(name)} must have {data.size} bytes", count)
        largest = int(data.max(initial=0)) if dtype.name == "bool" else 0
        _check(largest <= 1, f"tensor {_short(name)} must be of bytes 0 and 1", largest)
        return x

    def _check_entries(self, tree: dict[str, Any], size: int) -> dict[str, int]:
        """Fill in what the header says of each tensor, and return where its data start, once that fits the file."""
        keys = {"data_offsets", "dtype", "shape"}
        for name, entry in tree.items():
            what = f"tensor {_short(name)} must"
            _check(not _SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
            _check(isinstance(entry, dict) and entry.keys() == keys, f"{what} have {sorted(keys)}", entry)
            _check(_are_sizes(entry["data_offsets"]), f"{what} have data_offsets that are sizes", entry["data_offsets"])
            _check(len(entry["data_offsets"]) == 2, f"{what} have two data_offsets", entry["data_offsets"])
        position, starts = 0, {}
        for name, entry in sorted(tree.items(), key=lambda item: item[1]["data_offsets"]):
            what = f"tensor {_short(name)} must"
            dtype, shape = entry["dtype"], entry["shape"]
            _check(isinstance(dtype, str) and dtype in _BITS, f"{what} have a dtype of {list(_BITS)}", dtype)
            _check(_are_sizes(shape) and len(shape) <= _MAX_AXES, f"{what} have a shape, of at most 64 axes", shape)
            most = _BITS[dtype] * math.prod(axis or 1 for axis in shape)  # NumPy counts an axis of 0 like this, too
            _check(most < 2**63, f"{what} have less than 2**60 bytes", shape)
            bits = _BITS[dtype] * math.prod(shape)
            _check(bits % 8 == 0, f"{what} fill whole bytes", (dtype, shape))
            place = [position, position + bits // 8]
            _check(entry["data_offsets"] == place, f"{what} have the data_offsets {place}", entry["data_offsets"])
            self.shapes[name], self.dtypes[name], self.sizes[name] = tuple(shape), dtype, bits // 8
            starts[name] = position
            position = place[1]
        _check(position == size, f"its data section must have the {position} bytes of its tensors", size)
        return starts


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Say whether a safetensors file is a checkpoint of smh, from its header alone.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    bool
        Whether its metadata have the key ``smh``; :func:`smh.load` says whether it is a good one.

    Raises
    ------
    CheckpointError
        If it is no safetensors file.
    OSError
        If the system cannot open or read the path.
    """
    with _open(path) as file, _telling(path):
        return _is_checkpoint(_read_header(file)[0])


def _open(path: str | os.PathLike[str]) -> io.BufferedReader:
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))


@contextlib.contextmanager
def _telling(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of which file an error tells."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"cannot read {os.fspath(path)!r}: {error}") from error.__cause__


def _is_checkpoint(tree: dict[str, Any]) -> bool:
    """Take the metadata out of a header, and say whether they are those of a checkpoint."""
    metadata = tree.pop("__metadata__", {})
    _check(isinstance(metadata, dict), "its metadata must be an object", metadata)
    return "smh" in metadata


def _read_header(file: io.BufferedReader) -> tuple[dict[str, Any], int, int]:
    """Return the header as an object, where the data start, and how many bytes of data there are."""
    status = os.fstat(file.fileno())
    _check(stat.S_ISREG(status.st_mode), "it must be a regular file", stat.filemode(status.st_mode))
    size = status.st_size
    _check(size >= 8, "a safetensors file has at least the 8 bytes of its header's length", size)
    length = int.from_bytes(file.read(8), "little")
    _check(length <= MAX_HEADER, f"the header of a safetensors file has at most {MAX_HEADER} bytes here", length)
    _check(8 + length <= size, f"its header must be there up to byte {8 + length}: it is cut", size)
    header = file.read(length)
    _check(header[:1] == b"{", "it is no safetensors file: its header must be a JSON object", header)
    values = sum(header.count(character) for character in (b",", b"[", b"{"))  # at least as many as parsing makes
    _check(values <= MAX_VALUES, f"a header must have at most {MAX_VALUES} JSON values", values)
    tree = _parse(header, "its header")
    return tree, 8 + length, size - 8 - length
