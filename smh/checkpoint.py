"""Checkpoint files: a plan, its variables and the dense tensors in one safetensors file (specification, section 7).

The tensors are named ``pool/...``, ``scale/...`` and ``dense/...``. Everything else is canonical JSON (sorted keys, no
spaces, ASCII) under the metadata key ``smh``, an object of five keys::

    checksum         SHA-256 of the data section
    digest           of the generated weights, see smh.digest
    header_checksum  SHA-256 of the header, taken with these 64 digits as zeros
    plan             the plan's JSON object
    version          "1.0"

Two checksums, because one over the data alone cannot see a changed seed, digest or name of a dense tensor: these are in
the header, and nothing else in the file contradicts them. Sorted, the fixed-length keys come first, so that the
checksums lie at the same place in every file; the header is verified before it is parsed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from smh.errors import CheckpointError, PlanError, VariableError, near_names
from smh.plan import Plan

VERSION = "1.0"
"""Of the file format. A reader takes every file of the same major version."""
MAX_HEADER = 8 << 20
"""Most bytes of a header, enough for about 20,000 tensors; safetensors itself would take 100 MB."""
MAX_VALUES = 1 << 19
"""Most JSON values of a header, counted by the characters that begin them. Together the two limits bound what a header
can make a reader allocate beyond the size of the file: below 128 MiB."""

Arrays = dict[str, np.ndarray[Any, Any]]

_BFLOAT16 = "bfloat16"  # NumPy has no such type: it comes from ml_dtypes, which JAX and TensorFlow bring along
_DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": _BFLOAT16, "F32": "float32", "F64": "float64"},
}
_MAX_RANK = 64  # NumPy's own limit
_ZEROS = "0" * 64
_DIGEST = re.compile("[0-9a-f]{64}")
_START = re.compile(
    rb'\{"__metadata__":\{"smh":"\{'
    rb'\\"checksum\\":\\"([0-9a-f]{64})\\",'
    rb'\\"digest\\":\\"([0-9a-f]{64})\\",'
    rb'\\"header_checksum\\":\\"([0-9a-f]{64})\\",'
)


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
        Tensors that are kept as they are, sorted by name.
    digest : str
        The digest of the generated weights that the writer stated; loading does not generate them to compare.
    """

    plan: Plan
    variables: Arrays
    dense: Arrays
    digest: str


class _Fault(Exception):
    """What is wrong with a file and where, before the path is put in front of it."""


class _Entry(NamedTuple):
    """A tensor of the header."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


# ---------------------------------------------------------------------------------------------------------- writing


def write(
    path: str | os.PathLike[str],
    plan: Plan,
    variables: Mapping[str, Any],
    dense: Mapping[str, Any],
    digest: str,
) -> None:
    """Write a checkpoint file, atomically: at every moment ``path`` is the whole old file or the whole new one.

    Equal content gives equal bytes, whatever the order of the dictionaries, the memory order of the arrays or their
    byte order. The data are streamed; arrays are copied only if they are not contiguous and little-endian. A file that
    is replaced keeps its permissions, a symbolic link keeps pointing to the file.

    Parameters
    ----------
    path : str or os.PathLike
        Where to. The folder must exist; the temporary file is made there.
    plan : Plan
        The plan of the variables.
    variables : mapping of str to numpy.ndarray
        Exactly the names and shapes of ``plan.variable_shapes``, all float32.
    dense : mapping of str to numpy.ndarray
        Tensors to keep as they are: bool, integers, float16, bfloat16, float32 or float64 of any shape.
    digest : str
        Digest of the generated weights, 64 hexadecimal digits.

    Raises
    ------
    VariableError
        If a name, dtype or shape does not fit. Nothing is written.
    CheckpointError
        If names and plan are too large for a header, or ``path`` is something other than a file.
    OSError
        If the system cannot write there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> plan = Plan.build({"w": (2, 3)}, ratio=1.0, learn_scale=False)
    >>> variables = {name: np.ones(shape, np.float32) for name, shape in plan.variable_shapes.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     write(path, plan, variables, {"bias": np.zeros(3)}, "0" * 64)
    ...     read(path).dense
    {'bias': array([0., 0., 0.])}
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise VariableError(f"a digest is 64 lower-case hexadecimal digits: give what smh.digest returns, got {digest!r}")
    tensors = dict(_variables(plan, variables)) | dict(_dense(dense))
    metadata = {
        "checksum": _ZEROS,
        "digest": digest,
        "header_checksum": _ZEROS,
        "plan": json.loads(plan.to_json()),
        "version": VERSION,
    }
    target = os.path.realpath(path)
    mode = _mode(target)
    folder = os.path.dirname(target)
    # Not tempfile.mkstemp: a file created here gets the permissions that a new file should have, umask and all.
    temporary = os.path.join(folder, f".smh-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) if mode is None else mode
        os.chmod(temporary, 0o600)  # until it is finished; the file to be replaced may be private
        _save(tensors, temporary, _canonical(metadata))
        with open(temporary, "r+b") as file:
            _seal(file)
            os.chmod(temporary, mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)


def _variables(plan: Plan, variables: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the variables as the plan wants them."""
    shapes = plan.variable_shapes
    for name in variables:
        if name not in shapes:
            raise VariableError(f"the plan has no variable of this name: {near_names(str(name), shapes)} Got {name!r}")
    for name, shape in shapes.items():
        want = f"variable {name!r} must be a float32 array of shape {shape}"
        if name not in variables:
            raise VariableError(f"{want}: smh.initialize(plan) makes them all, got {sorted(variables)}")
        array = _host(f"variable {name!r}", name, variables[name])
        if array.dtype.name != "float32":
            raise VariableError(f"{want}: convert it with array.astype(numpy.float32), got {array.dtype}")
        if array.shape != shape:
            raise VariableError(f"{want}: give the array that belongs to this plan, got shape {array.shape}")
        yield name, array


def _dense(dense: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the dense tensors under their names in the file."""
    for name, value in dense.items():
        if not isinstance(name, str) or not name:
            raise VariableError(f"a dense tensor needs a name: give a string that is not empty, got {name!r}")
        yield f"dense/{name}", _host(f"dense tensor {name!r}", name, value)


def _host(what: str, name: str, value: Any) -> np.ndarray[Any, Any]:
    """Return a contiguous little-endian array, the same object if it is one already."""
    if not _encodable(name):
        raise VariableError(f"{what} has a name that is not Unicode text: rename it, got {name!r}")
    if not isinstance(value, np.ndarray | np.generic):
        raise VariableError(f"{what} must be a NumPy array: convert it with numpy.asarray, got {type(value).__name__}")
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES.values():
        kinds = ", ".join(_DTYPES.values())
        raise VariableError(f"{what} must have a dtype that a file can hold ({kinds}), got {array.dtype}")
    if array.dtype == np.bool_:
        array = np.asarray(array.view(np.uint8) != 0)  # one byte for True, however the array came about
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _mode(target: str) -> int | None:
    """Return the permissions of the file that will be replaced; None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(mode):  # os.replace would put a file in the place of a device
        raise CheckpointError(f"only a regular file can be replaced: choose another path, got {target!r}")
    return stat.S_IMODE(mode)


def _save(tensors: Arrays, path: str, metadata: str) -> None:
    # Its order is a function of the content: by dtype, then by name. Several metadata keys would come in any order.
    try:
        save_file(tensors, path, {"smh": metadata})
    except SafetensorError as error:
        raise OSError(f"cannot write {path!r}, is the disk full? Got {error}") from error


def _seal(file: BinaryIO) -> None:
    """Put the checksums where there are zeros.

    They are part of the header and depend on what the serialiser wrote, so they are taken from the file itself: one
    pass in small pieces, where serialising twice in memory would need twice the data, and knowing the serialiser's
    order beforehand would mean to copy it.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"plan and names need a larger header than the {MAX_HEADER} bytes that a file may have: "
            f"hash fewer tensors, or give them shorter names, got {length} bytes"
        )
    header = file.read(length)
    if (values := _count_values(header)) > MAX_VALUES:
        raise CheckpointError(
            f"a header may hold at most {MAX_VALUES} JSON values: hash fewer tensors, got {values} values"
        )
    start = _START.match(header)
    if start is None:
        raise CheckpointError(f"safetensors lays out its header differently: use another release, got {header[:80]!r}")
    checksum = hashlib.file_digest(file, "sha256").hexdigest().encode()
    header = _replace(header, start.span(1), checksum)
    header = _replace(header, start.span(3), _header_checksum(header, start).encode())
    file.seek(8)
    file.write(header)


def _sync_folder(folder: str) -> None:
    """Make the new name last, where folders can be synchronised."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------- reading


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file and trust nothing in it.

    Sizes, names, dtypes, shapes, version, plan and header are checked before any array is allocated, the data while
    they are read. Arrays are writable, own their memory and have together the size of the data section; nothing else
    grows with the file.

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
        If the file is not a whole, honest checkpoint of a known version: cut, changed, lying or of another kind.
    OSError
        If the system cannot open or read the path (``FileNotFoundError``, ``PermissionError``,
        ``IsADirectoryError``): that says nothing about a file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     read(file.name)
    Traceback (most recent call last):
        ...
    smh.errors.CheckpointError: ...
    """
    with open(path, "rb", opener=_open) as file:
        try:
            return _read(file)
        except _Fault as fault:
            message = f"cannot load {os.fspath(path)!r}, save it again or fetch another copy: {fault}"
            raise CheckpointError(message) from fault.__cause__


def _open(path: str, flags: int) -> int:
    # To open a named pipe would wait for its writer, forever perhaps.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(file: BinaryIO) -> Checkpoint:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _Fault(f"it must be a regular file, got mode {stat.filemode(status.st_mode)!r}")
    header, start = _read_header(file, status.st_size)
    tree = _parse(header, "the header")
    metadata = tree.pop("__metadata__")
    if metadata.keys() != {"smh"}:
        raise _Fault(f"the metadata must have the single key 'smh', got {_short(sorted(metadata))}")
    plan = _read_plan(_parse(metadata["smh"].encode("utf-8", "surrogatepass"), "the metadata"))
    entries = _check_entries(tree, status.st_size - 8 - len(header))
    _check_names(entries, plan)
    arrays = _read_data(file, entries, start.group(1).decode())
    dense = sorted(name for name in arrays if name.startswith("dense/"))
    return Checkpoint(
        plan,
        {name: arrays[name] for name in plan.variable_shapes},
        {name.removeprefix("dense/"): arrays[name] for name in dense},
        start.group(2).decode(),
    )
