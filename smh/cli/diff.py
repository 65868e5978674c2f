"""``smh diff``: what differs between two files, checkpoints or plain safetensors files."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from smh.cli.output import AsJson, ExitCode, MaxBytes, emit, parse_limit, progress
from smh.core.plan import Plan
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.compare import Comparison, compare_all
from smh.files.contents import ModelTensors, Weights, opened
from smh.files.dense import is_checkpoint
from smh.files.integers import pack, unpack
from smh.files.limits import check_file

_SHOWN = 50  # lines of one kind, in text


def run(
    first: Path = typer.Argument(..., metavar="A", help="A checkpoint, or a plain safetensors file."),
    second: Path = typer.Argument(..., metavar="B", help="Another one."),
    weights: bool = typer.Option(False, "--weights", help="Of two checkpoints also rebuild and compare the weights."),
    max_bytes: str = MaxBytes,
    as_json: bool = AsJson,
) -> None:
    """Say what differs between two files, tensor by tensor; exit 1 if anything does.

    Two checkpoints: their plans, digests, variables and kept tensors, and with --weights the generated weights. If only
    one has training values, variables are compared as the integers of both give them. If one file is plain: the tensors
    that a model reads, by name; the weights of a checkpoint are rebuilt for that.

    NumPy rebuilds weights in their viewed shapes. Differences are counted in elements, in bits, and for floats in ulps,
    the steps from one number to the next. +0 and -0 differ in one bit and are 0 ulps apart. NaNs are equal if their
    bits are; among generated weights all count as one.
    """
    limit = parse_limit(max_bytes)
    checkpoints = [is_checkpoint(path) for path in (first, second)]
    with progress() as bars:
        if all(checkpoints):
            one, other = checkpoint.read(first), checkpoint.read(second)
            plan = plan_differences(one.plan, other.plan)
            training = [one.training, other.training]
            if one.training != other.training:
                one, other = on_grid(one), on_grid(other)
            digests = [one.digest, other.digest]
            if weights:
                check_file(one, limit)
                check_file(other, limit)
            parts = _checkpoints(one, other, weights, bars)
        else:
            plan, digests, training = [], [], []
            parts = {"tensors": _tensors(first, second, limit, bars)}
    same = not plan and len(set(digests)) < 2 and len(set(training)) < 2 and all(part.same for part in parts.values())
    result: dict[str, Any] = {
        "first": str(first),
        "second": str(second),
        "kinds": ["checkpoint" if kind else "plain" for kind in checkpoints],
        "same": same,
        "plan": plan,
        "digests": digests,
        "training": training,
        **{name: part.to_dict() for name, part in parts.items()},
    }
    emit(result, as_json, lambda console: _show(console, plan, digests, training, parts, same))
    if not same:
        raise typer.Exit(ExitCode.DIFFERENT)


def _checkpoints(one: Checkpoint, other: Checkpoint, weights: bool, bars: Progress) -> dict[str, Comparison]:
    parts = {
        "variables": _compare("variables", one.variables, other.variables, (), bars),
        "kept": _compare("kept tensors", one.dense, other.dense, (), bars),
    }
    if weights:
        a, b = Weights(one), Weights(other)
        parts["weights"] = _compare("weights", a, b, a, bars)
    return parts


def _tensors(first: Path, second: Path, limit: int | None, bars: Progress) -> Comparison:
    with opened(first, limit) as a, opened(second, limit) as b:
        generated = {name for x in (a, b) if isinstance(x, ModelTensors) for name in x.weights}
        return _compare("tensors", a, b, generated, bars)


def _compare(
    what: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], any_nan: Container[str], bars: Progress
) -> Comparison:
    task = bars.add_task(what, total=len(a))
    return compare_all(a, b, any_nan, lambda: bars.advance(task))


def on_grid(found: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose variables are those that its integers stand for."""
    values = unpack(found.plan, *pack(found.plan, found.variables))
    return dataclasses.replace(found, variables=found.variables | values, training=False)


def _show(
    console: Console,
    plan: list[str],
    digests: list[str],
    training: list[bool],
    parts: dict[str, Comparison],
    same: bool,
) -> None:
    lines = [f"plan: {line}" for line in plan]
    if len(set(digests)) > 1:
        lines.append(f"digest of the weights, as stated: {digests[0]} against {digests[1]}")
    if len(set(training)) > 1:
        lines.append(f"training values: only in the {'first' if training[0] else 'second'}")
    for name, part in parts.items():
        found = [f"{name}: {tensor!r} only in the first" for tensor in part.only_first]
        found += [f"{name}: {tensor!r} only in the second" for tensor in part.only_second]
        found += [f"{name}: {difference.name!r} differs: {difference}" for difference in part.differences]
        lines += found[:_SHOWN]
        if len(found) > _SHOWN:
            lines.append(f"{name}: and {len(found) - _SHOWN:,} more (--json names all)")
    for line in lines:
        console.print(line, style="red", soft_wrap=True)
    counts = ", ".join(f"{part.compared:,} {name} ({part.bits:,} bits)" for name, part in parts.items())
    console.print(f"{'the same' if same else 'different'}; compared {counts}", soft_wrap=True)


def plan_differences(first: Plan, second: Plan) -> list[str]:
    """Return what differs between two plans, one line for each field; nothing if they are equal.

    Parameters
    ----------
    first, second : Plan
        The plans.

    Returns
    -------
    list of str

    Examples
    --------
    >>> a, b = (Plan.build({"fc": (20, 5)}, ratio=0.4, seed=seed) for seed in (1, 2))
    >>> plan_differences(a, b)
    ['seed: 1 against 2']
    """
    one, other = first.to_dict(), second.to_dict()
    tensors, other_tensors = ({tensor["name"]: tensor for tensor in plan.pop("tensors")} for plan in (one, other))
    lines = list(_fields("", one, other))
    lines += [f"tensor {name!r}: only in the first" for name in tensors if name not in other_tensors]
    lines += [f"tensor {name!r}: only in the second" for name in other_tensors if name not in tensors]
    shared = [name for name in tensors if name in other_tensors]
    if shared != [name for name in other_tensors if name in tensors]:
        lines.append("tensors: in another order")
    for name in shared:
        # Offsets follow from the order and the shapes.
        own, other_own = ({**tensor, "offset": 0} for tensor in (tensors[name], other_tensors[name]))
        lines += [f"tensor {name!r}, {line}" for line in _fields("", own, other_own)]
    return lines


def _fields(where: str, one: Any, other: Any) -> Iterator[str]:
    """Iterate over lines on what differs between two JSON values."""
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _fields(f"{where}.{key}" if where else key, one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and isinstance(one[0], dict):
        for k, (x, y) in enumerate(zip(one, other, strict=True)):
            yield from _fields(f"{where}[{k}]", x, y)
    else:
        yield f"{where}: {_words(one)} against {_words(other)}"


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) and "pattern" in value:
        return repr(value["pattern"]) + "".join(f" {key} {value[key]}" for key in ("sizes", "order") if value.get(key))
    return str(value)
