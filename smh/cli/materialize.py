"""``smh materialize``: the weights of a checkpoint as a plain safetensors file."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import typer
from rich.console import Console

from smh import checkpoint
from smh.backends.registry import get_backend
from smh.cli.output import AsJson, check_out, emit, progress
from smh.export import export

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**k for k, prefix in enumerate("kmgt", 1)}
_UNITS |= {f"{prefix}ib": 1024**k for k, prefix in enumerate("kmgt", 1)}


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
    max_bytes: str = typer.Option("64GiB", help="The largest file to write: a number, or one with a unit, as 500MB."),
    as_json: bool = AsJson,
) -> None:
    """Write weights, and the tensors that are kept as they are, as a plain safetensors file that any reader opens.

    The file is streamed, and appears whole or not at all. With NumPy, large tensors are built in pieces, those with a
    view by way of a scratch file beside the result, so memory stays small. Other backends build one whole tensor at a
    time. The arithmetic is that of the plan.
    """
    limit = parse_size(max_bytes)
    builder = get_backend(backend or None)
    check_out(out, path)
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


def parse_size(text: str) -> int:
    """Return a number of bytes, from ``"1000"``, ``"500MB"`` or ``"1.5GiB"``; units are those of 1000 and of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        what = f"a size is a number of bytes, or one with a unit such as GB or GiB; got {text!r}"
        raise typer.BadParameter(what, param_hint="--max-bytes")
    return int(Fraction(match[1]) * _UNITS[match[2]])
