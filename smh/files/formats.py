"""Models of plain tensors in files of any kind: safetensors, in one file or several, NumPy's and PyTorch's.

:func:`open_dense` tells the kind by the content of a file, not by its name, and trusts nothing in it: arrays of NumPy
are read without pickle, and those of PyTorch by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from smh.errors import CheckpointError
from smh.files.dense import DenseFile, DenseTensors
from smh.files.header import DTYPES, OtherFileError, check_bools, dtype_of, open_file
from smh.strict_json import MAX_HEADER, check, check_limits, parse, short
from smh.text import SURROGATE, shortened, some

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_STATES = ("state_dict", "model_state_dict", "model")  # entries of a training state that hold the model
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
                self._add(name, shape, _CODES.get(dtype.name, dtype.name), size)

    def _read(self, name: str, code: str) -> np.ndarray:
        with _damage(), self._zip.open(f"{name}.npy") as file:
            x = npy.read_array(file, allow_pickle=False)
        x = x.astype(x.dtype.newbyteorder("<"), order="C", copy=False)
        check_bools(name, x)
        return x


class TorchFile(DenseTensors):
    """A file of ``torch.save`` with the tensors of a model: mapped into memory, or read whole where PyTorch cannot map.

    A training state with an entry such as ``"state_dict"`` is read as that. Of tied tensors the first is read.
    """

    kind = "file of PyTorch"

    def _open(self, stack: contextlib.ExitStack) -> None:
        try:
            import torch
        except ImportError as error:
            what = 'only PyTorch reads a file of torch.save: pip install "structured-multi-hashing[torch]"'
            raise CheckpointError(f"{what}, or save its tensors with safetensors") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of types that PyTorch will drop
                content = torch.load(
                    self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path)
                )
        except Exception as error:  # unpickling hostile data fails in many ways
            says = "" if isinstance(error, pickle.UnpicklingError) else f". PyTorch says: {shortened(str(error), 200)}"
            what = "PyTorch cannot read it as tensors alone: save a model by torch.save(model.state_dict(), path)"
            raise CheckpointError(what + says) from error
        self._tensors: dict[str, Any] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, x in self._state(content, torch.Tensor).items():
            what = f"tensor {short(name)} must"
            check(not SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
            plain = x.layout is torch.strided and not x.is_quantized and x.device.type == "cpu"
            check(plain, f"{what} have plain values: convert it before it is saved", f"{x.layout}, {x.device}")
            place = (x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride())
            if x.numel() and place in first:
                self.aliases[name] = first[place]
                self.notes.append(f"tied, and read once: {name!r} is {first[place]!r}")
                continue
            first[place] = name
            self._tensors[name] = x
            dtype = str(x.dtype).removeprefix("torch.")
            self._add(name, tuple(x.shape), _CODES.get(dtype, dtype), x.numel() * x.element_size())

    def _state(self, content: Any, tensor: type) -> Mapping[str, Any]:
        """Return the tensors of a model, in a state that may hold more."""

        def is_state(value: Any) -> bool:
            return isinstance(value, Mapping) and all(
                isinstance(key, str) and isinstance(x, tensor) for key, x in value.items()
            )

        check(isinstance(content, Mapping), "it must hold tensors by name, as model.state_dict() does", type(content))
        if is_state(content):
            return content  # type: ignore[no-any-return]
        states = [key for key, value in content.items() if value and is_state(value)]
        state = next((key for key in _STATES if key in states), states[0] if len(states) == 1 else None)
        if state is None:
            raise CheckpointError(
                "it must hold the tensors of one model by name, as model.state_dict() does; got entries "
                f"{some(list(map(str, content)))}: save the tensors of the model alone"
            )
        self.notes.append(f"read from its entry {state!r}")
        return content[state]  # type: ignore[no-any-return]

    def _read(self, name: str, code: str) -> np.ndarray:
        import torch

        x = self._tensors[name].detach().resolve_conj().resolve_neg().contiguous().clone()
        real = torch.view_as_real(x) if x.is_complex() else x
        data: np.ndarray = real.reshape(-1).view(torch.uint8).numpy()
        return data.view(dtype_of(name, code)).reshape(self.shapes[name])


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
    """Return the class that reads a file, by what it begins with; :class:`DenseFile` names what nobody reads."""
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
                return TorchFile
            if "config.json" in names:
                raise OtherFileError(f"cannot read {os.fspath(path)!r}: it is {_KERAS.format(os.fspath(path))}")
            if all(name.endswith(".npy") for name in names):
                return ArrayArchive
    if re.match(rb"\x80[\x02-\x05]", start):
        return TorchFile
    if start.startswith(b"\x89HDF\r\n"):
        raise OtherFileError(f"cannot read {os.fspath(path)!r}: it is an HDF5 file, {_KERAS.format(os.fspath(path))}")
    return ShardedModel if os.fsdecode(path).lower().endswith(".json") else DenseFile


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise one error for what is wrong in an archive."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"it is a damaged archive of NumPy: {error}") from error
    except MemoryError as error:
        raise CheckpointError("an array of it does not fit into memory") from error


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype of an array, whose data begin where the file then is."""
    version = npy.read_magic(file)
    check(version in ((1, 0), (2, 0)), "its arrays must have version 1.0 or 2.0 of their format", version)
    header: tuple[tuple[int, ...], bool, np.dtype[Any]]
    header = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    check(all(size >= 0 for size in header[0]), "its arrays must have sizes of 0 or more", header[0])
    return header
