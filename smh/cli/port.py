"""``smh port``: a checkpoint for the model of another framework."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import typer
from rich.console import Console

from smh.backends import numpy as smh_numpy
from smh.cli.output import AsJson, Force, MaxBytes, check_out, emit, parse_limit, progress
from smh.errors import CheckpointError, LimitError
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.limits import check_file, default
from smh.porting import Mapping, doubts, port, tensor_shapes


def run(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save."),
    mapping: Path = typer.Option(
        ..., "--map", metavar="MAP", help="The mapping, in JSON, as smh.porting.Mapping.save writes it."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="OUT", help="The checkpoint to write."),
    force: bool = Force,
    max_bytes: str = MaxBytes,
    as_json: bool = AsJson,
) -> None:
    """Give the tensors of a checkpoint the names and shapes of another model.

    The variables and the digest stay the same; the weights are rebuilt to verify that. A mapping is made in Python by
    smh.porting.match. Doubts about it are printed as warnings: names that would fit better the other way round.
    """
    limit = parse_limit(max_bytes)
    check_out(out, path, mapping, force=force)
    chosen = Mapping.load(mapping)
    found = checkpoint.read(path)
    check_file(found, limit)
    _check_defaults(chosen, found, limit)
    ported = port(found, chosen)
    warnings = doubts(chosen)
    with progress() as bars:
        bars.add_task("rebuilding the weights", total=None)
        digest = smh_numpy.digest(ported.plan, ported.variables)
    if digest != ported.digest:
        raise CheckpointError(f"{path}: its weights are not those that it was saved with; their digest is {digest}")
    checkpoint.write(out, ported.plan, ported.variables, ported.dense, digest, found.training)
    result = {
        "file": str(path),
        "out": str(out),
        "digest": digest,
        "tensors": {target: [source.name for source in entry.sources] for target, entry in chosen.tensors.items()},
        "settings": {layer: dict(values) for layer, values in chosen.settings.items()},
        "warnings": warnings,
    }

    def show(console: Console) -> None:
        console.print(chosen)
        for warning in warnings:
            console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
        console.print(f"file   {out}", soft_wrap=True)
        console.print(f"digest {digest}", soft_wrap=True)

    emit(result, as_json, show)


def _check_defaults(mapping: Mapping, found: Checkpoint, limit: int | None) -> None:
    """Raise unless the tensors that a mapping fills, where a file has none, are within the limit."""
    known = tensor_shapes(found)
    sources = [source for entry in mapping.tensors.values() for source in entry.sources if source.name not in known]
    size = sum(
        math.prod(source.shape) * np.dtype(source.default[1]).itemsize
        for source in sources
        if source.default is not None
    )
    most = default(found) if limit is None else limit
    if size > most:
        raise LimitError(
            f"the mapping fills {size:,} bytes of tensors that the file does not have, and the limit is {most:,}: "
            f"raise it by --max-bytes {size}"
        )
