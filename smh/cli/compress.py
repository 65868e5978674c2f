"""``smh plan``: how a model would be generated, and what that saves; ``smh fit``: a checkpoint from a plain file."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table

from smh.backends import numpy as smh_numpy
from smh.cli.model import axes_of, convention_of, from_json, from_words, read_json, tensors_of
from smh.cli.output import AsJson, Force, Lazy, check_out, emit, first_lines, marked, number, progress
from smh.core.patterns import compile_pattern
from smh.core.plan import Plan
from smh.core.pools.base import BITS, OPTIMIZERS
from smh.core.rules import RULES
from smh.errors import PlanError, SmhError, near_names
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED, METADATA
from smh.files.dense import DenseFile
from smh.files.integers import pool_arrays
from smh.models.compression import Compression, ModelTensor, check_fit, make_report, plan_for
from smh.models.roles import complete
from smh.strict_json import canonical_json, short
from smh.text import printable

_SHOWN = 20  # kept tensors, in text
_FREE = ("path", "out", "plan_file", "max_error", "force", "as_json")  # what goes with --plan
_PLANNED = ("ratio", "size", "bits", "optimizer", "allow_expansion", "pool", "layout", "seed")  # for plan_for, as given


def _parse_ratio(text: Any) -> Any:
    """Return the number that ``--ratio`` gives, as 0.1 or 10%."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1) if isinstance(text, str) else text
    except ValueError as error:
        raise typer.BadParameter(f"a ratio is a number, such as 0.1 or 10%; got {text!r}") from error


Ratio = typer.Option(
    None,
    metavar="RATIO",
    parser=_parse_ratio,
    help="Pool variables per generated weight, an upper bound, such as 0.1 or 10%.",
)
Size = typer.Option(
    None,
    metavar="SIZE",
    help="In place of a ratio: the most bytes of all tensors in the checkpoint, kept ones included, as '500 kB'.",
)
Bits = typer.Option(BITS, help="Bits of the integers that are stored and generate weights, 2 to 16.")
Optimizer = typer.Option("sgd", help=f"The optimiser that will train it, {' or '.join(OPTIMIZERS)}.")
Expansion = typer.Option(False, "--allow-expansion", help="Allow a ratio of 1 or more, which compresses nothing.")
Pool = typer.Option("matmul", help="matmul, kronecker or hash.")
Layout = typer.Option("basic", help="Which virtual weight a weight shows: basic, cyclic or padding.")
_SCALE_HELP = f"Initial scales: {', '.join(RULES)}, a number, or match: the deviation of the present values."
Scale = typer.Option("fan_in", help=_SCALE_HELP)
FixedScales = typer.Option(False, "--fixed-scales", help="Keep initial scales; by default scales are trained.")
Seed = typer.Option(0, help="Decides hash functions and initial variables.")
Include = typer.Option(
    [],
    metavar="PATTERN",
    help="Generate tensors whose whole names match a regular expression; default: floats of two or more axes. "
    "Repeatable.",
)
Exclude = typer.Option([], metavar="PATTERN", help="Keep tensors whose whole names match, as they are. Repeatable.")
Convention = typer.Option(
    None,
    help="What axes mean, for scales by fans: default (i o, h w i o, as in JAX and Keras), or torch (o i, o i h w). "
    "Without it, names of a safetensors file tell: '...weight' is torch, '...kernel' the default.",
)


def run_plan(
    context: typer.Context,
    shapes: list[str] = typer.Argument(
        ..., metavar="SHAPES", help="A file, .safetensors or .json ({name: [sizes]}), or words such as fc1=64x100."
    ),
    ratio: float | None = Ratio,
    size: str | None = Size,
    bits: int = Bits,
    optimizer: str = Optimizer,
    allow_expansion: bool = Expansion,
    pool: str = Pool,
    layout: str = Layout,
    scale: str = Scale,
    fixed_scales: bool = FixedScales,
    seed: int = Seed,
    include: list[str] = Include,
    exclude: list[str] = Exclude,
    convention: str | None = Convention,
    out: Path | None = typer.Option(None, "--out", "-o", metavar="PLAN", help="Write the plan, in JSON, to this file."),
    force: bool = Force,
    as_json: bool = AsJson,
) -> None:
    """Make a plan for the shapes of a model, and show what it saves.

    Only the header of a safetensors file is read, unless the scale is match. Kept tensors count with their size in the
    file; shapes without dtypes count as float32.
    """
    _check_options(context)
    words = len(shapes) > 1 or ("=" in shapes[0] and not os.path.exists(shapes[0]))
    path, told = None if words else Path(shapes[0]), list[str]()
    if out is not None:
        check_out(out, path, force=force)
    if path is not None and path.suffix.lower() != ".json":
        with DenseFile(path) as file:
            convention, told = convention_of(file, convention, scale)
            tensors = tensors_of(file, convention)
            plan = _make_plan(tensors, context.params, file)
    else:
        sizes = from_json(path) if path is not None else from_words(shapes)
        named = [ModelTensor(name, shape, 4 * math.prod(shape)) for name, shape in sizes.items()]
        tensors = complete(named, functools.partial(axes_of, convention or "default"))
        plan = _make_plan(tensors, context.params, None)
    if out is not None:
        with replacing(out) as temporary:
            Path(temporary).write_text(plan.to_json() + "\n", encoding="ascii")
    saved = _savings(tensors, plan)
    result = {"out": None if out is None else str(out), **saved, "plan": plan.to_dict()}
    ends = [] if out is None else [f"plan   {printable(str(out))}"]
    emit(result, as_json, [str(plan), *told, *_savings_lines(saved), *ends])


def run_fit(
    context: typer.Context,
    path: Path = typer.Argument(..., metavar="DENSE", help="A plain safetensors file."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FILE", help="The checkpoint to write."),
    ratio: float | None = Ratio,
    size: str | None = Size,
    plan_file: Path | None = typer.Option(
        None, "--plan", metavar="PLAN", help="A plan, in JSON, as smh plan writes it, in place of all options."
    ),
    bits: int = Bits,
    optimizer: str = Optimizer,
    allow_expansion: bool = Expansion,
    pool: str = Pool,
    layout: str = Layout,
    scale: str = typer.Option("match", help=_SCALE_HELP),
    fixed_scales: bool = FixedScales,
    seed: int = Seed,
    include: list[str] = Include,
    exclude: list[str] = Exclude,
    convention: str | None = Convention,
    max_error: float | None = typer.Option(
        None, help="Fail, and write nothing, if the relative error of the weights is larger."
    ),
    force: bool = Force,
    as_json: bool = AsJson,
) -> None:
    """Compress a trained model, with a loss: find variables whose weights come close to given ones, to train on.

    Other tensors are kept as they are. The file is read one tensor at a time. Memory is needed for about four times the
    generated weights in float32. Needs SciPy.
    """
    from smh.models.fit import fit_variables  # here, for it takes long to import

    _check_options(context)
    check_out(out, path, plan_file, force=force)
    with DenseFile(path) as file:
        convention, told = convention_of(file, convention, scale if plan_file is None else "match")
        tensors = tensors_of(file, convention)
        if plan_file is not None:
            plan = _read_plan(plan_file)
            check_fit(tensors, plan)
        else:
            plan = _make_plan(tensors, context.params, file)
        generated = {tensor.name: tensor.viewed_shape for tensor in plan.tensors}
        kept = [name for name in file if name not in generated]
        for name in kept:  # before any work is done
            file.stored_dtype(name)
            if name.startswith(CARRIED):
                raise SmhError(f"names that begin with {CARRIED!r} are reserved: rename the tensor {name!r}")
        _check_memory(plan)
        bars = progress()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            wanted = Lazy(generated, file.__getitem__)
            variables, report = fit_variables(plan, wanted, progress=bars.console.is_terminal)
        if max_error is not None and not report.error <= max_error:
            raise SmhError(f"the relative error is {report.error:.3g}, more than {max_error:g}: nothing was written")
        doubts = [str(warning.message) for warning in caught]
        dense = {name: file.stored(name) for name in kept}
        if file.metadata:
            dense[METADATA] = np.frombuffer(canonical_json(file.metadata).encode("ascii"), dtype=np.uint8)
        with bars:
            bars.add_task("writing", total=None)
            digest = smh_numpy.save(out, plan, variables, dense)
    saved = _savings(tensors, plan)
    result = {
        "file": str(path),
        "out": str(out),
        "digest": digest,
        "bytes": out.stat().st_size,
        "error": _finite(report.error),
        "error_unrounded": _finite(report.error_unrounded),
        "errors": {name: _finite(error) for name, error in report.errors.items()},
        **saved,
        "warnings": doubts,
    }
    table = Table("tensor", number("relative error"))
    for name, error in report.errors.items():
        table.add_row(printable(name), f"{error:.3g}")
    doubtful = [marked(f"warning: {doubt}", "yellow") for doubt in doubts]
    ends = [f"file   {printable(str(out))}", f"digest {digest}"]
    emit(result, as_json, [table, str(report), *doubtful, *told, *_savings_lines(saved), *ends])


def _check_options(context: typer.Context) -> None:
    """Raise unless there is a plan and nothing that it decides, or else either a ratio or a size."""
    values = context.params
    if values.get("plan_file") is not None:
        sources = {name: context.get_parameter_source(name) for name in values if name not in _FREE}
        given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
        if given:
            what = ", ".join("--" + name.replace("_", "-") for name in given)
            raise typer.BadParameter(f"a plan decides everything: leave out {what}, or the plan", param_hint="--plan")
    elif (values["ratio"] is None) == (values["size"] is None):
        what = "say how much to compress: give either --ratio, as 0.1, or --size, as '500 kB'"
        also = ", or --plan" if "plan_file" in values else ""
        got = "neither" if values["ratio"] is None else "both"
        raise typer.BadParameter(f"{what}{also}; got {got}", param_hint="--ratio")


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(read_json(path))
    except PlanError as error:
        raise PlanError(f"{str(path)!r} must be a plan in JSON, as smh plan writes it: {error}") from error


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _make_plan(tensors: Sequence[ModelTensor], given: Mapping[str, Any], values: DenseFile | None) -> Plan:
    """Return the plan for the tensors of a model, by the options that a command was given."""
    options = {name: given[name] for name in _PLANNED} | {"learn_scale": not given["fixed_scales"]}
    scale = options["scale"] = given["scale"]
    if scale == "match":
        if values is None:
            raise PlanError("scale 'match' needs present values: give a safetensors file, not shapes, or another scale")
    elif scale not in RULES:
        try:
            options["scale"] = float(scale)
        except ValueError as error:
            raise PlanError(f"scale must be {', '.join(RULES)}, match or a number; got {scale!r}") from error
    include, exclude = given["include"], given["exclude"]
    generated = _selected(tensors, include, exclude)
    for tensor in tensors:
        if scale in RULES and tensor.name in generated and "o" not in (tensor.axes or "o"):
            raise PlanError(
                f"scale {scale!r} needs to know what the axes of {tensor.name!r} mean, and for {len(tensor.shape)} of "
                "them there is no convention: exclude the tensor, or choose a number or match as the scale"
            )
    if include or exclude:
        options["include"] = generated.__contains__
    with progress() as bars, np.errstate(all="ignore"):  # an error tells of values that are not finite
        if values is None:
            return plan_for(tensors, **options)
        task = bars.add_task("reading tensors", total=len(generated), visible=scale == "match")

        def read(name: str) -> np.ndarray:
            bars.advance(task)
            return values[name]

        return plan_for(tensors, values=Lazy(values.shapes, read), **options)


def _check_memory(plan: Plan) -> None:
    """Say beforehand if a fit needs more memory than there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # a system that does not tell
        return
    needed = 16 * max(plan.capacity, plan.num_weights)
    if needed > free:
        typer.echo(f"warning: fitting takes about {needed:,} bytes of memory, and {free:,} are free", err=True)


def _savings(tensors: Sequence[ModelTensor], plan: Plan) -> dict[str, Any]:
    """Return what a plan saves, as ``--json`` prints it."""
    report = make_report(Compression(plan, tuple(tensors)), {})
    return {
        "weights": report.num_weights,
        "variables": report.num_variables,
        "ratio": report.ratio,
        "bits": sorted({bits for _, bits, _, _ in pool_arrays(plan)}),
        "capacity": plan.capacity,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "kept": {tensor.name: tensor.why for tensor in report.tensors if not tensor.generated},
        "kept_numbers": report.num_kept,
        "kept_bytes": report.bytes_after - plan.file_bytes,
    }


def _savings_lines(saved: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Iterate over lines on which tensors are kept, and on the bytes of all before and after."""
    if saved["weights"] < saved["kept_numbers"]:
        share = saved["weights"] / (saved["weights"] + saved["kept_numbers"])
        yield marked(f"warning: only {share:.0%} of the numbers are generated; the others are kept, as below", "yellow")
    lines = [f"kept as it is: {name!r}: {why}" for name, why in saved["kept"].items()]
    yield from first_lines(lines, _SHOWN, "kept as they are:", style="")
    yield (
        f"{saved['bytes_before']:,} bytes before, {saved['bytes_after']:,} after "
        f"({saved['bytes_after'] / saved['bytes_before']:.1%}), {saved['kept_bytes']:,} of them in {len(lines):,} kept "
        "tensors"
    )


def _selected(tensors: Sequence[ModelTensor], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Return the names of the tensors to be generated."""
    names = [tensor.name for tensor in tensors]
    chosen = {tensor.name for tensor in tensors if not tensor.why_kept}
    if include:
        free = {tensor.name for tensor in tensors if not tensor.kept}
        chosen = _matching("--include", include, names) & free
    chosen -= _matching("--exclude", exclude, names)
    if (include or exclude) and not chosen:
        kept = [f"{tensor.name!r}: {tensor.kept}" for tensor in tensors if tensor.kept]
        also = f"; not to be generated: {', '.join(kept[:3])}" if kept else ""
        raise PlanError(
            f"no tensor is left to generate: by default floats of two or more axes are; got {len(tensors)} tensors, "
            f"--include {short(list(include))}, --exclude {short(list(exclude))}{also}"
        )
    return chosen


def _matching(option: str, patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        try:
            compiled = compile_pattern(pattern, names, option)
        except PlanError as error:
            raise typer.BadParameter(f"no regular expression that can be used: {error}", param_hint=option) from error
        matches = set(filter(compiled.fullmatch, names))
        if not matches:
            below = any(name.startswith((f"{pattern}.", f"{pattern}/")) for name in names)
            hint = f"did you mean '{pattern}[./].*', all below it?" if below else near_names(pattern, names)
            raise PlanError(f"{option} {pattern!r} is a regular expression, which matches no whole name: {hint}")
        found |= matches
    return found
