"""Plain safetensors files of any origin, read one tensor at a time.

Not through the safetensors library: to NumPy it gives no bfloat16 unless another package has taught NumPy the name, and
a mapped file that is cut while it is read ends the process. Here the header is checked like that of a checkpoint, and
each tensor is read into an array of its own, from the file that was checked.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from smh.errors import CheckpointError, UnknownNameError, near_names
from smh.files.header import check_bools, check_place, check_tensor, dtype_of, open_file, read_header, read_tensor
from smh.strict_json import check, parse, short

FLOATS = ("F16", "BF16", "F32", "F64")
"""The dtypes whose tensors can be generated."""

_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"BOOL": 8, "U8": 8, "U16": 16, "U32": 32, "U64": 64, "I8": 8, "I16": 16, "I32": 32, "I64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}
_UNREADABLE = ("F4", "F6_", "F8_", "C64")  # how dtypes begin that NumPy, or a checkpoint, does not have


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
            self._file = stack.enter_context(open_file(path))
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
            check(readable, f"the dtype of tensor {short(name)} must be one that smh reads: {advice}", code)
            return dtype_of(code)

    def _read(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        self._file.seek(self._start + self._starts[name])
        x = read_tensor(self._file, name, self.shapes[name], dtype)
        check_bools(name, x)
        return x

    def _check_entries(self, tree: dict[str, Any], size: int) -> dict[str, int]:
        """Fill in what the header says of each tensor, and return where its data start, once that fits the file."""
        for name, entry in tree.items():
            check_tensor(f"tensor {short(name)} must", name, entry)
        position, starts = 0, {}
        for name, entry in sorted(tree.items(), key=lambda item: item[1]["data_offsets"]):
            what = f"tensor {short(name)} must"
            dtype = entry["dtype"]
            check(isinstance(dtype, str) and dtype in _BITS, f"{what} have a dtype of {list(_BITS)}", dtype)
            starts[name] = position
            position = check_place(what, entry, _BITS[dtype], position)
            self.shapes[name], self.dtypes[name] = tuple(entry["shape"]), dtype
            self.sizes[name] = position - starts[name]
        check(position == size, f"its data section must have the {position} bytes of its tensors", size)
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
    with open_file(path) as file, _telling(path):
        return _is_checkpoint(_read_header(file)[0])


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
    check(isinstance(metadata, dict), "its metadata must be an object", metadata)
    return "smh" in metadata


def _read_header(file: io.BufferedReader) -> tuple[dict[str, Any], int, int]:
    """Return the header as an object, where the data start, and how many bytes of data there are."""
    header, size = read_header(file)
    check(header[:1] == b"{", "it is no safetensors file: its header must be a JSON object", header)
    return parse(header, "its header"), 8 + len(header), size
