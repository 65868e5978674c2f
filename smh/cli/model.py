"""What ``smh plan`` and ``smh fit`` are told of a model: names, shapes, and what axes mean."""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Iterable
from pathlib import Path

import typer

from smh.core.rules import RULES
from smh.core.views import MAX_AXES
from smh.errors import PlanError
from smh.files.dense import FLOATS, DenseFile
from smh.files.header import are_sizes
from smh.models.compression import ModelTensor
from smh.models.roles import complete
from smh.strict_json import MAX_HEADER, check_limits, parse, short

_WORD = re.compile(r"(?P<name>.+)=(?P<sizes>\d{1,18}(x\d{1,18})*)", re.ASCII | re.DOTALL)
_AXES: dict[str, dict[int, str]] = {
    "default": {},  # those of Plan.build, by rank
    "torch": {2: "o i", 3: "o i w", 4: "o i h w", 5: "o i d h w"},
}
_RANKS = 5  # the most axes that have a meaning
_LETTERS = [letter for letter in string.ascii_letters if letter not in "io"]


def from_words(words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return shapes from words such as ``fc1=64x100``."""
    sizes: dict[str, tuple[int, ...]] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match["name"] in sizes:
            why = "give one file, or words such as fc1=64x100, each name once"
            raise typer.BadParameter(f"{why}; got {short(word)}", param_hint="SHAPES")
        sizes[match["name"]] = tuple(int(size) for size in match["sizes"].split("x"))
    return sizes


def from_json(path: Path) -> dict[str, tuple[int, ...]]:
    """Return shapes from a file of JSON, ``{name: [sizes]}``."""
    text, where = read_json(path), repr(str(path))
    check_limits(text, where)
    data = parse(text, where)
    if not isinstance(data, dict):
        raise PlanError(f"{where} must hold an object {{name: [sizes]}}; got {short(data)}")
    if "weight_map" in data:
        raise PlanError(f"{where} is the index of a model in several files: give one of these, or one file of them all")
    for name, shape in data.items():
        if not are_sizes(shape) or len(shape) > MAX_AXES:
            raise PlanError(
                f"the shape of {short(name)} in {where} must be a list of at most {MAX_AXES} sizes; got {short(shape)}"
            )
    return {name: tuple(shape) for name, shape in data.items()}


def read_json(path: Path) -> bytes:
    """Return the content of a JSON file, or so much that a parser sees that it is too long."""
    with open(path, "rb") as file:
        return file.read(MAX_HEADER + 1)


def tensors_of(file: DenseFile, convention: str) -> tuple[ModelTensor, ...]:
    """Return the tensors of a plain file, with the meaning of their axes by a convention."""
    tensors = []
    for name, shape in file.shapes.items():
        dtype = file.dtypes[name]
        kept = f"it is of dtype {dtype}" if dtype not in FLOATS else "" if math.prod(shape) else "it is empty"
        tensors.append(ModelTensor(name, shape, file.sizes[name], kept=kept))
    return complete(tensors, functools.partial(axes_of, convention))


def convention_of(file: DenseFile, given: str | None, scale: str) -> tuple[str, list[str]]:
    """Return what axes mean, by the names of tensors where it is not given, and a line that says so if it counts."""
    if given is not None or scale not in RULES:
        return given or "default", []
    ends = {re.split("[./]", name)[-1] for name, shape in file.shapes.items() if len(shape) > 1}
    torch, default = "weight" in ends, not ends.isdisjoint(("kernel", "embedding", "embeddings"))
    if torch == default:
        raise PlanError(
            f"names do not tell what axes mean, which scale {scale!r} needs to know: give --convention torch (o i, o i "
            "h w) or --convention default (i o, h w i o, as in JAX and Keras), or another scale"
        )
    found = "torch" if torch else "default"
    return found, [f"axes by the convention {found!r}, as names tell (--convention)"]


def axes_of(convention: str, shape: tuple[int, ...]) -> str | None:
    """Return what axes mean, or None where the default of :meth:`smh.Plan.build` holds."""
    if convention not in _AXES:
        raise PlanError(f"convention must be one of {', '.join(_AXES)}; got {convention!r}")
    if len(shape) > _RANKS:  # no meaning, but names, for scales that do not ask
        return " ".join(_LETTERS[: len(shape)])
    return _AXES[convention].get(len(shape))
