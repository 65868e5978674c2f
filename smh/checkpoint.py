"""Checkpoint files: a plan, its variables and dense tensors in one safetensors file (docs/specification.md).

The tensors are named ``pool/...``, ``scale/...`` and ``dense/...``. All else is canonical JSON (sorted keys,
no spaces, ASCII) under the single metadata key ``smh``, an object of five keys:

* ``checksum``: SHA-256 of the data section,
* ``digest``: digest of the generated weights,
* ``header_checksum``: SHA-256 of the header without these 64 digits,
* ``plan``: the plan's JSON object,
* ``version``: ``"1.0"``.

Two checksums, because one of the data cannot see a changed seed, digest or name of a dense tensor. They lie at
the same place in every file, for the keys of fixed length sort first: the header is verified, then parsed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from smh.atomic import replacing
from smh.errors import CheckpointError, VariableError
from smh.plan import Plan

VERSION = "1.0"
"""Of the file format; files of the same major version can be read."""
MAX_HEADER, MAX_VALUES = 8 << 20, 1 << 19
"""Most bytes and JSON values of a header (some 20,000 tensors): parsing one allocates less than 128 MiB."""

CARRIED = "carried/"
"""How names of dense tensors begin that belong to no model: they only travel along (see :mod:`smh.porting`)."""

Arrays = dict[str, np.ndarray]
Given = Mapping[str, np.ndarray]
Entries = dict[str, tuple[str, list[int]]]  # dtype and shape in the words of the header
_DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}
_KEYS = ["checksum", "digest", "header_checksum", "plan", "version"]
_START = re.compile(
    rb'\{"__metadata__":\{"smh":"\{\\"checksum\\":\\"([0-9a-f]{64})\\",\\"digest\\":\\"([0-9a-f]{64})\\",'
    rb'\\"header_checksum\\":\\"([0-9a-f]{64})\\",'
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # not text: UTF-8 cannot carry it
_short = reprlib.Repr().repr  # shows what was received, but only the ends of what is large or deep


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    plan : Plan
        How the weights are generated.
    variables : dict of str to numpy.ndarray
        Pool variables and scales, float32, in the plan's order.
    dense : dict of str to numpy.ndarray
        The tensors that are kept as they are, sorted by name.
    digest : str
        Digest of the generated weights as the writer stated it. Reading does not generate them to compare.
    """

    plan: Plan
    variables: Arrays
    dense: Arrays
    digest: str


def write(path: str | os.PathLike[str], plan: Plan, variables: Given, dense: Given, digest: str) -> None:
    """Write a checkpoint file; at every moment there is the whole old file or the whole new one.

    Equal content gives equal bytes, whatever the order of the dictionaries or the memory and byte order of
    the arrays. Arrays are copied only if they are not contiguous and little-endian. A file that is replaced
    keeps its permissions, and a symbolic link keeps pointing to it.

    Parameters
    ----------
    path : str or os.PathLike
        Where to. Its folder must exist; the temporary file is made there.
    plan : Plan
        The plan of the variables.
    variables : mapping of str to numpy.ndarray
        Exactly the names and shapes of ``plan.variable_shapes``, all float32.
    dense : mapping of str to numpy.ndarray
        Tensors to keep as they are, of any shape: bool, integers, float16, bfloat16, float32 or float64.
    digest : str
        Digest of the generated weights: 64 hexadecimal digits.

    Raises
    ------
    VariableError
        If a name, dtype or shape does not fit. Nothing is written.
    CheckpointError
        If plan and names are too large for a header, or the path is that of a device or the like.
    OSError
        If the system cannot write there.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> plan = Plan.build({"w": (2, 3)}, ratio=2, learn_scale=False)
    >>> variables = {name: np.ones(shape, np.float32) for name, shape in plan.variable_shapes.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/model.safetensors", plan, variables, {"bias": np.zeros(3)}, "0" * 64)
    ...     read(f"{folder}/model.safetensors").dense
    {'bias': array([0., 0., 0.])}
    """
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise VariableError(f"a digest must be 64 hexadecimal digits, as smh.digest gives it, got {digest!r}")
    tensors = _checked(plan, variables, dense)
    zeros = "0" * 64
    metadata = f'{{"checksum":"{zeros}","digest":"{digest}","header_checksum":"{zeros}",'
    metadata += f'"plan":{plan.to_json()},"version":"{VERSION}"}}'
    with replacing(path) as temporary:
        try:
            # Sorts tensors by dtype, then name, so by content only. Several metadata keys come at random.
            save_file(tensors, temporary, {"smh": metadata})
        except SafetensorError as error:
            raise OSError(f"cannot write {os.fspath(path)!r}: make sure the disk has room, got {error}") from error
        with open(temporary, "r+b") as file:
            _seal(file)


def _checked(plan: Plan, variables: Given, dense: Given) -> Arrays:
    """Return contiguous little-endian arrays under their names in the file."""
    tensors = {}
    shapes = plan.variable_shapes
    if odd := set(shapes) ^ set(variables):
        what = f"variables must be those of plan.variable_shapes: add or leave out {_short(odd)}"
        raise VariableError(f"{what}, got {_short(list(variables))}")
    for name, shape in shapes.items():
        want = f"variable {name!r} must be a float32 NumPy array of shape {shape}"
        tensors[name] = array = _host(want, name, variables[name])
        if array.dtype.name != "float32" or array.shape != shape:
            raise VariableError(f"{want}: convert it or take another, got {array.dtype} {array.shape}")
    for name, value in dense.items():
        if not isinstance(name, str) or not name:
            raise VariableError(f"a dense tensor must have a name, a string that is not empty, got {name!r}")
        want = f"dense tensor {name!r} must be a NumPy array of bool, integers or floats"
        tensors[f"dense/{name}"] = _host(want, name, value)
    return tensors


def _host(want: str, name: str, value: Any) -> np.ndarray:
    if _SURROGATE.search(name):
        raise VariableError(f"{want} with a name in valid Unicode: rename it, got {name!r}")
    if not isinstance(value, np.ndarray | np.generic):
        raise VariableError(f"{want}: convert it with numpy.asarray, got {type(value).__name__}")
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES.values():
        raise VariableError(f"{want} ({', '.join(_DTYPES.values())}): convert it, got {array.dtype}")
    if array.dtype.name == "bool":  # a view as bool may have other bytes than 0 and 1
        array = np.asarray(array.view(np.uint8) != 0)
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _seal(file: io.BufferedRandom) -> None:
    """Put the checksums in the place of their zeros.

    They are taken from what the serialiser wrote, in one pass with a small buffer. To know them before it
    writes, one would have to copy its order of the tensors, or to serialise twice.
    """
    header = file.read(int.from_bytes(file.read(8), "little"))
    _check(len(header) <= MAX_HEADER, f"plan and names must fit a header of {MAX_HEADER} bytes", len(header))
    start = _find_checksums(header)
    sealed = bytearray(header)
    sealed[slice(*start.span(1))] = hashlib.file_digest(file, "sha256").hexdigest().encode()
    sealed[slice(*start.span(3))] = _header_checksum(bytes(sealed), start).encode()
    file.seek(8)
    file.write(sealed)


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file and trust nothing in it.

    The header and all that it says are checked before any array is allocated, the data while they are read. The
    arrays are writable, own their memory and together have the size of the data; the rest is within a constant.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    Checkpoint
        Plan, variables, dense tensors and digest.

    Raises
    ------
    CheckpointError
        If the file is cut, changed, lying, of an unknown version, or no checkpoint at all.
    OSError
        If the system cannot open or read the path, as ``FileNotFoundError`` or ``IsADirectoryError``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     try:
    ...         read(file.name)
    ...     except CheckpointError as error:
    ...         print(str(error).split(": ")[1])
    its header's length, the first 8 bytes, must be there, got 0
    """
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking)) as file:
        try:
            return _read(file)
        except CheckpointError as error:
            advice = "save it again or fetch another copy"
            raise CheckpointError(f"cannot load {os.fspath(path)!r}, {advice}: {error}") from error.__cause__


def _read(file: io.BufferedReader) -> Checkpoint:
    status = os.fstat(file.fileno())
    _check(stat.S_ISREG(status.st_mode), "it must be a regular file", stat.filemode(status.st_mode))
    header, start = _read_header(file, status.st_size)
    # The header's start says that tree and metadata are objects and "smh" is a string: no key comes twice.
    tree = _parse(header, "its header")
    metadata = tree.pop("__metadata__")
    _check(metadata.keys() == {"smh"}, "its metadata must have the single key 'smh'", sorted(metadata))
    values = _parse(metadata["smh"], "its metadata")
    version = values.get("version")
    _check(isinstance(version, str) and version[:2] == "1.", f"this smh reads {VERSION}: upgrade it", version)
    _check(sorted(values) == _KEYS, f"its metadata must have the keys {_KEYS}", sorted(values))
    try:
        plan = Plan.from_dict(values["plan"])
    except Exception as error:  # a PlanError, or whatever a stranger's plan may bring about
        raise CheckpointError(f"its plan must be valid: {error}") from error
    entries = _check_entries(tree, plan.variable_shapes, status.st_size - 8 - len(header))
    arrays = _read_data(file, entries, start[1].decode())
    variables = {name: arrays[name] for name in plan.variable_shapes}
    dense = {name[6:]: arrays[name] for name in sorted(arrays) if name.startswith("dense/")}
    return Checkpoint(plan, variables, dense, start[2].decode())


def _read_header(file: io.BufferedReader, size: int) -> tuple[bytes, re.Match[bytes]]:
    """Read the header and verify it; find the checksums in it."""
    _check(size >= 8, "its header's length, the first 8 bytes, must be there", size)
    length = int.from_bytes(file.read(8), "little")
    _check(length <= MAX_HEADER, f"its header must have at most {MAX_HEADER} bytes", length)
    _check(8 + length <= size, f"its header must be there up to byte {8 + length}", size)
    header = file.read(length)
    start = _find_checksums(header)
    actual, stated = _header_checksum(header, start), start[3].decode()
    what = f"its header, bytes 8 to {8 + length}, is damaged: its SHA-256 must be {stated}"
    _check(actual == stated, what, actual)
    return header, start


def _find_checksums(header: bytes) -> re.Match[bytes]:
    """Find the checksums in a header that is small enough to be parsed."""
    # At least as many as parsing makes, those of the plan included, which is JSON in a string.
    values = sum(header.count(character) for character in (b",", b"[", b"{"))
    _check(values <= MAX_VALUES, f"a header must have at most {MAX_VALUES} JSON values", values)
    start = _START.match(header)
    if start is None:
        raise CheckpointError(f"it is no smh checkpoint of version {VERSION}, got a header {_short(header)}")
    return start


def _check_entries(tree: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], size: int) -> Entries:
    """Return dtype and shape of each tensor, once they fit the plan and fill the data section exactly."""
    entries = {}
    position = 0
    for name, entry in tree.items():
        what = f"tensor {_short(name)} must"
        _check(name in shapes or name[:6] == "dense/" != name, f"{what} be of the plan or 'dense/...'", name)
        _check(not _SURROGATE.search(name), f"{what} have a name in valid Unicode", name)
        keys = {"data_offsets", "dtype", "shape"}
        _check(isinstance(entry, dict) and entry.keys() == keys, f"{what} have {sorted(keys)}", entry)
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        _check(isinstance(dtype, str) and dtype in _DTYPES, f"{what} have a dtype of {list(_DTYPES)}", dtype)
        _check(_are_sizes(shape) and len(shape) <= 64, f"{what} have a shape, of at most 64 axes", shape)
        want, got = ("F32", list(shapes.get(name, ()))), (dtype, shape)
        _check(name not in shapes or got == want, f"{what} be {want} by the plan", got)
        itemsize = _dtype(dtype).itemsize
        most = itemsize * math.prod(axis or 1 for axis in shape)  # NumPy counts an axis of 0 like this, too
        _check(most < 2**63, f"{what} have less than 2**63 bytes", shape)
        place = [position, position + itemsize * math.prod(shape)]
        _check(_are_sizes(offsets) and offsets == place, f"{what} have the data_offsets {place}", offsets)
        entries[name] = dtype, shape
        position = place[1]
    missing = [name for name in shapes if name not in entries]
    _check(not missing, f"it must have all variables of its plan, but lacks {len(missing)}", missing)
    _check(position == size, f"its data section must have the {position} bytes of its tensors", size)
    return entries


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _read_data(file: io.BufferedReader, entries: Entries, checksum: str) -> Arrays:
    """Read each tensor into an array of its own, and verify them all.

    Not through safetensors: its ``load`` takes the whole file as bytes and copies it; its ``load_file`` opens
    the path again, where another file may be by then. Here the bytes verified are the bytes returned.
    """
    arrays = {}
    hashed = hashlib.sha256()
    for name, (dtype, shape) in entries.items():
        try:
            arrays[name] = np.empty(shape, _dtype(dtype))
        except MemoryError as error:
            raise CheckpointError(f"memory must hold tensor {_short(name)}, got {shape} {dtype}") from error
        data = arrays[name].reshape(-1).view(np.uint8)
        count = file.readinto(data.data)
        _check(count == data.size, f"tensor {_short(name)} must have {data.size} bytes", count)
        hashed.update(data.data)
    actual = hashed.hexdigest()
    _check(actual == checksum, f"its data are damaged: their SHA-256 must be {checksum}", actual)
    for name, array in arrays.items():
        largest = int(array.view(np.uint8).max(initial=0)) if array.dtype.name == "bool" else 0
        _check(largest <= 1, f"tensor {_short(name)} must be of bytes 0 and 1", largest)
    return arrays


def _check(condition: bool, what: str, got: Any) -> None:
    if not condition:
        raise CheckpointError(f"{what}, got {_short(got)}")


def _parse(text: str | bytes, where: str) -> Any:
    """Parse JSON, without Python's additions to it and without what it would take silently."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{where} must be plain JSON in UTF-8: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"every key must come once, got {_short(name)} twice")
        result[name] = value
    return result


def _number(text: str) -> int | float:
    # The time to read an integer grows with the square of its length.
    if len(text) > 32 or not math.isfinite(float(text)):
        raise ValueError(f"a number must be finite and have at most 32 characters, got {_short(text)}")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _header_checksum(header: bytes, start: re.Match[bytes]) -> str:
    return hashlib.sha256(header[: start.start(3)] + header[start.end(3) :]).hexdigest()


def _dtype(code: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of a safetensors dtype."""
    if code == "BF16":
        try:
            import ml_dtypes  # noqa: F401  (it teaches NumPy the name)
        except ImportError as error:
            raise CheckpointError("BF16 needs another package: pip install ml_dtypes, got none") from error
    return np.dtype(_DTYPES[code]).newbyteorder("<")
