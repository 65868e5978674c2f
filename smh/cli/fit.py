"""``smh fit``: a checkpoint whose weights come close to those of a plain safetensors file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from smh.backends import numpy as smh_numpy
from smh.cli import plan as planning
from smh.cli.output import AsJson, Force, check_out, emit, progress
from smh.core.plan import Plan
from smh.errors import PlanError, SmhError
from smh.files.checkpoint import CARRIED
from smh.files.dense import DenseFile
from smh.models.compression import Compression, check_fit, make_report
from smh.text import printable

if TYPE_CHECKING:
    from smh.models.fit import FitReport

_FREE = ("ratio", "size", "out", "plan_file", "path", "force", "as_json")  # go with --plan, or have their own rule


def run(
    context: typer.Context,
    path: Path = typer.Argument(..., metavar="DENSE", help="A plain safetensors file."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FILE", help="The checkpoint to write."),
    ratio: float | None = planning.Ratio,
    size: str | None = planning.Size,
    plan_file: Path | None = typer.Option(
        None, "--plan", metavar="PLAN", help="A plan, in JSON, as smh plan writes it, in place of all options."
    ),
    bits: int = planning.Bits,
    optimizer: str = planning.Optimizer,
    allow_expansion: bool = planning.Expansion,
    pool: str = planning.Pool,
    layout: str = planning.Layout,
    scale: str = typer.Option("match", help=planning.SCALE_HELP),
    fixed_scales: bool = planning.FixedScales,
    seed: int = planning.Seed,
    include: list[str] = planning.Include,
    exclude: list[str] = planning.Exclude,
    convention: str = planning.Convention,
    force: bool = Force,
    as_json: bool = AsJson,
) -> None:
    """Find variables whose weights come close to given ones, and write a checkpoint: a warm start for training.

    Other tensors are kept as they are. The file is read one tensor at a time. Memory is needed for some float64 vectors
    as long as all generated weights together, and to fit the pool. Needs SciPy.
    """
    from smh.models.fit import fit_variables  # here, for it takes long to import

    _check_options(context, ratio, size, plan_file)
    check_out(out, path, *([plan_file] if plan_file else []), force=force)
    options = {"ratio": ratio, "size": size, "bits": bits, "optimizer": optimizer, "allow_expansion": allow_expansion}
    options |= {"pool": pool, "layout": layout, "scale": scale, "learn_scale": not fixed_scales, "seed": seed}
    with DenseFile(path) as file:
        tensors = planning.tensors_of(file, convention)
        if plan_file is not None:
            plan = _read_plan(plan_file)
            check_fit(tensors, plan)
        else:
            plan = planning.make_plan(tensors, options, include, exclude, file)
        kept = _kept(file, plan)
        wanted = _Chosen(file, [tensor.name for tensor in plan.tensors])
        bars = progress()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            variables, report = fit_variables(plan, wanted, progress=bars.console.is_terminal)
        doubts = [str(warning.message) for warning in caught]
        with bars:
            bars.add_task("writing", total=None)
            dense = {name: file.stored(name) for name in kept}
            digest = smh_numpy.save(out, plan, variables, dense)
    saved = make_report(Compression(plan, tuple(tensors), ratio_asked=ratio), {})
    result = {
        "file": str(path),
        "out": str(out),
        "digest": digest,
        "bytes": out.stat().st_size,
        "error": _finite(report.error),
        "error_unrounded": _finite(report.error_unrounded),
        "errors": {name: _finite(error) for name, error in report.errors.items()},
        **planning.savings(saved, plan),
        "warnings": doubts,
    }

    def show(console: Console) -> None:
        _show_errors(console, report)
        for doubt in doubts:
            console.print(f"warning: {doubt}", style="yellow", soft_wrap=True)
        planning.show_savings(console, saved, plan)
        console.print(f"file   {printable(str(out))}", soft_wrap=True)
        console.print(f"digest {digest}", soft_wrap=True)

    emit(result, as_json, show)


class _Chosen(Mapping[str, np.ndarray]):
    """Some tensors of a file, each read when it is asked for."""

    def __init__(self, file: DenseFile, names: list[str]) -> None:
        self._file = file
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_options(context: typer.Context, ratio: float | None, size: str | None, plan_file: Path | None) -> None:
    """Raise unless there is either a plan, or a ratio or size with its options."""
    if plan_file is None:
        if ratio is None and size is None:
            what = "say how much to compress: give --ratio, as 0.1, or --size, as '500 kB', or --plan"
            raise typer.BadParameter(what, param_hint="--ratio")
        planning.check_amount(ratio, size)
        return
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in _FREE}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    given += [name for name, value in (("ratio", ratio), ("size", size)) if value is not None]
    if given:
        what = ", ".join("--" + name.replace("_", "-") for name in given)
        raise typer.BadParameter(f"a plan decides everything: leave out {what}, or the plan", param_hint="--plan")


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(planning.read_json(path).decode("utf-8"))
    except (SmhError, UnicodeDecodeError) as error:
        raise PlanError(f"{str(path)!r} must be a plan in JSON, as smh plan writes it: {error}") from error


def _kept(file: DenseFile, plan: Plan) -> list[str]:
    """Return the names of the tensors that are kept as they are, or raise if a checkpoint cannot keep one."""
    generated = {tensor.name for tensor in plan.tensors}
    kept = [name for name in file if name not in generated]
    for name in kept:
        file.stored_dtype(name)
        if name.startswith(CARRIED):
            raise SmhError(f"names that begin with {CARRIED!r} are reserved: rename the tensor {name!r}")
    return kept


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _show_errors(console: Console, report: FitReport) -> None:
    table = Table("tensor")
    table.add_column("relative error", justify="right")
    for name, error in report.errors.items():
        table.add_row(printable(name), f"{error:.3g}")
    console.print(table)
    console.print(printable(str(report)), soft_wrap=True)
