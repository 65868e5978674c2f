"""``smh plan``: a plan for a model and its sizes; ``smh fit``: a checkpoint of a trained model."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType

from smh.backends import numpy as smh_numpy
from smh.cli.model import (
    CONVENTIONS,
    MODEL_HELP,
    axes_of,
    check_no_plan,
    convention_of,
    from_json,
    from_words,
    if_unclear,
    read_plan,
    selected,
    tensors_of,
)
from smh.cli.output import JSON, AsJson, Force, Lazy, Listing, Quiet, ShowAll, check_out, emit, progress, valid
from smh.cli.summary import generated_lines, grouped, kept_lines, listed, plan_lines
from smh.core.checks import check_one_of, whole_number
from smh.core.integers import pool_arrays
from smh.core.layout import LAYOUTS
from smh.core.plan import Plan
from smh.core.pools.base import BITS, EXPONENTS, MAX_BITS, MIN_BITS, OPTIMIZERS, named
from smh.core.rules import RULES, number
from smh.core.sizes import parse_ratio as ratio_of
from smh.core.sizes import parse_size
from smh.errors import PlanError, SmhError
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED, METADATA
from smh.files.dense import DenseTensors
from smh.files.formats import open_dense
from smh.models.compression import Compression, ModelTensor, check_fit, check_ratio, plan_for
from smh.models.report import make_report
from smh.models.roles import complete
from smh.strict_json import canonical_json
from smh.tables import counted
from smh.text import printable

_FREE = ("path", "out", "plan_file", "max_error", "force", "every", "quiet", "as_json")  # what goes with --plan
_PLANNED = ("ratio", "size", "bits", "exponents", "optimizer", "allow_expansion", "pool", "layout", "seed")  # as given


def parse_ratio(text: Any) -> Any:
    """Return the ratio that ``--ratio`` gives, as 0.1 or 10%."""
    try:
        return float(ratio_of(text))
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error


def _scale_rule(scale: str) -> str | float:
    """Return what ``--scale`` gives: the name of a rule, or a number."""
    if scale in (*RULES, "match"):
        return scale
    try:
        value = float(scale)
    except ValueError as error:
        raise PlanError(f"scale must be {', '.join(RULES)}, match or a number; got {scale!r}") from error
    return number(value)


def check_seed(seed: int) -> None:
    """Raise PlanError for a seed that no plan can have."""
    whole_number("seed", seed, 0, 2**32 - 1)


def _check_size(size: str) -> None:
    if not parse_size(size):
        raise PlanError(f"a size is at least 1 byte; got {size!r}")


def _check_error(error: float) -> None:
    if not error >= 0:
        raise PlanError(f"an error is a number of at least 0; got {error}")


Ratio = typer.Option(
    None,
    metavar="RATIO",
    parser=parse_ratio,
    help="Pool variables per generated weight, at most: 0.1 or 10%.",
)
Size = typer.Option(
    None,
    metavar="SIZE",
    help="Instead of a ratio: the most bytes of all tensors in the checkpoint, kept ones included: 5MB or '500 kB'.",
    callback=valid(_check_size),
)
Bits = typer.Option(
    BITS,
    help=f"Bits of the stored integers, {MIN_BITS} to {MAX_BITS}.",
    callback=valid(lambda bits: whole_number("bits", bits, MIN_BITS, MAX_BITS)),
)
Exponents = typer.Option(
    "free",
    help="free, or fixed in the plan, as training for small files needs.",
    callback=valid(lambda exponents: check_one_of("exponents", exponents, EXPONENTS)),
)
Optimizer = typer.Option(
    "sgd",
    help=f"The optimizer for training: {' or '.join(OPTIMIZERS)}.",
    callback=valid(lambda optimizer: check_one_of("optimizer", optimizer, OPTIMIZERS)),
)
Expansion = typer.Option(False, "--allow-expansion", help="Allow a ratio of 1 or more, which does not compress.")
Pool = typer.Option("matmul", help="matmul, kronecker or hash.", callback=valid(named))
Layout = typer.Option(
    "basic",
    help="How weights map to virtual weights: basic, cyclic or padding.",
    callback=valid(lambda layout: check_one_of("layout", layout, LAYOUTS)),
)
_SCALE_HELP = f"Initial scales: {', '.join(RULES)}, a number, or match (the deviation of the present values)."
Scale = typer.Option("fan_in", help=_SCALE_HELP, callback=valid(_scale_rule))
FixedScales = typer.Option(False, "--fixed-scales", help="Do not train the scales.")
Seed = typer.Option(0, help="Seed of the hash functions and the initial variables.", callback=valid(check_seed))
_PATTERN_HELP = "a name, the beginning or end of one, a glob such as '*.attn.*', or 're:' and a regular expression."
Include = typer.Option(
    [],
    metavar="PATTERN",
    help=f"Tensors to generate: {_PATTERN_HELP} Default: weight matrices, as names and shapes tell; biases, norms, "
    "statistics and integers are kept. Repeatable.",
)
Exclude = typer.Option([], metavar="PATTERN", help="Tensors to keep, given like --include. Repeatable.")
Convention = typer.Option(
    None,
    help="The meaning of axes, for scales by fans: torch (o i, o i h w), or default (i o, h w i o, as in JAX and "
    "Keras). Default: guessed from names; '...weight' means torch, '...kernel' means default.",
    callback=valid(lambda convention: check_one_of("convention", convention, CONVENTIONS)),
)


def run_plan(
    context: typer.Context,
    shapes: list[str] = typer.Argument(
        ...,
        metavar="MODEL",
        help=f"A model: {MODEL_HELP} Or shapes: words, fc1=64x100, or a file {{name: [sizes]}} in JSON.",
    ),
    ratio: float | None = Ratio,
    size: str | None = Size,
    bits: int = Bits,
    exponents: str = Exponents,
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
    every: bool = ShowAll,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Make a plan for a model, and show the savings. Nothing is trained or fitted.

    Values are read only for the scale match. Shapes without a dtype count as float32.
    """
    _check_options(context)
    words = len(shapes) > 1 or ("=" in shapes[0] and not os.path.exists(shapes[0]))
    path = None if words else Path(shapes[0])
    check_no_plan(*[path] if path else [])
    if out is not None:
        check_out(out, path, force=force, suffix=JSON)
    sizes = from_words(shapes) if path is None else from_json(path) if path.suffix.lower() == ".json" else None
    if sizes is None and path is not None:
        with open_dense(path) as file:
            if out is not None:
                check_out(out, *file.files, force=force, suffix=JSON)
            convention, told = convention_of(file.shapes, convention, scale, if_unclear(file, include))
            told += file.notes
            tensors = tensors_of(file, convention)
            plan = _make_plan(tensors, context.params, file)
    else:
        named = [ModelTensor(name, shape, 4 * math.prod(shape)) for name, shape in (sizes or {}).items()]
        convention, told = convention_of(sizes or {}, convention, scale, "default")
        tensors = complete(named, functools.partial(axes_of, convention))
        plan = _make_plan(tensors, context.params, None)
    if out is not None:
        with replacing(out) as temporary:
            Path(temporary).write_text(plan.to_json() + "\n", encoding="ascii")
    saved = _savings(tensors, plan)
    doubts = _doubts(saved)
    result = {"out": None if out is None else str(out), **saved, "warnings": doubts, "plan": plan.to_dict()}
    shown: list[RenderableType] = [*generated_lines(plan, every), *kept_lines(tensors, saved["kept"], every)]
    shown += [*plan_lines(plan), *told, _saved_line(saved)]
    shown += [] if out is None else [f"plan   {printable(str(out))}"]
    emit(result, as_json, shown, warnings=doubts, quiet=quiet)


def run_fit(
    context: typer.Context,
    path: Path = typer.Argument(..., metavar="MODEL", help=f"A model: {MODEL_HELP}"),
    out: Path = typer.Option(..., "--out", "-o", metavar="FILE", help="The checkpoint to write."),
    ratio: float | None = Ratio,
    size: str | None = Size,
    plan_file: Path | None = typer.Option(
        None,
        "--plan",
        metavar="PLAN",
        help="A plan, as smh plan -o writes it, or a checkpoint with one, instead of all other options.",
    ),
    bits: int = Bits,
    exponents: str = Exponents,
    optimizer: str = Optimizer,
    allow_expansion: bool = Expansion,
    pool: str = Pool,
    layout: str = Layout,
    scale: str = typer.Option("match", help=_SCALE_HELP, callback=valid(_scale_rule)),
    fixed_scales: bool = FixedScales,
    seed: int = Seed,
    include: list[str] = Include,
    exclude: list[str] = Exclude,
    convention: str | None = Convention,
    max_error: float | None = typer.Option(
        None,
        help="Fail, and write nothing, if the relative error of the weights is larger.",
        callback=valid(_check_error),
    ),
    force: bool = Force,
    every: bool = ShowAll,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Compress a trained model, with a loss: find variables whose weights come close, as a start for training.

    Other tensors are kept unchanged. Memory: about four times the generated weights in float32, and the kept tensors.
    Needs SciPy.
    """
    from smh.models.fit import fit_variables  # here, for it takes long to import

    _check_options(context)
    check_out(out, path, plan_file, force=force)
    check_no_plan(path)
    with open_dense(path) as file:
        check_out(out, *file.files, force=force)
        convention, told = convention_of(
            file.shapes, convention, scale if plan_file is None else "match", if_unclear(file, include)
        )
        told += file.notes
        tensors = tensors_of(file, convention)
        if plan_file is not None:
            plan = read_plan(plan_file)
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
        bars = progress(quiet)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            target = Lazy(generated, file.__getitem__)
            variables, report = fit_variables(plan, target, progress=not bars.disable)
        if max_error is not None and not report.error <= max_error:
            raise SmhError(f"the relative error is {report.error:.3g}, more than {max_error:g}: nothing was written")
        dense = {name: file.stored(name) for name in kept}
        if file.metadata:
            dense[METADATA] = np.frombuffer(canonical_json(file.metadata).encode("ascii"), dtype=np.uint8)
        with bars:
            bars.add_task("writing", total=None)
            digest = smh_numpy.save(out, plan, variables, dense)
    saved = _savings(tensors, plan)
    doubts = [*(str(warning.message) for warning in caught), *_doubts(saved)]
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
    shown: list[RenderableType] = [*_error_lines(report.errors, every), *kept_lines(tensors, saved["kept"], every)]
    shown += [str(report), *told, _saved_line(saved)]
    shown += [f"file   {printable(str(out))}", f"digest {digest}"]
    emit(result, as_json, shown, warnings=doubts, quiet=quiet)


def _error_lines(errors: Mapping[str, float], every: bool) -> Iterator[RenderableType]:
    """Iterate over the relative errors, by groups or tensor by tensor."""
    listing, more = Listing("generated", *[] if every else ["tensors"], "error" if every else "largest error"), ""
    if every:
        for name, error in errors.items():
            listing.add(name, f"{error:.3g}")
    else:
        more = listed(listing, grouped(errors, str), lambda x: (len(x), f"{max(errors[name] for name in x):.3g}"))
    yield listing
    yield from [more] if more else []
    yield ""


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
    try:
        check_ratio(values["ratio"], values["allow_expansion"])
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--ratio") from error


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _make_plan(tensors: Sequence[ModelTensor], given: Mapping[str, Any], values: DenseTensors | None) -> Plan:
    """Return the plan for the tensors of a model, by the options that a command was given."""
    options = {name: given[name] for name in _PLANNED} | {"learn_scale": not given["fixed_scales"]}
    scale = options["scale"] = _scale_rule(given["scale"])
    if scale == "match" and values is None:
        raise PlanError("scale 'match' needs present values: give a model, not shapes, or another scale")
    include, exclude = given["include"], given["exclude"]
    generated = selected(tensors, include, exclude)
    for tensor in tensors:
        if scale in RULES and tensor.name in generated and "o" not in (tensor.axes or "o"):
            raise PlanError(
                f"scale {scale!r} needs to know what the axes of {tensor.name!r} mean, and for {len(tensor.shape)} of "
                "them the order of axes is unknown: exclude the tensor, or choose a number or match as the scale"
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
    """Return the sizes of a plan, as ``--json`` prints them."""
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


def _doubts(saved: Mapping[str, Any]) -> list[str]:
    """Return warnings on a plan that generates little."""
    if saved["weights"] >= saved["kept_numbers"]:
        return []
    share = saved["weights"] / (saved["weights"] + saved["kept_numbers"])
    return [f"only {share:.0%} of the numbers are generated; the others are kept"]


def _saved_line(saved: Mapping[str, Any]) -> str:
    kept = counted(len(saved["kept"]), "kept tensor")
    share = saved["bytes_after"] / saved["bytes_before"]
    return (
        f"{saved['bytes_before']:,} bytes before, {saved['bytes_after']:,} after ({share:.1%}), "
        f"{saved['kept_bytes']:,} of them in {kept}"
    )
