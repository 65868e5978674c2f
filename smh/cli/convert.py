"""``smh materialize`` and ``smh port``: a checkpoint as a plain file, or for the model of another framework."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import typer

from smh.backends import numpy as smh_numpy
from smh.cli.model import read_checkpoint, read_mapping
from smh.cli.output import AsJson, BackendName, File, Force, MaxBytes, Quiet, backend_named, check_out, emit, progress
from smh.errors import CheckpointError, LimitError
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.export import export
from smh.files.limits import check_file, default
from smh.porting import Mapping, doubts, port, tensor_shapes
from smh.tables import counted


def run_materialize(
    path: Path = File,
    out: Path = typer.Option(..., "--out", "-o", metavar="DENSE", help="The safetensors file to write."),
    names: list[str] = typer.Option([], help="Tensors to write, separated by commas. Default: all."),
    view: bool = typer.Option(True, "--view/--canonical", help="Shapes of the model, or of the plan."),
    backend: str = BackendName,
    force: bool = Force,
    max_bytes: int | None = MaxBytes,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Write the weights and the kept tensors of a checkpoint as a plain safetensors file.

    The file is written one tensor at a time, and appears whole or not at all. The limit also holds for its size.
    """
    builder = backend_named(backend)
    check_out(out, path, force=force, plain=True)
    selection = [name for given in names for name in given.split(",") if name] if names else None
    if selection == []:
        raise typer.BadParameter(f"give names, separated by commas; got {names[-1]!r}", param_hint="--names")
    loaded = read_checkpoint(path)
    with progress(quiet) as bars:
        task = bars.add_task(out.name, total=None)
        written = export(
            out,
            loaded,
            selection,
            view=view,
            backend=builder,
            max_bytes=max_bytes,
            start=lambda size: bars.update(task, total=size),
            advance=lambda count: bars.advance(task, count),
        )
    result = {
        "file": str(path),
        "out": str(out),
        "backend": backend or builder.name,
        "bytes": written.size,
        "weights": written.weights,
        "tensors": {name: list(shape) for name, shape in written.shapes.items()},
    }
    count = counted(len(written.shapes), "tensor")
    emit(result, as_json, [f"{out}: {count}, {written.weights:,} weights, {written.size:,} bytes"], quiet=quiet)


def run_port(
    path: Path = File,
    mapping: Path = typer.Option(
        ..., "--map", metavar="MAP", help="The mapping, in JSON, as smh.porting.Mapping.save writes it."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="OUT", help="The checkpoint to write."),
    force: bool = Force,
    max_bytes: int | None = MaxBytes,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Give the tensors of a checkpoint the names and shapes of another model.

    Variables and digest do not change; the weights are rebuilt to verify that. smh.porting.match makes a mapping in
    Python. Names that would fit better the other way round bring a warning.
    """
    check_out(out, path, mapping, force=force)
    renaming = read_mapping(mapping)
    loaded = read_checkpoint(path)
    check_file(loaded, max_bytes)
    _check_defaults(renaming, loaded, max_bytes)
    ported = port(loaded, renaming)
    warnings = doubts(renaming)
    with progress(quiet) as bars:
        bars.add_task("rebuilding the weights", total=None)
        digest = smh_numpy.digest(ported.plan, ported.variables)
    if digest != ported.digest:
        raise CheckpointError(f"{path}: its weights are not those that it was saved with; their digest is {digest}")
    packed, kept_bits = bool(loaded.coded), {name: one.bits for name, one in ported.rounded.items()}
    checkpoint.write(out, ported.plan, ported.variables, ported.dense, digest, loaded.training, packed, kept_bits)
    result = {
        "file": str(path),
        "out": str(out),
        "digest": digest,
        "tensors": {target: [source.name for source in entry.sources] for target, entry in renaming.tensors.items()},
        "settings": {layer: dict(values) for layer, values in renaming.settings.items()},
        "warnings": warnings,
    }
    emit(result, as_json, [renaming, f"file   {out}", f"digest {digest}"], warnings=warnings, quiet=quiet)


def _check_defaults(mapping: Mapping, loaded: Checkpoint, limit: int | None) -> None:
    """Raise LimitError unless the tensors that a mapping fills, where a file has none, are within the limit."""
    known = tensor_shapes(loaded)
    sources = [source for entry in mapping.tensors.values() for source in entry.sources if source.name not in known]
    size = sum(math.prod(x.shape) * np.dtype(x.default[1]).itemsize for x in sources if x.default is not None)
    most = default(loaded) if limit is None else limit
    if size > most:
        raise LimitError(
            f"the mapping fills {size:,} bytes of tensors that the file does not have, and the limit is {most:,}: "
            f"raise it by --max-bytes {size}"
        )
