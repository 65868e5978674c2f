"""What is fuzzed: the readers of what comes from strangers, and what may come out of them.

Every reader takes bytes. It says ``"accepted"`` or ``"refused"``, or raises what it must not: a :class:`DefectError`
where the documented exception came for a reason that nobody foresaw, anything else as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import einops
import numpy as np

import smh
from smh.backends import numpy as smh_numpy
from smh.cli import look
from smh.files import checkpoint
from smh.files.dense import DenseFile, is_checkpoint
from smh.files.header import MAX_AXES
from smh.porting import Mapping

MOST_WEIGHTS = 20_000
"""How many weights are built of a plan that was accepted."""
MOST_CHARACTERS = 6000
"""How long a message may be, paths and all."""

_FORESEEN = (smh.SmhError, einops.EinopsError, ValueError, ImportError)
"""What may be the cause of a documented exception: a reason within the family, or what a parser says."""
_OF_MAPPINGS = (AttributeError, KeyError, TypeError)
"""What else may be that of a mapping, whose JSON is taken as it is, and fails where it does not fit."""


class DefectError(Exception):
    """A reader refused an input by accident, or accepted what it should not have."""


def try_checkpoint(content: bytes) -> str:
    """Load a file as :func:`smh.load` does, inspect it, and build its weights if they are few."""
    path = _file(content)
    try:
        found = smh_numpy.load(path)
    except (smh.CheckpointError, smh.LimitError) as error:
        return _refused(error)
    _require(found.plan.variable_shapes == {name: x.shape for name, x in found.variables.items()}, "other shapes")
    _require(smh.Plan.from_json(found.plan.to_json()) == found.plan, "a plan that does not survive its own JSON")
    _require(checkpoint.read(path).plan == found.plan, "two plans in one file")
    _show(path)
    _build(found.plan, found.variables)
    return "accepted"


def try_plain(content: bytes) -> str:
    """Open a plain file as every command does, and read its tensors."""
    path = _file(content)
    try:
        if is_checkpoint(path):
            return "refused"
        with DenseFile(path) as file:
            for name in file:
                _require(file.sizes[name] <= len(content), "a tensor larger than its file")
                try:
                    _require(file[name].shape == file.shapes[name], "another shape")
                    _require(file.stored(name).nbytes == file.sizes[name], "another size")
                except smh.CheckpointError as error:
                    _refused(error)
    except smh.CheckpointError as error:
        return _refused(error)
    _show(path)
    return "accepted"


def try_plan(content: bytes) -> str:
    """Read a plan from JSON, print it, and build its weights if they are few."""
    try:
        plan = smh.Plan.from_json(content.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return "no text"
    except smh.PlanError as error:
        return _refused(error)
    _require(smh.Plan.from_json(plan.to_json()) == plan, "a plan that does not survive its own JSON")
    str(plan).encode("utf-8")
    if plan.num_variables <= MOST_WEIGHTS:
        _build(plan, {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()})
    return "accepted"


def try_mapping(content: bytes) -> str:
    """Read a mapping between models from JSON, print it, and apply it if its tensors are small."""
    try:
        mapping = Mapping.from_json(content.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return "no text"
    except smh.PortError as error:
        return _refused(error, (*_FORESEEN, *_OF_MAPPINGS))
    _require(Mapping.from_json(mapping.to_json()) == mapping, "a mapping that does not survive its own JSON")
    str(mapping)
    shapes = mapping.source_shapes
    small = sum(math.prod(shape) for shape in shapes.values()) <= MOST_WEIGHTS
    if small and all(len(shape) <= MAX_AXES for shape in shapes.values()):
        applied = mapping.apply({name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()})
        _require({name: x.shape for name, x in applied.items()} == mapping.shapes, "other shapes")
    return "accepted"


TARGETS: dict[str, Callable[[bytes], str]] = {
    "checkpoint": try_checkpoint,
    "mapping": try_mapping,
    "plain": try_plain,
    "plan": try_plan,
}
"""Readers by name."""


def _refused(error: smh.SmhError, foreseen: tuple[type[Exception], ...] = _FORESEEN) -> str:
    """Say that an input was refused, and see that it was for a reason."""
    cause = error.__cause__
    while cause is not None:
        _require(isinstance(cause, foreseen), f"refused by {type(cause).__name__}: {cause}")
        cause = cause.__cause__
    message = str(error)
    _require(len(message) <= MOST_CHARACTERS, f"a message of {len(message)} characters")
    return "refused"


def _build(plan: smh.Plan, variables: dict[str, np.ndarray]) -> None:
    """Build the weights of a plan that was accepted, if they are few."""
    if plan.num_weights > MOST_WEIGHTS or plan.capacity > 64 * MOST_WEIGHTS:
        return
    weights = smh_numpy.materialize(plan, variables)
    _require({t.name: t.viewed_shape for t in plan.tensors} == {n: w.shape for n, w in weights.items()}, "other shapes")


def _show(path: str) -> None:
    """Run ``smh inspect`` both ways, and see that no control character reaches a terminal."""
    for as_json in (True, False):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            look.run_inspect(Path(path), as_json)
        bad = {character for character in text.getvalue() if not (character.isprintable() or character == "\n")}
        _require(not bad, f"printed {bad!r}")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise DefectError(what)


@cache
def _path() -> str:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # in memory where that is possible
    descriptor, path = tempfile.mkstemp(prefix="smh-fuzz-", dir=folder)
    os.close(descriptor)
    atexit.register(clean)
    return path


def clean() -> None:
    """Remove the file that inputs were written to, where a process ends without doing so."""
    if _path.cache_info().currsize:
        Path(_path()).unlink(missing_ok=True)
        _path.cache_clear()


def _file(content: bytes) -> str:
    """Write an input to the one file that all of them use, and return its path."""
    with open(_path(), "wb") as file:
        file.write(content)
    return _path()
