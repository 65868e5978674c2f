"""Checkpoint files: a plan, its variables and kept tensors in one safetensors file (specification, section 12).

The tensors are named ``pool/...`` (integers), ``scale/...``, ``dense/...`` and, optionally, ``training/pool/...``;
``rounded/...`` are integers of kept tensors (:mod:`smh.files.kept`). In packed files ``coded/pool/...`` stands for
``pool/...``, and ``coded/rounded/...`` for ``rounded/...`` (:mod:`smh.files.packed`).
Everything else is canonical JSON (sorted keys, no spaces, ASCII) under the single metadata key ``smh``. One checksum
covers the data. It does not detect a changed seed, digest or name of a kept tensor, so a second checksum covers the
header. Values of fixed length sort first, so both are at the same place in every file, and the header is verified
before it is parsed.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from smh.core.integers import Exponents
from smh.core.plan import Plan
from smh.core.versions import NEWEST, VERSION, explained, is_readable
from smh.errors import CheckpointError, PlanError, VariableError
from smh.files.atomic import replacing
from smh.files.digests import kept_digest
from smh.files.header import (
    DTYPES,
    OtherFileError,
    check_bools,
    check_place,
    check_tensor,
    open_file,
    read_header,
    read_tensor,
)
from smh.files.integers import (
    Arrays,
    Integers,
    check_exponents,
    check_integers,
    check_training,
    pack,
    stored,
    unpack,
)
from smh.files.kept import ROUNDED, Roundings, check_bits, read_roundings, restored, round_kept, values
from smh.files.packed import CODED, check_coded, coded_names, pack_tensors, unpack_tensors
from smh.strict_json import canonical_json, check, check_limits, parse, short
from smh.tables import counted
from smh.text import SURROGATE

CARRIED = "carried/"
"""The prefix of kept tensors that are not part of the model and are only carried along (see :mod:`smh.porting`)."""

METADATA = f"{CARRIED}__metadata__"
"""The kept tensor with the metadata of a plain file, canonical JSON in uint8."""

Given = Mapping[str, np.ndarray]
Entries = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape as in the header
_KEYS = ["checksum", "digest", "header_checksum", "plan", "pool_exponents", "version"]
_MORE = ["kept_digest", "rounded"]  # keys of files with rounded tensors
_START = re.compile(
    rb'\{"__metadata__":\{"smh":"\{\\"checksum\\":\\"([0-9a-f]{64})\\",\\"digest\\":\\"([0-9a-f]{64})\\",'
    rb'\\"header_checksum\\":\\"([0-9a-f]{64})\\",'
)


class _VersionError(OtherFileError):
    """A file of an unsupported version. The message names the smh that reads it."""

    def __init__(self, version: Any) -> None:
        what = f"this smh reads files of version {VERSION}: upgrade it"
        if isinstance(version, str) and re.fullmatch(r"1\.[0-9]{1,9}", version):
            what = f"smh 0.1 wrote it, and this smh reads files of version {VERSION}: use smh 0.1 to read it"
        super().__init__(f"{what}, got {short(version)}")


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes
    ----------
    plan : Plan
        The plan of the weights.
    variables : dict of str to numpy.ndarray
        Pool variables and scales, float32, in the order of the plan: the values of the stored integers, or the training
        values if the file has them.
    dense : dict of str to numpy.ndarray
        The kept tensors, sorted by name.
    digest : str
        The digest of the generated weights according to the writer. Reading does not generate weights to verify it.
    training : bool
        Whether the variables are training values, with the parts below the grid.
    coded : dict of str to int
        The arrays of integers that the file stores entropy-coded, and their bytes there: ``pool/...`` and
        ``rounded/...``. Empty if it is not packed.
    integers : Integers, optional
        For a frozen model, the integers of the pool as they are stored, and their exponents. The variables are then
        only the scales.
    rounded : dict of str to smh.files.kept.Rounding
        The kept tensors that the file stores as integers, with their bits, dtypes, exponents and shapes.
    kept_digest : str, optional
        The digest of the kept tensors, in a file that has rounded ones. Reading verifies it.
    """

    plan: Plan
    variables: Arrays
    dense: Arrays
    digest: str
    training: bool = False
    coded: dict[str, int] = field(default_factory=dict)
    integers: Integers | None = None
    rounded: Roundings = field(default_factory=dict)
    kept_digest: str | None = None

    def __repr__(self) -> str:
        variables, kept = counted(len(self.variables), "variable"), counted(len(self.dense), "kept tensor")
        return f"Checkpoint({self.plan!r}, {variables}, {kept}, digest={self.digest[:16]}...)"

    def kept_bytes(self, name: str) -> int | None:
        """Return the bytes of a kept tensor in the file, or None if it is stored as it is."""
        one = self.rounded.get(name)
        return one and self.coded.get(ROUNDED + name, one.stored_bytes)

    def mapped(self, convert: Callable[[Any], Any]) -> Checkpoint:
        """Return a checkpoint with every array converted.

        Parameters
        ----------
        convert : callable
            Receives each variable, array of integers and kept tensor, and returns an array of the same shape.

        Returns
        -------
        Checkpoint
            The same plan and digest, with other arrays.

        Examples
        --------
        >>> import smh
        >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
        >>> checkpoint = smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64)
        >>> checkpoint.mapped(np.copy).variables["pool/left"].shape
        (10, 2)
        """

        def each(arrays: Mapping[str, Any]) -> dict[str, Any]:
            return {name: convert(x) for name, x in arrays.items()}

        integers = self.integers and self.integers._replace(arrays=each(self.integers.arrays))
        return replace(self, variables=each(self.variables), dense=each(self.dense), integers=integers)


def write(
    path: str | os.PathLike[str],
    plan: Plan,
    variables: Given,
    dense: Given,
    digest: str,
    training: bool = False,
    packed: bool = False,
    kept_bits: int | Mapping[str, int] | None = None,
) -> None:
    """Write a checkpoint file atomically, with ``training`` including the float32 values of the pool arrays.

    With ``packed``, integers are entropy-coded where that makes them smaller, which needs constriction. With
    ``kept_bits``, kept tensors that are not only carried along are rounded as :func:`smh.files.kept.rounded` chooses;
    bits by name are those of tensors that are rounded already.

    Equal content gives equal bytes, for any order of the dictionaries and any memory and byte order of the arrays.
    Raises :class:`~smh.VariableError` if an array or the digest is invalid, or one to round is not finite.
    """
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise VariableError(f"a digest must be 64 hexadecimal digits, as returned by smh.digest, got {digest!r}")
    tensors, exponents = _checked(plan, variables, dense, training)
    tensors, rounded, more = _rounded(tensors, kept_bits)
    if packed:
        tensors = pack_tensors(plan, tensors, rounded)
    version = NEWEST if coded_names(tensors) or rounded else VERSION
    zeros = "0" * 64
    stated = (zeros, digest, zeros, plan.to_dict(), exponents, version)
    metadata = canonical_json({**dict(zip(_KEYS, stated, strict=True)), **more})
    with replacing(path) as temporary:
        try:
            # Sorts tensors by dtype, then name. The order of several metadata keys would be random.
            save_file(tensors, temporary, {"smh": metadata})
        except SafetensorError as error:
            raise OSError(f"cannot write {os.fspath(path)!r}: make sure the disk has room, got {error}") from error
        with open(temporary, "r+b") as file:
            _seal(file)


def _checked(plan: Plan, variables: Given, dense: Given, training: bool) -> tuple[Arrays, Exponents]:
    """Return contiguous little-endian arrays by their names in the file, and the exponents of the pool arrays."""
    tensors = {}
    shapes = plan.variable_shapes
    if odd := set(shapes) ^ set(variables):
        what = f"variables must be those of plan.variable_shapes: add or leave out {short(odd)}"
        raise VariableError(f"{what}, got {short(list(variables))}")
    for name, shape in shapes.items():
        want = f"variable {name!r} must be a float32 NumPy array of shape {shape}"
        tensors[name] = array = _host(want, name, variables[name])
        if array.dtype.name != "float32" or array.shape != shape:
            raise VariableError(f"{want}: convert it or take another, got {array.dtype} {array.shape}")
    integers, exponents = pack(plan, tensors)
    if training:
        tensors |= {f"training/{name}": tensors[name] for name in integers}
    tensors |= integers
    for name, value in dense.items():
        if not isinstance(name, str) or not name:
            raise VariableError(f"a dense tensor must have a name, a string that is not empty, got {name!r}")
        want = f"dense tensor {name!r} must be a NumPy array of bool, integers or floats"
        tensors[f"dense/{name}"] = _host(want, name, value)
    return tensors, exponents


def _rounded(tensors: Arrays, bits: int | Mapping[str, int] | None) -> tuple[Arrays, Roundings, dict[str, Any]]:
    """Return the tensors of a file with kept ones rounded, how they are rounded, and what the metadata say of them."""
    kept = {name[6:]: x for name, x in tensors.items() if name.startswith("dense/")}
    chosen = kept
    if not isinstance(bits, Mapping):
        check_bits(bits)
        chosen = {name: x for name, x in kept.items() if not name.startswith(CARRIED)}
    integers, rounded = round_kept(chosen, bits)
    if not rounded:
        return tensors, {}, {}
    kept |= {name: values(name, q, rounded[name]) for name, q in integers.items()}
    tensors = {name: x for name, x in tensors.items() if name[:6] != "dense/" or name[6:] not in rounded}
    tensors |= {ROUNDED + name: q for name, q in integers.items()}
    stated = {name: one.to_list() for name, one in rounded.items()}
    return tensors, rounded, {"kept_digest": kept_digest(kept), "rounded": stated}


def _host(want: str, name: str, value: Any) -> np.ndarray:
    if SURROGATE.search(name):
        raise VariableError(f"{want} with a name in valid Unicode: rename it, got {name!r}")
    if not isinstance(value, np.ndarray | np.generic):
        raise VariableError(f"{want}: convert it with numpy.asarray, got {type(value).__name__}")
    array = np.asarray(value)
    if array.dtype.name not in DTYPES.values():
        raise VariableError(f"{want} ({', '.join(DTYPES.values())}): convert it, got {array.dtype}")
    if array.dtype.name == "bool":  # a bool view of other data may have bytes other than 0 and 1
        array = np.asarray(array.view(np.uint8) != 0)
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _seal(file: io.BufferedRandom) -> None:
    """Replace the zeros of the checksums.

    The checksums are computed from the output of the serializer, which determines the order of the tensors.
    """
    header = file.read(int.from_bytes(file.read(8), "little"))
    check_limits(header)
    start = _find_checksums(header)
    sealed = bytearray(header)
    sealed[slice(*start.span(1))] = hashlib.file_digest(file, "sha256").hexdigest().encode()
    sealed[slice(*start.span(3))] = _header_checksum(bytes(sealed), start).encode()
    file.seek(8)
    file.write(sealed)


def read(path: str | os.PathLike[str], frozen: bool = False) -> Checkpoint:
    """Read and validate an untrusted checkpoint file, or raise :class:`~smh.CheckpointError` for any fault.

    The header is checked completely before any array is allocated, and the data while they are read. Besides the data,
    memory holds float32 values of every pool array, unless the pool is for a frozen model. Arrays are writable and own
    their memory.
    """
    try:
        with open_file(path) as file:
            return _read(file, frozen)
    except CheckpointError as error:
        advice = "" if isinstance(error, OtherFileError) else ", save it again or fetch another copy"
        raise CheckpointError(f"cannot load {os.fspath(path)!r}{advice}: {error}") from error.__cause__


def _read(file: io.BufferedReader, frozen: bool) -> Checkpoint:
    header, size = read_header(file)
    start = _find_checksums(header)
    actual, stated = _header_checksum(header, start), start[3].decode()
    what = f"its header, bytes 8 to {8 + len(header)}, is damaged: its SHA-256 must be {stated}"
    check(actual == stated, what, actual)
    # The start of the header ensures that tree and metadata are objects and "smh" is a string: no key is repeated.
    tree = parse(header, "its header")
    metadata = tree.pop("__metadata__")
    check(metadata.keys() == {"smh"}, "its metadata must have the single key 'smh'", sorted(metadata))
    stated = parse(metadata["smh"], "its metadata")
    version = stated.get("version")
    if not is_readable(version):
        raise _VersionError(version)
    with explained(version):
        keys = sorted([*_KEYS, *_MORE]) if version != VERSION and "rounded" in stated else _KEYS
        check(sorted(stated) == keys, f"its metadata must have the keys {keys}", sorted(stated))
    check(canonical_json(stated) == metadata["smh"], "its metadata must be canonical JSON", metadata["smh"])
    try:
        plan = Plan.from_dict(stated["plan"])
    except PlanError as error:
        raise CheckpointError(f"its plan must be valid: {error}") from error
    exponents = stated["pool_exponents"]
    with explained(version):
        check_exponents(plan, exponents)
        rounded = read_roundings(stated["rounded"]) if "rounded" in stated else {}
        entries = _check_entries(tree, plan, size, version, rounded)
    arrays = _read_data(file, entries, start[1].decode())
    coded = {name: arrays[CODED + name].size for name in coded_names(arrays)}
    arrays = unpack_tensors(plan, arrays, rounded)
    dense = {name[6:]: x for name, x in arrays.items() if name.startswith("dense/")}
    dense |= {name: restored(name, arrays.pop(ROUNDED + name), one) for name, one in rounded.items()}
    dense = dict(sorted(dense.items()))
    kept = kept_digest(dense) if rounded else None
    check(
        kept == stated.get("kept_digest"), f"the digest of its kept tensors must be {kept}", stated.get("kept_digest")
    )
    training = {name[9:]: arrays[name] for name in arrays if name.startswith("training/")}
    digest, shapes, pool = start[2].decode(), plan.variable_shapes, Arrays()
    if frozen:
        check_integers(plan, arrays, exponents)
    else:
        pool = unpack(plan, arrays, exponents)
    if training:
        check_training(plan, training, arrays, exponents)
    if frozen:
        integers = Integers({name: arrays[name] for name in stored(plan)}, exponents)
        scales = {name: arrays[name] for name in shapes if name not in integers.arrays}
        return Checkpoint(plan, scales, dense, digest, False, coded, integers, rounded, kept)
    pool = training or pool
    variables = {name: pool[name] if name in pool else arrays[name] for name in shapes}
    return Checkpoint(plan, variables, dense, digest, bool(training), coded, None, rounded, kept)


def _find_checksums(header: bytes) -> re.Match[bytes]:
    """Find the checksums in a header, or raise if it does not begin like a header of this version."""
    if start := _START.match(header):
        return start
    try:
        metadata = parse(header, "its header")["__metadata__"]["smh"]
        version = parse(metadata if isinstance(metadata, str) else "", "its metadata")["version"]
    except (CheckpointError, LookupError, TypeError):  # it has no version
        version = VERSION
    if version not in (VERSION, NEWEST):
        raise _VersionError(version)
    if header[:1] == b"{" and b'"smh"' not in header[:64]:
        raise OtherFileError("it is a plain safetensors file, not a checkpoint of smh: smh fit converts it")
    raise CheckpointError(f"it is not a checkpoint of smh version {VERSION}, got a header {short(header)}")


def _check_entries(tree: dict[str, Any], plan: Plan, size: int, version: str, rounded: Roundings) -> Entries:
    """Return dtype and shape of each tensor. Checks that they fit plan and metadata, and fill the data exactly."""
    coded = set(coded_names(tree))
    check(not coded or version != VERSION, f"a file of version {VERSION} must have no coded tensors", coded)
    planned = {name: ("F32", shape) for name, shape in plan.variable_shapes.items()}
    pool = stored(plan)
    training = {f"training/{name}": planned[name] for name in pool}
    planned |= pool
    planned |= {ROUNDED + name: (one.code, one.shape) for name, one in rounded.items()}
    planned = {name: entry for name, entry in planned.items() if name not in coded}
    if not training.keys().isdisjoint(tree):
        planned |= training
    entries: Entries = {}
    position = 0
    for name, entry in tree.items():
        what = f"tensor {short(name)} must"
        known = name in planned or name[:6] == "dense/" != name or name.startswith(CODED)
        check(known, f"{what} be of the plan or 'dense/...'", name)
        check(name[:6] != "dense/" or name[6:] not in rounded, f"{what} be there once, as it is rounded", name)
        check_tensor(what, name, entry)
        dtype = entry["dtype"]
        check(isinstance(dtype, str) and dtype in DTYPES, f"{what} have a dtype of {list(DTYPES)}", dtype)
        got = entries[name] = dtype, tuple(entry["shape"])
        want = planned.get(name, got)
        check(got == want, f"{what} be {want} by the plan", got)
        position = check_place(what, entry, position)
    check_coded(plan, entries, rounded)
    missing = [name for name in planned if name not in entries]
    check(
        not missing,
        f"it must have all variables of its plan and all rounded tensors, but lacks {len(missing)}",
        missing,
    )
    check(position == size, f"its data section must have the {position} bytes of its tensors", size)
    return entries


def _read_data(file: io.BufferedReader, entries: Entries, checksum: str) -> Arrays:
    """Read each tensor into a separate array, and verify the data.

    Does not use safetensors: its ``load`` copies the whole file from bytes, and its ``load_file`` opens the path again,
    when the file may have been replaced. Here the verified bytes are the returned bytes.
    """
    arrays = {}
    hashed = hashlib.sha256()
    for name, (dtype, shape) in entries.items():
        arrays[name] = read_tensor(file, name, shape, dtype)
        hashed.update(arrays[name].reshape(-1).view(np.uint8).data)
    actual = hashed.hexdigest()
    check(actual == checksum, f"its data are damaged: their SHA-256 must be {checksum}", actual)
    for name, array in arrays.items():
        check_bools(name, array)
    return arrays


def _header_checksum(header: bytes, start: re.Match[bytes]) -> str:
    return hashlib.sha256(header[: start.start(3)] + header[start.end(3) :]).hexdigest()
