"""``smh digest``, ``smh verify`` and ``smh diff``: whether files, backends and served models hold the same tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.progress import Progress

from smh import porting
from smh.backends.protocol import Backend
from smh.backends.registry import get_backend, list_backends
from smh.cli.model import MODEL_HELP, check_no_plan, read_checkpoint, read_mapping
from smh.cli.output import (
    AsJson,
    BackendName,
    File,
    Lazy,
    Listing,
    MaxBytes,
    Quiet,
    ShowAll,
    backend_named,
    emit,
    marked,
    progress,
)
from smh.cli.summary import first_lines, grouped
from smh.core.plan import Plan
from smh.errors import install_line
from smh.files import checkpoint, digests
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.compare import Comparison, Difference, compare_all
from smh.files.contents import ModelTensors, StoredTensors, Weights, opened
from smh.files.dense import is_checkpoint
from smh.files.export import canonical
from smh.files.formats import is_safetensors
from smh.files.integers import pack, unpack
from smh.files.limits import check_file
from smh.tables import counted

_NOUNS = {"variables": "variable", "kept": "kept tensor", "weights": "generated tensor", "tensors": "tensor"}
_Watch = Callable[[list[str], list[np.ndarray]], object]  # is given names and weights, in their canonical shapes


def run_digest(
    path: Path = File,
    backend: str = BackendName,
    max_bytes: int | None = MaxBytes,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Rebuild the weights of a checkpoint and print their digest. Exit code 1 if the file states another digest."""
    builder = backend_named(backend)
    name = backend or builder.name
    loaded = read_checkpoint(path)
    check_file(loaded, max_bytes)
    with progress(quiet) as bars:
        digest = _rebuild(f"weights by {name}", builder, loaded, bars)
    same = digest == loaded.digest
    result = {"file": str(path), "backend": name, "digest": digest, "stated": loaded.digest, "same": same}
    doubt = [] if same else [marked(f"not the same: the file states {loaded.digest}")]
    emit(result, as_json, [digest, *doubt], same, quiet=quiet)


def _rebuild(label: str, backend: Backend, loaded: Checkpoint, bars: Progress, watch: _Watch | None = None) -> str:
    """Return the digest of the weights that a backend builds, some tensors at a time, which ``watch`` is given."""
    plan = canonical(loaded.plan)
    task = bars.add_task(label, total=plan.num_weights)
    own = {name: backend.asarray(x) for name, x in loaded.variables.items()}

    def build(names: list[str]) -> list[np.ndarray]:
        built = backend.materialize(plan, own, names)
        arrays = [backend.to_numpy(built[name]) for name in names]
        if watch is not None:
            watch(names, arrays)
        bars.advance(task, sum(x.size for x in arrays))
        return arrays

    return digests.digest(plan, build)


def run_verify(
    path: Path = File,
    backend: list[str] = typer.Option([], help="A backend to check. Default: all that are installed. Repeatable."),
    against: Path | None = typer.Option(
        None, metavar="OTHER", help="A model or a checkpoint that should hold the same tensors."
    ),
    mapping: Path | None = typer.Option(
        None, "--map", metavar="MAP", help="A mapping in JSON, from the tensors of OTHER to those of FILE."
    ),
    max_bytes: int | None = MaxBytes,
    every: bool = ShowAll,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Rebuild the weights in every backend, and compare all bits with NumPy's and the digest with the file's.

    With --against OTHER also compare the tensors that FILE gives to a model with those of OTHER, by name: weights in
    their viewed shapes, and kept tensors.

    All NaNs among weights count as equal. Exit code 1 if anything differs.
    """
    if mapping is not None and against is None:
        raise typer.BadParameter("a mapping needs a second file: name it by --against", param_hint="--map")
    known = list_backends()  # in this order: torch has to be imported before tensorflow
    names = sorted(set(backend), key=[*known, *backend].index) or list_backends(installed=True)
    loaded = read_checkpoint(path)
    check_file(loaded, max_bytes)
    turned = read_mapping(mapping) if mapping is not None else None
    for name in names:  # before any work is done
        backend_named(name)
    with progress(quiet) as bars:
        rows = [_check(name, loaded, bars) for name in names]
        other = _against(loaded, against, turned, max_bytes, bars) if against is not None else None
    same = all(row["same_digest"] and not row["differences"] for row in rows) and (other is None or other["same"])
    result = {
        "file": str(path),
        "stated": loaded.digest,
        "kept_digest": loaded.kept_digest,
        "same": same,
        "backends": rows,
        "missing": [] if backend else [name for name in known if name not in names],
        "against": other,
    }
    emit(result, as_json, _verified(result, every), same, quiet=quiet)


def _check(name: str, loaded: Checkpoint, bars: Progress) -> dict[str, Any]:
    """Rebuild all weights by one backend, and compare them with NumPy's, some tensors at a time."""
    backend, reference = get_backend(name), get_backend("numpy")
    plan = canonical(loaded.plan)
    total = Comparison()

    def watch(names: list[str], arrays: list[np.ndarray]) -> None:
        expected = reference.materialize(plan, loaded.variables, names)
        compared = compare_all(dict(zip(names, arrays, strict=True)), expected, any_nan=names)
        total.bits += compared.bits
        total.differences += compared.differences

    digest = _rebuild(name, backend, loaded, bars, None if backend is reference else watch)
    return {
        "backend": name,
        "device": backend.devices()[0],
        "weights": plan.num_weights,
        "bits_compared": total.bits,
        "digest": digest,
        "same_digest": digest == loaded.digest,
        "differences": total.differences,
        "bits_different": sum(difference.bits for difference in total.differences),
    }


def _against(
    loaded: Checkpoint, path: Path, mapping: porting.Mapping | None, limit: int | None, bars: Progress
) -> dict[str, Any]:
    """Compare the tensors of a checkpoint with another file, whose tensors a mapping turns one at a time."""
    own = ModelTensors(loaded)
    with opened(path, limit) as tensors:
        other: ModelTensors | StoredTensors | Lazy = tensors
        if mapping is not None:
            mapping.check(source=tensors.shapes)
            entries = mapping.tensors
            shapes = {name: entry.shape for name, entry in entries.items() if not name.startswith(CARRIED)}
            other = Lazy(shapes, lambda name: entries[name].read(tensors))
        task = bars.add_task(path.name, total=len(own))
        compared = compare_all(own, other, own.weights, lambda: bars.advance(task))
    return {
        "file": str(path),
        "same": compared.same,
        "compared": compared.compared,
        "bits": compared.bits,
        "differences": compared.differences,
        "missing": compared.only_first,  # FILE says what there should be
        "unexpected": compared.only_second,
    }


def _verified(result: dict[str, Any], every: bool) -> Iterator[RenderableType]:
    columns = ("backend", "device", "weights", "bits compared", "bits different", "digest")
    listing = Listing(*columns, title="Weights, rebuilt and compared with NumPy's")
    for row in result["backends"]:
        bad = row["differences"] or not row["same_digest"]
        reference = row["backend"] == "numpy"
        compared = ["" if reference else row[key] for key in ("bits_compared", "bits_different")]
        digest = "same as the file's" if row["same_digest"] else "not the file's"
        cells = (row["backend"], row["device"], row["weights"], *compared, digest)
        listing.add(*cells, style="red" if bad else "")
    yield listing
    for name in result["missing"]:
        yield f"{name} is not installed: {install_line(name)}"
    for row in result["backends"]:
        if not row["same_digest"]:
            yield marked(f"{row['backend']}: digest {row['digest']}, stated {result['stated']}")
        yield from first_lines(_differences(row["backend"], "tensor", row["differences"], every), every)
    if result["kept_digest"]:
        yield "kept tensors: digest same as the file's"
    if (other := result["against"]) is not None:
        where = other["file"]
        for what in ("missing", "unexpected"):
            names = _named(other[what], "tensor", every)
            yield from first_lines([f"{where}: {what} {name}" for name in names], every)
        yield from first_lines(_differences(where, "tensor", other["differences"], every), every)
        words = "all the same" if other["same"] else "not the same"
        yield f"{where}: {counted(other['compared'], 'tensor')}, {other['bits']:,} bits compared, {words}"


def _label(pattern: str, count: int, noun: str) -> str:
    return f"{pattern!r} ({counted(count, noun)})" if count > 1 else repr(pattern)


def _named(names: list[str], noun: str, every: bool) -> list[str]:
    """Return the names of tensors, by groups or one by one."""
    groups = [(name, [name]) for name in names] if every else grouped(names, str)
    return [_label(pattern, len(members), noun) for pattern, members in groups]


def _differences(where: str, noun: str, differences: list[Difference], every: bool) -> list[str]:
    """Return lines on tensors that differ: the sums of groups whose shapes and dtypes differ in one way, or each."""
    groups = [(one.name, [one]) for one in differences]
    if not every:
        groups = grouped(differences, lambda one: one.name, lambda one: one.why)
    lines = []
    for pattern, members in groups:
        elements, different, bits, nans = (
            sum(getattr(one, what) for one in members) for what in ("elements", "different", "bits", "nans")
        )
        most = max((one.max_ulps for one in members if one.max_ulps is not None), default=None)
        total = Difference(pattern, members[0].why, elements, different, bits, most, nans)
        verb = "differs" if len(members) == 1 else "differ"
        lines.append(f"{where}: {_label(pattern, len(members), noun)} {verb}: {total}")
    return lines


def run_diff(
    first: Path = typer.Argument(..., metavar="A", help=f"A checkpoint, or a model: {MODEL_HELP}"),
    second: Path = typer.Argument(..., metavar="B", help="The other file, of any of these kinds."),
    weights: bool = typer.Option(False, "--weights", help="Also rebuild and compare the weights of two checkpoints."),
    max_bytes: int | None = MaxBytes,
    every: bool = ShowAll,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Show the differences between two files. Exit code 1 if there are any.

    For two checkpoints: plans, digests, variables and kept tensors, and with --weights the generated weights. If only
    one has training values, variables are compared on the grid of their integers. If a file holds plain tensors: the
    tensors that a model reads, by name; NumPy rebuilds the weights of a checkpoint, in their viewed shapes.

    Differences are counted in elements, in bits, and for floats in ulps, the steps from one number to the next. +0 and
    -0 differ in one bit and are 0 ulps apart. NaNs are equal if their bits are; generated NaNs are all equal.
    """
    check_no_plan(first, second)
    pairs: dict[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], Container[str]]] = {}
    parts, stated, plan, lines, digests, training = {}, [], [], [], [], []
    checkpoints = [is_safetensors(path) and is_checkpoint(path) for path in (first, second)]
    with progress(quiet) as bars, contextlib.ExitStack() as stack:
        if all(checkpoints):
            one, other = checkpoint.read(first), checkpoint.read(second)
            plan, lines = (plan_differences(one.plan, other.plan, single) for single in (True, every))
            digests, training = [one.digest, other.digest], [one.training, other.training]
            if one.digest != other.digest:
                stated.append(f"digest of the weights, as stated: {one.digest} against {other.digest}")
            if one.training != other.training:
                stated.append(f"training values: only in the {'first' if one.training else 'second'}")
                one, other = _on_grid(one), _on_grid(other)
            pairs = {"variables": (one.variables, other.variables, ()), "kept": (one.dense, other.dense, ())}
            if weights:
                check_file(one, max_bytes)
                check_file(other, max_bytes)
                generated = Weights(one)
                pairs["weights"] = (generated, Weights(other), generated)
        else:
            a, b = (stack.enter_context(opened(path, max_bytes)) for path in (first, second))
            pairs["tensors"] = (a, b, {name for x in (a, b) if isinstance(x, ModelTensors) for name in x.weights})
        for name, (x, y, any_nan) in pairs.items():  # NaNs of these names count as one
            task = bars.add_task(name, total=len(x))
            parts[name] = compare_all(x, y, any_nan, functools.partial(bars.advance, task))
    same = not plan and not stated and all(part.same for part in parts.values())
    result = {
        "first": str(first),
        "second": str(second),
        "kinds": ["checkpoint" if kind else "plain" for kind in checkpoints],
        "same": same,
        "plan": plan,
        "digests": digests,
        "training": training,
        **{name: part.to_dict() for name, part in parts.items()},
    }
    emit(result, as_json, _differing(lines, stated, parts, same, every), same, quiet=quiet)


def _on_grid(loaded: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose variables are those that its integers stand for."""
    values = unpack(loaded.plan, *pack(loaded.plan, loaded.variables))
    return dataclasses.replace(loaded, variables=loaded.variables | values, training=False)


def _differing(
    plan: list[str], stated: list[str], parts: dict[str, Comparison], same: bool, every: bool
) -> Iterator[RenderableType]:
    yield from first_lines([f"plan: {line}" for line in plan], every)
    yield from map(marked, stated)
    for name, part in parts.items():
        noun = _NOUNS[name]
        lines = [f"{name}: {tensor} only in the first" for tensor in _named(part.only_first, noun, every)]
        lines += [f"{name}: {tensor} only in the second" for tensor in _named(part.only_second, noun, every)]
        lines += _differences(name, noun, part.differences, every)
        yield from first_lines(lines, every)
    counts = ", ".join(f"{counted(part.compared, _NOUNS[name])} ({part.bits:,} bits)" for name, part in parts.items())
    yield f"{'the same' if same else 'different'}; compared {counts}"


def plan_differences(first: Plan, second: Plan, every: bool = True) -> list[str]:
    """Return the differences between two plans, one line per field; nothing if they are equal.

    Unless ``every``, tensors whose names differ in numbers share a line.
    """
    one, other = first.to_dict(), second.to_dict()
    # Offsets follow from the order and the shapes.
    tensors, others = ({x["name"]: x | {"offset": 0} for x in plan.pop("tensors")} for plan in (one, other))
    lines = [f"{where}: {what}" for where, what in _fields("", one, other)]
    for where, these, those in (("first", tensors, others), ("second", others, tensors)):
        names = _named([name for name in these if name not in those], "tensor", every)
        lines += [f"tensor {name}: only in the {where}" for name in names]
    shared = [name for name in tensors if name in others]
    if shared != [name for name in others if name in tensors]:
        lines.append("tensors: in another order")
    found = [(name, *field) for name in shared for field in _fields("", tensors[name], others[name])]
    groups = [(item[0], [item]) for item in found] if every else grouped(found, lambda x: x[0], lambda x: x[1])
    for pattern, members in groups:
        (_, where, what), *more = members
        such = "such as " if any(member[2] != what for member in more) else ""
        lines.append(f"tensor {_label(pattern, len(members), 'tensor')}, {where}: {such}{what}")
    return lines


def _fields(where: str, one: Any, other: Any) -> Iterator[tuple[str, str]]:
    """Iterate over the differences between two JSON values: fields, and what they hold."""
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _fields(f"{where}.{key}" if where else key, one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and isinstance(one[0], dict):
        for k, (x, y) in enumerate(zip(one, other, strict=True)):
            yield from _fields(f"{where}[{k}]", x, y)
    else:
        yield where, f"{_words(one)} against {_words(other)}"


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) and "pattern" in value:
        return repr(value["pattern"]) + "".join(f" {key} {value[key]}" for key in ("sizes", "order") if value.get(key))
    return str(value)
