"""``smh plot``: a picture of a plan."""

from __future__ import annotations

from pathlib import Path

import typer

from smh.cli.model import read_plan
from smh.cli.output import AsJson, Force, Quiet, check_out, emit
from smh.files.atomic import replacing

_FORMATS = ("svg", "png", "pdf")


def run_plot(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint, or a plan in JSON, as smh plan writes it."),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="PICTURE", help=f"The picture to write, by its ending: {', '.join(_FORMATS)}."
    ),
    force: bool = Force,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Draw which part of the pool's virtual weights each tensor uses.

    Needs matplotlib.
    """
    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise typer.BadParameter(f"a picture ends with .{', .'.join(_FORMATS)}; got {str(out)!r}", param_hint="--out")
    check_out(out, path, force=force, suffix=out.suffix.lower())
    plan = read_plan(path)
    figure = plan.plot()
    with replacing(out) as temporary:
        figure.savefig(temporary, format=suffix, bbox_inches="tight")
    result = {"file": str(path), "out": str(out), "bytes": out.stat().st_size}
    emit(result, as_json, [f"file   {out}"], quiet=quiet)
