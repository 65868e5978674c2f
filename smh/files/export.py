"""Plain files: generated weights and kept tensors as a safetensors file that any reader opens.

The file is streamed. All names, dtypes and shapes are known from the plan, so the header is written first, and then the
bytes of one tensor after another as they are built. NumPy builds large tensors without a view block by block; a tensor
with a view, and every tensor of another backend, is built as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smh.backends.numpy import NumpyBackend
from smh.backends.numpy_kernels import NumpyKernels
from smh.backends.protocol import Backend
from smh.core.inputs import check_variables
from smh.core.plan import Plan
from smh.core.tensors import TensorSpec
from smh.errors import ExportError, LimitError, UnknownNameError, near_names
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.contents import Weights
from smh.files.header import DTYPES
from smh.files.limits import check_plan, default

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Exported:
    """What a plain file holds.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of all tensors, in the order of the file.
    weights : int
        How many of their elements were generated.
    size : int
        Bytes of the file.
    """

    shapes: dict[str, tuple[int, ...]]
    weights: int
    size: int


def export(
    path: str | os.PathLike[str],
    found: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    view: bool = True,
    backend: Backend | None = None,
    max_bytes: int | None = None,
    start: Callable[[int], object] = lambda size: None,
    advance: Callable[[int], object] = lambda count: None,
) -> Exported:
    """Write the weights of a checkpoint, and the tensors that it keeps, as a plain safetensors file.

    The file appears whole or not at all. Its tensors are in the order of their dtypes' sizes, largest first, weights
    in the order of the plan before kept tensors by name.

    Parameters
    ----------
    path : str or os.PathLike
        Where to. Its folder must exist, and have room for the file.
    found : Checkpoint
        With NumPy arrays, as :func:`smh.files.checkpoint.read` gives it.
    names : iterable of str, optional
        Which tensors; by default all but those that are only carried along.
    view : bool
        Whether weights have their viewed shapes, or their canonical ones.
    backend : Backend, optional
        Builds the weights, by default NumPy.
    max_bytes : int, optional
        The most bytes to write, and to build for that; by default what :func:`smh.files.limits.default` says.
    start : callable
        Is told the size of the file, before anything is written.
    advance : callable
        Is told how many bytes have been written, again and again.

    Returns
    -------
    Exported

    Raises
    ------
    ExportError
        If a kept tensor has the name of a weight, or the file would be too large for the disk.
    LimitError
        If it, or what has to be built, would be larger than ``max_bytes``.
    UnknownNameError
        If there is no tensor of a name.
    VariableError
        If the variables do not fit the plan.
    CheckpointError
        If the path is that of a device or the like.
    OSError
        If the system cannot write there. Nothing is left.

    Examples
    --------
    >>> import tempfile
    >>> import smh
    >>> from safetensors.numpy import load_file
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4, views={"fc": "i o -> o i"})
    >>> found = smh.Checkpoint(plan, smh.initialize(plan), {"bias": np.zeros(5)}, "0" * 64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = export(f"{folder}/dense.safetensors", found)
    ...     sorted((name, x.shape) for name, x in load_file(f"{folder}/dense.safetensors").items())
    [('bias', (5,)), ('fc', (5, 20))]
    >>> written.weights
    100
    """
    plan = found.plan if view else canonical(found.plan)
    tensors, kept = _chosen(plan, found.dense, names)
    order = sorted(kept, key=lambda name: (-kept[name].dtype.itemsize, name))
    wide = [name for name in order if kept[name].dtype.itemsize > 4]
    narrow = order[len(wide) :]
    shapes: dict[str, tuple[int, ...]] = {name: kept[name].shape for name in wide}
    shapes |= {tensor.name: tensor.viewed_shape for tensor in tensors}
    shapes |= {name: kept[name].shape for name in narrow}
    header, size = _header(shapes, {name: x.dtype for name, x in kept.items()})
    limit = default(found) if max_bytes is None else max_bytes
    check_plan(plan, limit, [tensor.name for tensor in tensors])
    if size > limit:
        raise LimitError(
            f"the file would have {size:,} bytes, and the limit is {limit:,}: raise it by max_bytes={size} (on the "
            f"command line --max-bytes {size}), or choose tensors"
        )
    weights = _weights(dataclasses.replace(found, plan=plan), tensors, backend)
    with replacing(path) as temporary, open(temporary, "r+b") as file:
        _check_room(os.path.dirname(temporary), size)
        start(size)
        file.write(header)
        advance(len(header))
        for x in itertools.chain((kept[name] for name in wide), weights, (kept[name] for name in narrow)):
            data = np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8)
            file.write(data.data)
            advance(data.size)
    return Exported(shapes, sum(tensor.size for tensor in tensors), size)


def canonical(plan: Plan) -> Plan:
    """Return a plan without its views."""
    return dataclasses.replace(plan, tensors=tuple(dataclasses.replace(tensor, view=None) for tensor in plan.tensors))


def _chosen(
    plan: Plan, dense: Mapping[str, np.ndarray], names: Iterable[str] | None
) -> tuple[list[TensorSpec], dict[str, np.ndarray]]:
    """Return the tensors to build, in the order of the plan, and those to copy."""
    generated = {tensor.name for tensor in plan.tensors}
    kept = {name: x for name, x in dense.items() if not name.startswith(CARRIED)}
    if clash := sorted(generated & set(kept)):
        raise ExportError(f"a weight and a kept tensor have the same name, so one file cannot hold both: {clash[0]!r}")
    wanted = generated | set(kept) if names is None else set(names)
    for name in sorted(wanted):
        if name not in generated and name not in kept:
            raise UnknownNameError(f"there is no tensor {name!r}: {near_names(name, [*sorted(generated), *kept])}")
    if not wanted:
        raise ExportError("a file needs at least one tensor; got no names")
    tensors = [tensor for tensor in plan.tensors if tensor.name in wanted]
    return tensors, {name: x for name, x in kept.items() if name in wanted}


def _header(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]) -> tuple[bytes, int]:
    """Return the first bytes of a safetensors file, and the size of the whole; tensors without a dtype are float32."""
    entries = {}
    position = 0
    for name, shape in shapes.items():
        dtype = dtypes.get(name, np.dtype(np.float32))
        if dtype.name not in _CODES:
            raise ExportError(f"tensor {name!r} must be of {', '.join(_CODES)}; got {dtype}")
        if name == "__metadata__" or any("\ud800" <= character <= "\udfff" for character in name):
            raise ExportError(f"the format allows no tensor of this name: rename it; got {name!r}")
        stop = position + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # so that data are aligned
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position


def _check_room(folder: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        where = os.path.dirname(folder)  # what it lies in: its own name is nobody's business
        raise ExportError(f"{needed:,} bytes are needed in {where!r}, and {free:,} are free: choose another folder")


def _weights(found: Checkpoint, tensors: list[TensorSpec], backend: Backend | None) -> Iterator[np.ndarray]:
    """Return an iterator over the weights of tensors, in the order of the file; variables are checked at once."""
    if backend is None or type(backend) is NumpyBackend:
        weights = Weights(found)
        return (block for tensor in tensors for block in weights.blocks(tensor.name))
    own = {name: backend.asarray(x) for name, x in found.variables.items()}
    check_variables(NumpyKernels(), found.plan, found.variables)
    built = (backend.materialize(found.plan, own, [tensor.name])[tensor.name] for tensor in tensors)
    return map(backend.to_numpy, built)
