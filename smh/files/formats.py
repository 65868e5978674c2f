"""Models of plain tensors in files of any kind: safetensors, in one file or several, NumPy's and PyTorch's.

:func:`open_dense` tells the kind by the content of a file, not by its name, and trusts nothing in it: arrays of NumPy
are read without pickle, and those of PyTorch by :mod:`smh.backends.torch.files`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from smh.errors import CheckpointError, install_line
from smh.files.dense import DenseFile, DenseTensors
from smh.files.header import CODES, OtherFileError, check_bools, open_file
from smh.strict_json import MAX_HEADER, check, check_limits, parse, short
from smh.text import some

_DEFLATED = 1032  # the most bytes that deflate makes of one
_KERAS = (
    "a model of Keras: load it in Python, keras.saving.load_model({0!r}), and give the model to smh.fit, or save its "
    "weights by name with safetensors"
)


def open_dense(path: str | os.PathLike[str]) -> DenseTensors:
    """Open a model of plain tensors: a file, the index of several files, or a folder with either.

    Raises :class:`~smh.CheckpointError`, which says what the file is where it cannot be read.
    """
    return ModelFolder(path) if os.path.isdir(path) else _reader(path)(path)


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is read as a safetensors file, which may be a checkpoint: not a model of another kind."""
    return not os.path.isdir(path) and _reader(path) is DenseFile


class ArrayArchive(DenseTensors):
    """An archive of ``numpy.savez``: one array is read at a time."""

    kind = "archive of NumPy"

    def _open(self, stack: contextlib.ExitStack) -> None:
        with _damage():
            self._zip = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_file(self.path))))
            for entry in self._zip.infolist():
                name = entry.filename.removesuffix(".npy")
                what = f"array {short(name)} must"
                check(name not in self.shapes, f"{what} come once", entry.filename)
                check(entry.compress_type in (0, 8), f"{what} be stored or deflated", entry.compress_type)
                check(entry.file_size <= _DEFLATED * (entry.compress_size + 1), f"{what} fit its data", entry.file_size)
                with self._zip.open(entry) as file:
                    shape, _, dtype = _read_npy_header(file)
                    size = math.prod(shape) * dtype.itemsize
                    data = entry.file_size - file.tell()
                    check(dtype.hasobject or size == data, f"{what} have {size} bytes", data)
                self._add(name, shape, CODES.get(dtype.name, dtype.name), size)

    def _read(self, name: str, code: str) -> np.ndarray:
        with _damage(), self._zip.open(f"{name}.npy") as file:
            x = npy.read_array(file, allow_pickle=False)
        x = x.astype(x.dtype.newbyteorder("<"), order="C", copy=False)
        check_bools(name, x)
        return x


class ShardedModel(DenseTensors):
    """A model in several files, by its index: a JSON file with a ``weight_map``, as the Hugging Face hub has."""

    kind = "model in several files"

    def _open(self, stack: contextlib.ExitStack) -> None:
        with open_file(self.path) as file:
            text = file.read(MAX_HEADER + 1)
        check_limits(text, "an index")
        index = parse(text, "an index")
        places = index.get("weight_map") if isinstance(index, dict) else None
        check(isinstance(places, dict), "the index of a model must have a weight_map, from tensors to files", index)
        shards: dict[str, list[str]] = {}
        for name, shard in (places or {}).items():
            plain = isinstance(shard, str) and shard == os.path.basename(shard) and shard not in ("", ".", "..")
            check(plain, f"the file of {short(name)} must be one beside the index, without a folder", shard)
            shards.setdefault(shard, []).append(name)
        self._shards: dict[str, DenseTensors] = {}
        for shard in sorted(shards):
            path = os.path.join(os.path.dirname(self.path), shard)
            reader = _reader(path)
            check(reader is not ShardedModel, f"the index must name files of tensors for {some(shards[shard])}", shard)
            part = stack.enter_context(reader(path))
            missing = [name for name in shards[shard] if name not in part and name not in part.aliases]
            check(not missing, f"{shard!r} must hold {some(missing)}, as the index says", list(part)[:3])
            surplus = sorted(set(part) - set(shards[shard]))
            check(not surplus, f"the index must name all tensors of {shard!r}", surplus[:3])
            self.aliases |= part.aliases
            self.files.append(path)
            self.notes += part.notes
            self.metadata = (
                part.metadata if len(self.files) == 2 else dict(self.metadata.items() & part.metadata.items())
            )
            for name in part:
                self._shards[name] = part
                self._add(name, part.shapes[name], part.dtypes[name], part.sizes[name])

    def _read(self, name: str, code: str) -> np.ndarray:
        return self._shards[name]._read(name, code)


class ModelFolder(DenseTensors):
    """A folder with a model, as the Hugging Face hub has: an index, or one file of tensors."""

    kind = "folder of a model"

    def _open(self, stack: contextlib.ExitStack) -> None:
        names = sorted(os.listdir(self.path))
        for ends, usual in ((("safetensors",), "model"), (("bin", "pt", "pth"), "pytorch_model"), (("npz",), "model")):
            indices = [name for name in names if name.endswith(tuple(f".{end}.index.json" for end in ends))]
            files = [name for name in names if name.endswith(tuple(f".{end}" for end in ends))]
            candidates = indices or files
            main = [name for name in candidates if name.partition(".")[0] == usual]
            if len(candidates) > 1 and len(main) != 1:
                raise OtherFileError(f"it is a folder with several models: name one, such as {candidates[0]!r}")
            if candidates:
                break
        else:
            raise OtherFileError("it is a folder without a model: no file of .safetensors, .npz, .pt, .pth or .bin")
        path = os.path.join(self.path, (main or candidates)[0])
        self._model = stack.enter_context(_reader(path)(path))
        self.shapes, self.dtypes, self.sizes = self._model.shapes, self._model.dtypes, self._model.sizes
        self.metadata, self.files, self.aliases = self._model.metadata, self._model.files, self._model.aliases
        self.notes = [f"read from {(main or candidates)[0]!r}", *self._model.notes]

    def _read(self, name: str, code: str) -> np.ndarray:
        return self._model._read(name, code)


def _reader(path: str | os.PathLike[str]) -> type[DenseTensors]:
    """Return the class that reads a file, by its first bytes. :class:`DenseFile` reports unknown formats."""
    with open_file(path) as file:
        start = file.read(64)
        if start[8:9] == b"{":
            return DenseFile
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            try:
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
            except zipfile.BadZipFile as error:
                what = "it is a damaged or cut archive: fetch another copy"
                raise CheckpointError(f"cannot read {os.fspath(path)!r}: {what}") from error
            if any(name.rpartition("/")[2] == "data.pkl" for name in names):
                return _torch_reader(path)
            if "config.json" in names:
                raise OtherFileError(f"cannot read {os.fspath(path)!r}: it is {_KERAS.format(os.fspath(path))}")
            if all(name.endswith(".npy") for name in names):
                return ArrayArchive
    if re.match(rb"\x80[\x02-\x05]", start):
        return _torch_reader(path)
    if start.startswith(b"\x89HDF\r\n"):
        raise OtherFileError(f"cannot read {os.fspath(path)!r}: it is an HDF5 file, {_KERAS.format(os.fspath(path))}")
    return ShardedModel if os.fsdecode(path).lower().endswith(".json") else DenseFile


def _torch_reader(path: str | os.PathLike[str]) -> type[DenseTensors]:
    """Return the class that reads files of ``torch.save``, which the backend of PyTorch has."""
    try:
        reader: type[DenseTensors] = importlib.import_module("smh.backends.torch.files").TorchFile
    except ImportError as error:
        what = f"only PyTorch reads a file of torch.save: {install_line('torch')}"
        raise CheckpointError(
            f"cannot read {os.fspath(path)!r}: {what}, or save its tensors with safetensors"
        ) from error
    return reader


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise one kind of error for all damage in an archive."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"it is a damaged archive of NumPy: {error}") from error
    except MemoryError as error:
        raise CheckpointError("one of its arrays does not fit into memory") from error


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype of an array, whose data begin where the file then is."""
    version = npy.read_magic(file)
    check(version in ((1, 0), (2, 0)), "its arrays must have version 1.0 or 2.0 of their format", version)
    header: tuple[tuple[int, ...], bool, np.dtype[Any]]
    header = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    check(all(size >= 0 for size in header[0]), "its arrays must have sizes of 0 or more", header[0])
    return header
