"""The input of ``smh plan`` and ``smh fit``: names, shapes, which tensors to generate, and the meaning of axes."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from smh import porting
from smh.core.patterns import compile_pattern
from smh.core.plan import Plan
from smh.core.pools.base import LIMIT
from smh.core.rules import RULES
from smh.core.selection import select
from smh.core.views import MAX_AXES
from smh.errors import CheckpointError, PlanError, PortError, SmhError, near_names
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.dense import FLOATS, DenseFile, DenseTensors
from smh.files.formats import open_dense
from smh.files.header import OtherFileError, are_sizes
from smh.models.compression import ModelTensor
from smh.models.roles import complete
from smh.strict_json import MAX_HEADER, check_limits, parse, short
from smh.tables import counted
from smh.text import some

MODEL_HELP = "a file (.safetensors, .npz, .pt, .pth or .bin), the index of several files (.index.json), or a folder."

_WORD = re.compile(r"(?P<name>.+)=(?P<sizes>\d{1,18}(x\d{1,18})*)", re.ASCII | re.DOTALL)
_AXES: dict[str, dict[int, str]] = {
    "default": {},  # those of Plan.build, by rank
    "torch": {2: "o i", 3: "o i w", 4: "o i h w", 5: "o i d h w"},
}
CONVENTIONS = tuple(_AXES)
_SHOWN = {"default": "i o, h w i o, as in JAX and Keras", "torch": "o i, o i h w"}
_REGEX = "re:"  # what regular expressions begin with
_RANKS = 5  # the most axes that have a meaning
_LETTERS = [letter for letter in string.ascii_letters if letter not in "io"]


def from_words(words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return shapes from words such as ``fc1=64x100``."""
    sizes: dict[str, tuple[int, ...]] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match["name"] in sizes:
            why = "give one file, or words such as fc1=64x100, each name once"
            raise typer.BadParameter(f"{why}; got {short(word)}", param_hint="MODEL")
        shape = tuple(int(size) for size in match["sizes"].split("x"))
        if not (min(shape) and math.prod(shape) < LIMIT):
            why = f"sizes are at least 1, and a tensor has at most {LIMIT - 1} elements"
            raise typer.BadParameter(f"{why}; got {short(word)}", param_hint="MODEL")
        sizes[match["name"]] = shape
    return sizes


def from_json(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Return shapes from a file of JSON, ``{name: [sizes]}``, or None if it is the index of a model."""
    text, where = _read_json(path), repr(str(path))
    check_limits(text, where)
    data = parse(text, where)
    if not isinstance(data, dict):
        raise PlanError(f"{where} must hold an object {{name: [sizes]}}; got {short(data)}")
    if isinstance(data.get("weight_map"), dict):
        return None
    for name, shape in data.items():
        if not are_sizes(shape) or len(shape) > MAX_AXES:
            raise PlanError(
                f"the shape of {short(name)} in {where} must be a list of at most {MAX_AXES} sizes; got {short(shape)}"
            )
    return {name: tuple(shape) for name, shape in data.items()}


def read_plan(path: Path) -> Plan:
    """Return a plan from a file of JSON, or that of a checkpoint."""
    try:
        text = b"" if path.is_dir() else _read_json(path)
        return read_checkpoint(path).plan if path.is_dir() or _is_binary(text) else Plan.from_json(text)
    except (CheckpointError, PlanError) as error:
        what = f"{str(path)!r} must be a plan in JSON, as smh plan -o writes it, or a checkpoint of smh"
        raise PlanError(f"{what}: {error}") from error


def check_no_plan(*paths: Path) -> None:
    """Raise for the plan of ``smh plan -o``, which is JSON like the index of a model, but holds no tensors."""
    for path in paths:
        if path.suffix.lower() == ".json":
            with contextlib.suppress(PlanError):
                Plan.from_json(_read_json(path))
                raise SmhError(f"{str(path)!r} is a plan, which holds no tensors: smh fit --plan and smh plot take it")


def read_mapping(path: Path) -> porting.Mapping:
    """Return a mapping from a file of JSON."""
    try:
        return porting.Mapping.load(path)
    except PortError as error:
        why, text = str(error), _read_json(path)
        if _is_binary(text):
            why = "it is not JSON"
        elif isinstance(error.__cause__, PortError):  # it is JSON, though not that of a mapping
            data = parse(text, "it")
            if isinstance(data, dict) and "settings" not in data:
                why = "it is a plan" if "pool" in data else f"its keys are {some(sorted(data)) or 'none'}"
        raise PortError(f"{str(path)!r} must be a mapping in JSON, as Mapping.save writes it: {why}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint; the error for a model of another kind says what it is."""
    check_no_plan(path)
    try:
        return checkpoint.read(path)
    except CheckpointError as error:
        try:
            with open_dense(path) as file:
                kind = file.kind
        except OtherFileError as other:  # it says more, as of Keras
            raise CheckpointError(str(other)) from error
        except (SmhError, OSError):
            kind = DenseFile.kind
        if kind == DenseFile.kind:  # the first error says what is wrong with it
            raise
        article = "an" if kind.startswith("a") else "a"
        what = f"it is {article} {kind}, not a checkpoint of smh: smh fit converts it"
        raise CheckpointError(f"cannot load {str(path)!r}: {what}") from error


def _is_binary(text: bytes) -> bool:
    """Say whether a file holds no text; files of tensors begin with a length, which has zeros."""
    return b"\0" in text[:64]


def _read_json(path: Path) -> bytes:
    """Return the content of a JSON file, or so much that a parser sees that it is too long."""
    with open(path, "rb") as file:
        return file.read(MAX_HEADER + 1)


def tensors_of(file: DenseTensors, convention: str) -> tuple[ModelTensor, ...]:
    """Return the tensors of a model, with the meaning of their axes by a convention."""
    tensors: list[ModelTensor] = []
    aliases: dict[str, list[str]] = {name: [] for name in file}
    for alias, name in file.aliases.items():
        aliases[name].append(alias)
    for name, shape in file.shapes.items():
        dtype = file.dtypes[name]
        kept = f"it is of dtype {dtype}" if dtype not in FLOATS else "" if math.prod(shape) else "it is empty"
        tensors.append(ModelTensor(name, shape, file.sizes[name], aliases=tuple(aliases[name]), kept=kept))
    return complete(tensors, functools.partial(axes_of, convention))


def if_unclear(file: DenseTensors, include: Sequence[str]) -> str | None:
    """Return the convention where names do not tell: one if nothing is generated, which is the error to tell of."""
    tensors = tensors_of(file, "default")
    return None if any(not (tensor.kept if include else tensor.why_kept) for tensor in tensors) else "default"


def convention_of(
    shapes: Mapping[str, tuple[int, ...]], given: str | None, scale: str, unclear: str | None = None
) -> tuple[str, list[str]]:
    """Return the meaning of axes, given or guessed from names, and a line that says so if it matters.

    ``unclear`` is the convention where names do not tell; without it, that is an error.
    """
    if given is not None or scale not in RULES:
        return given or "default", []
    ends = {re.split("[./]", name)[-1] for name, shape in shapes.items() if len(shape) > 1}
    torch, default = "weight" in ends, not ends.isdisjoint(("kernel", "embedding", "embeddings"))
    if torch != default:
        guessed = "torch" if torch else "default"
    elif unclear is None:
        raise PlanError(
            f"names do not tell what axes mean, which scale {scale!r} needs to know: give --convention torch (o i, o i "
            "h w) or --convention default (i o, h w i o, as in JAX and Keras), or another scale"
        )
    else:
        guessed = unclear
    why = "guessed from names" if torch != default else "names do not tell"
    return guessed, [f"axes: convention {guessed!r} ({_SHOWN[guessed]}), {why}; --convention changes it"]


def axes_of(convention: str, shape: tuple[int, ...]) -> str | None:
    """Return the meaning of axes, or None for the default of :meth:`smh.Plan.build`."""
    if len(shape) > _RANKS:  # no meaning, but names, for scales that do not ask
        return " ".join(_LETTERS[: len(shape)])
    return _AXES[convention].get(len(shape))


def selected(tensors: Sequence[ModelTensor], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Return the names of the tensors to be generated."""
    owners = {name: tensor for tensor in tensors for name in (tensor.name, *tensor.aliases)}
    names = {tensor.name for tensor in tensors if not tensor.why_kept}
    if include:
        free = {tensor.name for tensor in tensors if not tensor.kept}
        names = _matching("--include", include, owners) & free
    names -= _matching("--exclude", exclude, owners)
    if (include or exclude) and not names:
        kept = [f"{tensor.name!r}: {tensor.kept}" for tensor in tensors if tensor.kept]
        also = f"; not to be generated: {', '.join(kept[:3])}" if kept else ""
        raise PlanError(
            f"no tensor is left to generate: by default weight matrices are; got {counted(len(tensors), 'tensor')}, "
            f"--include {short(list(include))}, --exclude {short(list(exclude))}{also}"
        )
    return names


def _matching(option: str, patterns: Iterable[str], owners: Mapping[str, ModelTensor]) -> set[str]:
    """Return the tensors that patterns match: names, their beginnings and ends, globs, or regular expressions."""
    shapes = {name: tensor.shape for name, tensor in owners.items()}
    matching: set[str] = set()
    for pattern in patterns:
        expression = pattern.removeprefix(_REGEX)
        try:
            if pattern.startswith(_REGEX):
                compiled = compile_pattern(expression, shapes, repr(pattern))
                hits = set(filter(compiled.fullmatch, shapes))
            else:
                hits = set(select(shapes, [pattern], None))
        except PlanError as error:
            if pattern.startswith(_REGEX):
                raise typer.BadParameter(str(error).removesuffix(f"; got {expression!r}"), param_hint=option) from error
            hits = set()
        if not hits:
            raise PlanError(f"{option} {pattern!r} matches no tensor: {_hint(option, pattern, shapes)}")
        matching |= {owners[name].name for name in hits}
    return matching


def _hint(option: str, pattern: str, names: Mapping[str, Any]) -> str:
    """Return a hint for a pattern that matches nothing."""
    with contextlib.suppress(PlanError):
        if any(map(compile_pattern(pattern, names, option).fullmatch, names)):
            return f"as a regular expression it is written {option} {_REGEX + pattern!r}"
    return near_names(pattern, names)
