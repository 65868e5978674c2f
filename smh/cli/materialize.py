"""``smh materialize``: the weights of a checkpoint as a plain safetensors file."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from smh.backends.registry import get_backend
from smh.cli.output import AsJson, Force, MaxBytes, check_out, emit, parse_limit, progress
from smh.files import checkpoint
from smh.files.export import export


def run(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save."),
    out: Path = typer.Option(..., "--out", "-o", metavar="DENSE", help="The safetensors file to write."),
    names: list[str] = typer.Option([], help="Tensors to write, separated by commas; default: all."),
    view: bool = typer.Option(
        True, "--view/--canonical", help="Shapes as the model sees them, or as the plan has them."
    ),
    backend: str = typer.Option(
        "", help="The backend that builds the weights; default: that of the environment variable SMH_BACKEND, or numpy."
    ),
    force: bool = Force,
    max_bytes: str = MaxBytes,
    as_json: bool = AsJson,
) -> None:
    """Write weights, and the tensors that are kept as they are, as a plain safetensors file that any reader opens.

    The file is streamed, one tensor at a time, and appears whole or not at all. NumPy builds large tensors without a
    view block by block. The limit holds for the file that is written, too.
    """
    limit = parse_limit(max_bytes)
    builder = get_backend(backend or None)
    check_out(out, path, force=force)
    wanted = [name for given in names for name in given.split(",") if name] if names else None
    found = checkpoint.read(path)
    with progress() as bars:
        task = bars.add_task(out.name, total=None)
        written = export(
            out,
            found,
            wanted,
            view=view,
            backend=builder,
            max_bytes=limit,
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

    def show(console: Console) -> None:
        console.print(
            f"{out}: {len(written.shapes):,} tensors, {written.weights:,} weights, {written.size:,} bytes",
            soft_wrap=True,
        )

    emit(result, as_json, show)
