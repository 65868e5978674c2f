"""Plain files: generated weights and kept tensors as a safetensors file for any reader.

The file is streamed. The plan determines all names, dtypes and shapes, so the header is written first, followed by the
bytes of one tensor after another as they are built. NumPy builds large tensors without a view block by block. Tensors
with a view, and tensors of other backends, are built as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from smh.backends.numpy import NumpyBackend
from smh.backends.numpy_kernels import NumpyKernels
from smh.backends.protocol import Backend
from smh.core.generate import check_variables
from smh.core.plan import Plan
from smh.core.tensors import TensorSpec
from smh.errors import ExportError, LimitError, UnknownNameError, near_names
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED, METADATA, Checkpoint
from smh.files.contents import Weights
from smh.files.header import DTYPES
from smh.files.limits import check_plan, default
from smh.strict_json import check, parse
from smh.text import SURROGATE

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Exported:
    """The content of a plain file."""

    shapes: dict[str, tuple[int, ...]]  # of all tensors, in the order of the file
    weights: int  # the number of generated elements
    size: int  # bytes of the file


def export(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    view: bool = True,
    backend: Backend | None = None,
    max_bytes: int | None = None,
    start: Callable[[int], object] = lambda size: None,
    advance: Callable[[int], object] = lambda count: None,
) -> Exported:
    """Write the named tensors of a checkpoint, by default all tensors of the model, as a plain safetensors file.

    Tensors are sorted by the size of their dtype, largest first, with weights in the order of the plan before kept
    tensors by name. Weights have viewed or canonical shapes, and ``backend``, by default NumPy, builds them.
    ``max_bytes`` limits the bytes written, and the bytes built for them. ``start`` is called with the size of the file
    before anything is written, and ``advance`` with the number of bytes written since. Raises :class:`~smh.ExportError`
    if names clash or the disk has too little space.
    """
    plan = checkpoint.plan if view else canonical(checkpoint.plan)
    tensors, kept = _chosen(plan, checkpoint, names)
    wide = [name for name, x in kept.items() if x.dtype.itemsize > 4]
    narrow = list(kept)[len(wide) :]
    viewed = {tensor.name: tensor.viewed_shape for tensor in tensors}
    shapes = {name: kept[name].shape if name in kept else viewed[name] for name in (*wide, *viewed, *narrow)}
    header, size = _header(shapes, {name: x.dtype for name, x in kept.items()}, _metadata(checkpoint))
    limit = default(checkpoint) if max_bytes is None else max_bytes
    check_plan(plan, limit, viewed)
    if size > limit:
        raise LimitError(
            f"the file would have {size:,} bytes, and the limit is {limit:,}: raise the limit with max_bytes={size} "
            f"(on the command line --max-bytes {size}), or select tensors"
        )
    weights = _weights(dataclasses.replace(checkpoint, plan=plan), tensors, backend)
    with replacing(path) as temporary, open(temporary, "r+b") as file:
        folder = os.path.dirname(os.path.dirname(temporary))
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ExportError(f"the file needs {size:,} bytes in {folder!r}; {free:,} are free: choose another folder")
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
    plan: Plan, checkpoint: Checkpoint, names: Iterable[str] | None
) -> tuple[list[TensorSpec], dict[str, np.ndarray]]:
    """Return the tensors to build, in the order of the plan, and the tensors to copy, the widest first."""
    generated = {tensor.name for tensor in plan.tensors}
    kept = {name: x for name, x in checkpoint.dense.items() if not name.startswith(CARRIED)}
    if clash := sorted(generated & set(kept)):
        raise ExportError(f"a weight and a kept tensor have the same name, so one file cannot hold both: {clash[0]!r}")
    wanted = generated | set(kept) if names is None else set(names)
    for name in sorted(wanted):
        if name not in generated and name not in kept:
            raise UnknownNameError(f"there is no tensor {name!r}: {near_names(name, [*sorted(generated), *kept])}")
    if not wanted:
        raise ExportError("a file needs at least one tensor; got no names")
    tensors = [tensor for tensor in plan.tensors if tensor.name in wanted]
    order = sorted(wanted & set(kept), key=lambda name: (-kept[name].dtype.itemsize, name))
    return tensors, {name: kept[name] for name in order}


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata of the plain file from which a checkpoint was made."""
    if METADATA not in checkpoint.dense:
        return {}
    metadata = parse(checkpoint.dense[METADATA].tobytes(), "the metadata that it carries")
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    check(texts and "smh" not in metadata, "the metadata that it carries must be texts by name", metadata)
    return dict(metadata)


def _header(
    shapes: dict[str, tuple[int, ...]], dtypes: dict[str, np.dtype], metadata: dict[str, str]
) -> tuple[bytes, int]:
    """Return the header of a safetensors file and the size of the file. Tensors without a dtype are float32."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        dtype = dtypes.get(name, np.dtype(np.float32))
        if dtype.name not in _CODES:
            raise ExportError(f"tensor {name!r} must be of {', '.join(_CODES)}; got {dtype}")
        if name == "__metadata__" or SURROGATE.search(name):
            raise ExportError(f"the format does not allow a tensor of this name: rename it; got {name!r}")
        stop = position + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # aligns the data
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position


def _weights(checkpoint: Checkpoint, tensors: list[TensorSpec], backend: Backend | None) -> Iterator[np.ndarray]:
    """Return an iterator over the weights of tensors, in the order of the file. Checks the variables immediately."""
    if backend is None or type(backend) is NumpyBackend:
        weights = Weights(checkpoint)
        return (block for tensor in tensors for block in weights.blocks(tensor.name))
    own = {name: backend.asarray(x) for name, x in checkpoint.variables.items()}
    check_variables(NumpyKernels(), checkpoint.plan, checkpoint.variables)
    built = (backend.materialize(checkpoint.plan, own, [tensor.name])[tensor.name] for tensor in tensors)
    return map(backend.to_numpy, built)
