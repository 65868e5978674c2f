"""``smh plan``: how a model of given shapes would be generated, and what that saves.

``smh fit`` shares with it which tensors of a file are generated, and by what options.
"""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

from smh.cli.output import AsJson, Force, check_out, emit, progress
from smh.core.patterns import compile_pattern
from smh.core.plan import Plan
from smh.core.pools.base import BITS, OPTIMIZERS
from smh.core.rules import RULES
from smh.core.views import MAX_AXES
from smh.errors import PlanError, near_names
from smh.files.atomic import replacing
from smh.files.dense import FLOATS, DenseFile
from smh.files.header import are_sizes
from smh.files.integers import pool_arrays
from smh.models.compression import Compression, ModelTensor, Report, make_report, plan_for
from smh.strict_json import MAX_HEADER, MAX_VALUES, parse, short
from smh.text import printable

_WORD = re.compile(r"(?P<name>.+)=(?P<sizes>\d{1,18}(x\d{1,18})*)", re.ASCII | re.DOTALL)
_AXES: dict[str, dict[int, str]] = {
    "default": {},  # those of Plan.build, by rank
    "torch": {2: "o i", 3: "o i w", 4: "o i h w", 5: "o i d h w"},
}
_LETTERS = [letter for letter in string.ascii_letters if letter not in "io"]
_SHOWN = 20  # kept tensors, in text

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
SCALE_HELP = f"Initial scales: {', '.join(RULES)}, a number, or match: the deviation of the present values."
Scale = typer.Option("fan_in", help=SCALE_HELP)
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


def run(
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
    check_amount(ratio, size)
    path = _file(shapes)
    if out is not None:
        check_out(out, *([path] if path else []), force=force)
    options = {"ratio": ratio, "size": size, "bits": bits, "optimizer": optimizer, "allow_expansion": allow_expansion}
    options |= {"pool": pool, "layout": layout, "scale": scale, "learn_scale": not fixed_scales, "seed": seed}
    if path is not None and path.suffix.lower() != ".json":
        with DenseFile(path) as file:
            tensors = tensors_of(file, convention)
            plan = make_plan(tensors, options, include, exclude, file)
    else:
        sizes = _from_json(path) if path is not None else _from_words(shapes)
        tensors = [
            ModelTensor(name, shape, 4 * math.prod(shape), _axes(convention, shape)) for name, shape in sizes.items()
        ]
        plan = make_plan(tensors, options, include, exclude, None)
    report = make_report(Compression(plan, tuple(tensors), ratio_asked=ratio), {})
    if out is not None:
        with replacing(out) as temporary:
            Path(temporary).write_text(plan.to_json() + "\n", encoding="ascii")
    result = {"out": None if out is None else str(out), **savings(report, plan), "plan": plan.to_dict()}

    def show(console: Console) -> None:
        console.print(str(plan), soft_wrap=True)
        show_savings(console, report, plan)
        if out is not None:
            console.print(f"plan   {printable(str(out))}", soft_wrap=True)

    emit(result, as_json, show)


def check_amount(ratio: float | None, size: str | None) -> None:
    """Raise unless there is either a ratio or a size."""
    if (ratio is None) == (size is None):
        what = "say how much to compress: give either --ratio, as 0.1, or --size, as '500 kB'"
        raise typer.BadParameter(f"{what}; got {'neither' if ratio is None else 'both'}", param_hint="--ratio")


def make_plan(
    tensors: Sequence[ModelTensor],
    options: Mapping[str, Any],
    include: Sequence[str],
    exclude: Sequence[str],
    values: Mapping[str, np.ndarray] | None,
) -> Plan:
    """Return the plan for some tensors.

    Parameters
    ----------
    tensors : sequence of ModelTensor
        All tensors of the model.
    options : mapping
        Those of :func:`smh.models.compression.plan_for`; the scale may be a number in text.
    include, exclude : sequence of str
        Regular expressions; each must match the whole name of a tensor.
    values : mapping of str to numpy.ndarray or None
        Present values of the tensors, for the scale ``match``.

    Returns
    -------
    Plan

    Raises
    ------
    PlanError
        If something does not fit.
    """
    scale = options["scale"]
    if scale == "match" and values is None:
        raise PlanError("scale 'match' needs present values: give a safetensors file, not shapes, or another scale")
    numbers: dict[str, Any] = {}
    if scale not in (*RULES, "match"):
        numbers["scale"] = _number(f"scale must be {', '.join(RULES)}, match or a number", scale, float)
    generated = _selected(tensors, include, exclude)
    many = [tensor for tensor in tensors if tensor.name in generated and len(tensor.shape) > len(_AXES["torch"]) + 1]
    if scale in RULES and many:
        raise PlanError(
            f"scale {scale!r} needs to know what the axes of {many[0].name!r} mean, and for {len(many[0].shape)} of "
            "them there is no convention: exclude the tensor, or choose a number or match as the scale"
        )
    with progress() as bars, np.errstate(all="ignore"):  # an error tells of values that are not finite
        task = bars.add_task("reading tensors", total=len(generated), visible=scale == "match")
        read = None if values is None else _Watched(values, lambda: bars.advance(task))
        chosen = {"include": generated.__contains__} if include or exclude else {}
        return plan_for(tensors, values=read, **{**options, **numbers, **chosen})


def tensors_of(file: DenseFile, convention: str) -> list[ModelTensor]:
    """Return the tensors of a plain file, with the meaning of their axes by a convention."""
    tensors = []
    for name, shape in file.shapes.items():
        dtype = file.dtypes[name]
        kept = f"it is of dtype {dtype}" if dtype not in FLOATS else "" if math.prod(shape) else "it is empty"
        tensors.append(ModelTensor(name, shape, file.sizes[name], _axes(convention, shape), kept=kept))
    return tensors


def savings(report: Report, plan: Plan) -> dict[str, Any]:
    """Return what a plan saves, as ``--json`` prints it."""
    return {
        "weights": report.num_weights,
        "variables": report.num_variables,
        "ratio": report.ratio,
        "bits": bits_of(plan),
        "capacity": plan.capacity,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "kept": {tensor.name: tensor.why for tensor in report.tensors if not tensor.generated},
        "kept_numbers": report.num_kept,
        "kept_bytes": report.bytes_after - plan.file_bytes,
    }


def bits_of(plan: Plan) -> list[int]:
    """Return how many bits the integers of the pool have, once each."""
    return sorted({bits for _, bits, _, _ in pool_arrays(plan)})


def show_savings(console: Console, report: Report, plan: Plan) -> None:
    """Print which tensors are kept, and the bytes of all before and after."""
    kept = [tensor for tensor in report.tensors if not tensor.generated]
    for tensor in kept[:_SHOWN]:
        why = printable(f"{tensor.name!r}: {tensor.why}")
        console.print(f"kept as it is: {why}", soft_wrap=True)
    if len(kept) > _SHOWN:
        console.print(f"kept as they are: {len(kept) - _SHOWN:,} more (--json names all)")
    share, kept_bytes = report.bytes_after / report.bytes_before, report.bytes_after - plan.file_bytes
    console.print(
        f"{report.bytes_before:,} bytes before, {report.bytes_after:,} after ({share:.1%}), {kept_bytes:,} of them in "
        f"{len(kept):,} kept tensors",
        soft_wrap=True,
    )


def read_json(path: Path) -> bytes:
    """Return the text of a JSON file, once it is known to be small enough to be parsed."""
    with open(path, "rb") as file:
        text = file.read(MAX_HEADER + 1)
    values = sum(text.count(character) for character in (b",", b"[", b"{"))
    if len(text) > MAX_HEADER or values > MAX_VALUES:
        raise PlanError(
            f"a file of JSON has at most {MAX_HEADER} bytes and {MAX_VALUES} values: {str(path)!r} has more"
        )
    return text


class _Watched(Mapping[str, np.ndarray]):
    """A mapping that says when a value is read."""

    def __init__(self, values: Mapping[str, np.ndarray], read: Callable[[], object]) -> None:
        self._values = values
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._values[name]
        self._read()
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _axes(convention: str, shape: tuple[int, ...]) -> str | None:
    """Return what axes mean, or None where the default of :meth:`smh.Plan.build` holds."""
    if convention not in _AXES:
        raise PlanError(f"convention must be one of {', '.join(_AXES)}; got {convention!r}")
    if len(shape) > 5:  # no meaning, but names, for scales that do not ask
        return " ".join(_LETTERS[: len(shape)])
    return _AXES[convention].get(len(shape))


def _selected(tensors: Sequence[ModelTensor], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Return the names of the tensors to be generated."""
    free = {tensor.name: tensor for tensor in tensors if not tensor.kept}
    chosen = {name for name, tensor in free.items() if len(tensor.shape) >= 2}
    if include:
        chosen = _matching("--include", include, tensors) & free.keys()
    chosen -= _matching("--exclude", exclude, tensors)
    if (include or exclude) and not chosen:
        kept = [f"{tensor.name!r}: {tensor.kept}" for tensor in tensors if tensor.kept]
        also = f"; not to be generated: {', '.join(kept[:3])}" if kept else ""
        raise PlanError(
            f"no tensor is left to generate: by default floats of two or more axes are; got {len(tensors)} tensors, "
            f"--include {short(list(include))}, --exclude {short(list(exclude))}{also}"
        )
    return chosen


def _matching(option: str, patterns: Iterable[str], tensors: Sequence[ModelTensor]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        try:
            compiled = compile_pattern(pattern, [tensor.name for tensor in tensors], option)
        except PlanError as error:
            raise typer.BadParameter(f"no regular expression that can be used: {error}", param_hint=option) from error
        names = {tensor.name for tensor in tensors if compiled.fullmatch(tensor.name)}
        if not names:
            near = near_names(pattern, [tensor.name for tensor in tensors])
            raise PlanError(f"{option} {pattern!r} matches no whole name: {near}")
        found |= names
    return found


def _file(shapes: Sequence[str]) -> Path | None:
    """Return the file that holds the shapes, or None if they are words."""
    if len(shapes) == 1 and ("=" not in shapes[0] or os.path.exists(shapes[0])):
        return Path(shapes[0])
    return None


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
    data = parse(read_json(path), repr(str(path)))
    if not isinstance(data, dict):
        raise PlanError(f"{str(path)!r} must hold an object {{name: [sizes]}}; got {short(data)}")
    for name, shape in data.items():
        if not are_sizes(shape) or len(shape) > MAX_AXES:
            raise PlanError(
                f"the shape of {short(name)} in {str(path)!r} must be a list of at most {MAX_AXES} sizes; "
                f"got {short(shape)}"
            )
    return {name: tuple(shape) for name, shape in data.items()}


def _number(what: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise PlanError(f"{what}; got {text!r}") from error
