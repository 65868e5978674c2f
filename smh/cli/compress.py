"""``smh plan``: how a model would be generated, and what that saves; ``smh fit``: a checkpoint from a plain file."""

from __future__ import annotations

import functools
import math
import os
import re
import string
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table

from smh.backends import numpy as smh_numpy
from smh.cli.output import AsJson, Force, Lazy, check_out, emit, first_lines, marked, number, progress
from smh.core.patterns import compile_pattern
from smh.core.plan import Plan
from smh.core.pools.base import BITS, OPTIMIZERS
from smh.core.rules import RULES
from smh.core.views import MAX_AXES
from smh.errors import PlanError, SmhError, near_names
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED
from smh.files.dense import FLOATS, DenseFile
from smh.files.header import are_sizes
from smh.files.integers import pool_arrays
from smh.models.compression import Compression, ModelTensor, check_fit, make_report, plan_for
from smh.models.roles import complete
from smh.strict_json import MAX_HEADER, check_limits, parse, short
from smh.text import printable

_WORD = re.compile(r"(?P<name>.+)=(?P<sizes>\d{1,18}(x\d{1,18})*)", re.ASCII | re.DOTALL)
_AXES: dict[str, dict[int, str]] = {
    "default": {},  # those of Plan.build, by rank
    "torch": {2: "o i", 3: "o i w", 4: "o i h w", 5: "o i d h w"},
}
_RANKS = 5  # the most axes that have a meaning
_LETTERS = [letter for letter in string.ascii_letters if letter not in "io"]
_SHOWN = 20  # kept tensors, in text
_FREE = ("path", "out", "plan_file", "force", "as_json")  # what goes with --plan
_PLANNED = ("ratio", "size", "bits", "optimizer", "allow_expansion", "pool", "layout", "seed")  # for plan_for, as given

Ratio = typer.Option(None, help="Pool variables per generated weight, an upper bound, as 0.1.")
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
    "default",
    help="What axes mean, for scales by fans: default (i o, h w i o, as in JAX and Keras), or torch (o i, o i h w).",
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
    convention: str = Convention,
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
    path = None if words else Path(shapes[0])
    if out is not None:
        check_out(out, path, force=force)
    if path is not None and path.suffix.lower() != ".json":
        with DenseFile(path) as file:
            tensors = _tensors_of(file, convention)
            plan = _make_plan(tensors, context.params, file)
    else:
        sizes = _from_json(path) if path is not None else _from_words(shapes)
        named = [ModelTensor(name, shape, 4 * math.prod(shape)) for name, shape in sizes.items()]
        tensors = complete(named, functools.partial(_axes, convention))
        plan = _make_plan(tensors, context.params, None)
    if out is not None:
        with replacing(out) as temporary:
            Path(temporary).write_text(plan.to_json() + "\n", encoding="ascii")
    saved = _savings(tensors, plan)
    result = {"out": None if out is None else str(out), **saved, "plan": plan.to_dict()}
    ends = [] if out is None else [f"plan   {printable(str(out))}"]
    emit(result, as_json, [str(plan), *_savings_lines(saved), *ends])


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
    convention: str = Convention,
    force: bool = Force,
    as_json: bool = AsJson,
) -> None:
    """Find variables whose weights come close to given ones, and write a checkpoint: a warm start for training.

    Other tensors are kept as they are. The file is read one tensor at a time. Memory is needed for some float64 vectors
    as long as all generated weights together, and to fit the pool. Needs SciPy.
    """
    from smh.models.fit import fit_variables  # here, for it takes long to import

    _check_options(context)
    check_out(out, path, plan_file, force=force)
    with DenseFile(path) as file:
        tensors = _tensors_of(file, convention)
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
        bars = progress()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            wanted = Lazy(generated, file.__getitem__)
            variables, report = fit_variables(plan, wanted, progress=bars.console.is_terminal)
        doubts = [str(warning.message) for warning in caught]
        with bars:
            bars.add_task("writing", total=None)
            digest = smh_numpy.save(out, plan, variables, {name: file.stored(name) for name in kept})
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
    emit(result, as_json, [table, str(report), *doubtful, *_savings_lines(saved), *ends])


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
        return Plan.from_json(_read_json(path))
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


def _tensors_of(file: DenseFile, convention: str) -> tuple[ModelTensor, ...]:
    """Return the tensors of a plain file, with the meaning of their axes by a convention."""
    tensors = []
    for name, shape in file.shapes.items():
        dtype = file.dtypes[name]
        kept = f"it is of dtype {dtype}" if dtype not in FLOATS else "" if math.prod(shape) else "it is empty"
        tensors.append(ModelTensor(name, shape, file.sizes[name], kept=kept))
    return complete(tensors, functools.partial(_axes, convention))


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
    lines = [f"kept as it is: {name!r}: {why}" for name, why in saved["kept"].items()]
    yield from first_lines(lines, _SHOWN, "kept as they are:", style="")
    yield (
        f"{saved['bytes_before']:,} bytes before, {saved['bytes_after']:,} after "
        f"({saved['bytes_after'] / saved['bytes_before']:.1%}), {saved['kept_bytes']:,} of them in {len(lines):,} kept "
        "tensors"
    )


def _read_json(path: Path) -> bytes:
    """Return the content of a JSON file, or so much that a parser sees that it is too long."""
    with open(path, "rb") as file:
        return file.read(MAX_HEADER + 1)


def _axes(convention: str, shape: tuple[int, ...]) -> str | None:
    """Return what axes mean, or None where the default of :meth:`smh.Plan.build` holds."""
    if convention not in _AXES:
        raise PlanError(f"convention must be one of {', '.join(_AXES)}; got {convention!r}")
    if len(shape) > _RANKS:  # no meaning, but names, for scales that do not ask
        return " ".join(_LETTERS[: len(shape)])
    return _AXES[convention].get(len(shape))


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
            raise PlanError(f"{option} {pattern!r} matches no whole name: {near_names(pattern, names)}")
        found |= matches
    return found


def _from_words(words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match["name"] in sizes:
            why = "give one file, or words such as fc1=64x100, each name once"
            raise typer.BadParameter(f"{why}; got {short(word)}", param_hint="SHAPES")
        sizes[match["name"]] = tuple(int(size) for size in match["sizes"].split("x"))
    return sizes


def _from_json(path: Path) -> dict[str, tuple[int, ...]]:
    text, where = _read_json(path), repr(str(path))
    check_limits(text, where)
    data = parse(text, where)
    if not isinstance(data, dict):
        raise PlanError(f"{where} must hold an object {{name: [sizes]}}; got {short(data)}")
    for name, shape in data.items():
        if not are_sizes(shape) or len(shape) > MAX_AXES:
            raise PlanError(
                f"the shape of {short(name)} in {where} must be a list of at most {MAX_AXES} sizes; got {short(shape)}"
            )
    return {name: tuple(shape) for name, shape in data.items()}
