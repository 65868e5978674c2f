"""Plain tensors by name, and safetensors files, which are read one tensor at a time.

The safetensors library is not used: it gives NumPy no bfloat16 unless another package has registered the type, and a
mapped file that is cut while it is read ends the process. Here the header is checked like that of a checkpoint, and
each tensor is read from the checked file into a new array. Files of other kinds are read by :mod:`smh.files.formats`.
"""

from __future__ import annotations

import abc
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


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each made when it is asked for; their ``shapes`` are known before."""

    shapes: dict[str, tuple[int, ...]]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class DenseTensors(Tensors):
    """The tensors of a file or folder that was not written by smh; each is read when it is asked for.

    ``dtypes`` are in the words of safetensors, such as ``"F32"``, and ``sizes`` in bytes. ``metadata`` are texts by
    name, as others wrote them; ``aliases`` are the names of tied tensors that are not read again, with the names that
    are. ``files`` are the paths of all files that are read, and ``notes`` are remarks for the reader. The
    files stay open until the end of a ``with`` block.
    """

    kind = "safetensors file"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.shapes = {}
        self.dtypes: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.metadata: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self.files = [self.path]
        self.notes: list[str] = []
        with contextlib.ExitStack() as stack, telling(path):
            self._open(stack)
            self._opened = stack.pop_all()

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype of the file, bfloat16 as float32; raise as :meth:`stored` does."""
        if self.dtypes.get(name) != "BF16":
            return self.stored(name)
        with telling(self.path):
            wide = self._read(name, "U16").astype("<u4")
        wide <<= 16
        return wide.view("<f4")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def stored(self, name: str) -> np.ndarray:
        """Return a tensor in the dtype of the file, also bfloat16, which needs the package ``ml_dtypes``.

        Raises UnknownNameError, or CheckpointError if NumPy lacks its dtype or the file has been cut.
        """
        self.stored_dtype(name)
        with telling(self.path):
            return self._read(name, self.dtypes[name])

    def stored_dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype that :meth:`stored` gives a tensor, or raise as it does."""
        if name not in self.shapes:
            raise UnknownNameError(f"{self.path!r} has no tensor {name!r}: {near_names(str(name), self.shapes)}")
        with telling(self.path):
            return dtype_of(name, self.dtypes[name])

    @abc.abstractmethod
    def _open(self, stack: contextlib.ExitStack) -> None:
        """Open the files, which ``stack`` closes, and list their tensors by :meth:`_add`."""

    @abc.abstractmethod
    def _read(self, name: str, code: str) -> np.ndarray:
        """Read a tensor; ``code`` is its dtype, or another one of as many bytes."""

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, size: int) -> None:
        self.shapes[name], self.dtypes[name], self.sizes[name] = shape, dtype, size


class DenseFile(DenseTensors):
    """A plain safetensors file, whose header is checked when it is opened: tensors in the order of their data.

    Raises :class:`~smh.CheckpointError` if the file is cut, damaged, or not a safetensors file, or if it is a
    checkpoint of smh, which does not hold its weights.
    """

    def _open(self, stack: contextlib.ExitStack) -> None:
        self._file = stack.enter_context(open_file(self.path))
        self._starts: dict[str, int] = {}
        tree, size, self.metadata = _read_tree(self._file)
        if "smh" in self.metadata:
            raise CheckpointError(
                "it is a checkpoint of smh, whose weights are generated, not a plain safetensors file: smh materialize "
                "makes one of it"
            )
        for name, entry in tree.items():
            check_tensor(f"tensor {short(name)} must", name, entry)
        first, position = self._file.tell(), 0
        for name, entry in sorted(tree.items(), key=lambda item: item[1]["data_offsets"]):
            stop = check_place(f"tensor {short(name)} must", entry, position)
            self._add(name, tuple(entry["shape"]), entry["dtype"], stop - position)
            self._starts[name], position = first + position, stop
        check(position == size, f"its data section must have the {position} bytes of its tensors", size)

    def _read(self, name: str, code: str) -> np.ndarray:
        self._file.seek(self._starts[name])
        x = read_tensor(self._file, name, self.shapes[name], code)
        check_bools(name, x)
        return x


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Say whether a safetensors file is a checkpoint of smh, from its header alone: its metadata have the key ``smh``.

    Raises :class:`~smh.CheckpointError` if it is not a safetensors file.
    """
    with telling(path), open_file(path) as file:
        return "smh" in _read_tree(file)[2]


@contextlib.contextmanager
def telling(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in an error, unless it names one of the files of a model."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith("cannot read "):
            raise
        raise CheckpointError(f"cannot read {os.fspath(path)!r}: {error}") from error.__cause__


def _read_tree(file: io.BufferedReader) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Return the entries of a header, how many bytes of data follow, and its metadata."""
    header, size = read_header(file)
    check(header[:1] == b"{", "it is not a safetensors file: its header must be a JSON object", header)
    tree = parse(header, "its header")
    metadata = tree.pop("__metadata__", {})
    check(isinstance(metadata, dict), "its metadata must be an object", metadata)
    return tree, size, metadata
