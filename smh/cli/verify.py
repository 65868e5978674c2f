"""``smh verify``: whether every backend builds the same weights, and whether a served model has them."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from smh.backends.registry import get_backend, list_backends
from smh.cli.digest import rebuild
from smh.cli.output import AsJson, ExitCode, MaxBytes, emit, parse_limit, progress
from smh.files import checkpoint
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.compare import Comparison, Difference, compare, compare_all
from smh.files.contents import ModelTensors, StoredTensors, opened
from smh.files.export import canonical
from smh.files.limits import check_file
from smh.porting import Mapping

_SHOWN = 20  # tensors that differ, in text


@dataclass
class _Row:
    """What one backend built."""

    backend: str
    device: str
    weights: int
    bits_compared: int = 0
    digest: str = ""
    same_digest: bool = False
    differences: list[Difference] = field(default_factory=list)

    @property
    def bits_different(self) -> int:
        return sum(difference.bits for difference in self.differences)


def run(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save."),
    backend: list[str] = typer.Option([], help="A backend to check; default: all whose frameworks are installed."),
    against: Path | None = typer.Option(
        None, metavar="OTHER", help="A plain safetensors file, or a checkpoint, that should hold the same tensors."
    ),
    mapping: Path | None = typer.Option(
        None, "--map", metavar="MAP", help="A mapping, in JSON, from the tensors of OTHER to those of FILE."
    ),
    max_bytes: str = MaxBytes,
    as_json: bool = AsJson,
) -> None:
    """Rebuild the weights in every backend, and compare all bits with NumPy's and the digest with the file's.

    With --against OTHER also compare, by name, what FILE gives to a model with what OTHER holds: weights in their
    viewed shapes, and kept tensors.

    All NaNs among weights count as one. Exit 1 if anything differs.
    """
    if mapping is not None and against is None:
        raise typer.BadParameter("a mapping belongs to two files: name the other one by --against", param_hint="--map")
    limit = parse_limit(max_bytes)
    known = list_backends()  # in this order: torch has to be imported before tensorflow
    chosen = sorted(dict.fromkeys(backend), key=lambda name: known.index(name) if name in known else len(known))
    chosen = chosen or list_backends(installed=True)
    missing = [] if backend else [name for name in known if name not in chosen]
    found = checkpoint.read(path)
    check_file(found, limit)
    turned = Mapping.load(mapping) if mapping is not None else None
    for name in chosen:  # before any work is done
        get_backend(name)
    with progress() as bars:
        rows = [_check(name, found, bars) for name in chosen]
        other = _against(found, against, turned, limit, bars) if against is not None else None
    same = all(row.same_digest and not row.differences for row in rows) and (other is None or other.same)
    result = {
        "file": str(path),
        "stated": found.digest,
        "same": same,
        "backends": [{**dataclasses.asdict(row), "bits_different": row.bits_different} for row in rows],
        "missing": missing,
        "against": None if other is None else {"file": str(against), **_plain(other)},
    }
    emit(result, as_json, lambda console: _show(console, found, rows, missing, against, other))
    if not same:
        raise typer.Exit(ExitCode.DIFFERENT)


def _check(name: str, found: Checkpoint, bars: Progress) -> _Row:
    """Rebuild all weights by one backend, and compare them with NumPy's, some tensors at a time."""
    backend, reference = get_backend(name), get_backend("numpy")
    plan = canonical(found.plan)
    row = _Row(name, backend.devices()[0], plan.num_weights)
    task = bars.add_task(name, total=plan.num_weights)

    def watch(names: list[str], arrays: list[np.ndarray]) -> None:
        expected = reference.materialize(plan, found.variables, names) if backend is not reference else {}
        for tensor, w in zip(names, arrays, strict=True):
            if expected:
                difference = compare(tensor, w, expected[tensor], any_nan=True)
                row.bits_compared += 8 * w.dtype.itemsize * difference.elements
                if not difference.same:
                    row.differences.append(difference)
            bars.advance(task, w.size)

    row.digest = rebuild(backend, found, watch)
    row.same_digest = row.digest == found.digest
    return row


def _against(found: Checkpoint, path: Path, mapping: Mapping | None, limit: int | None, bars: Progress) -> Comparison:
    own = ModelTensors(found)
    with opened(path, limit) as tensors:
        other = tensors if mapping is None else _Mapped(mapping, tensors)
        task = bars.add_task(path.name, total=len(own))
        return compare_all(own, other, own.weights, lambda: bars.advance(task))


class _Mapped(collections.abc.Mapping[str, np.ndarray]):
    """The tensors of a mapping's target, made one at a time from those of its source."""

    def __init__(self, mapping: Mapping, tensors: ModelTensors | StoredTensors) -> None:
        mapping.check(source=tensors.shapes)
        self._entries = {name: entry for name, entry in mapping.tensors.items() if not name.startswith(CARRIED)}
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _plain(other: Comparison) -> dict[str, Any]:
    """Return the comparison in the words of this command: FILE says what there should be."""
    data = other.to_dict()
    renamed = {"missing": data.pop("only_first"), "unexpected": data.pop("only_second")}
    return {**data, **renamed}


def _show(
    console: Console,
    found: Checkpoint,
    rows: list[_Row],
    missing: list[str],
    against: Path | None,
    other: Comparison | None,
) -> None:
    table = Table("backend", "device", title="Weights, rebuilt and compared with NumPy's")
    for column in ("weights", "bits compared", "bits different"):
        table.add_column(column, justify="right")
    table.add_column("digest")
    for row in rows:
        bad = row.differences or not row.same_digest
        compared = (f"{row.bits_compared:,}", f"{row.bits_different:,}") if row.backend != "numpy" else ("", "")
        digest = "same as the file's" if row.same_digest else "not the file's"
        table.add_row(row.backend, row.device, f"{row.weights:,}", *compared, digest, style="red" if bad else None)
    for name in missing:
        table.add_row(name, "", "", "", "", f"not installed: pip install 'smh[{name}]'")
    console.print(table)
    for row in rows:
        if not row.same_digest:
            console.print(f"{row.backend}: digest {row.digest}, stated {found.digest}", style="red", soft_wrap=True)
        _show_differences(console, row.backend, row.differences)
    if other is not None:
        for what, names in (("missing", other.only_first), ("unexpected", other.only_second)):
            for name in names[:_SHOWN]:
                console.print(f"{against}: {what} {name!r}", style="red", soft_wrap=True)
            _show_rest(console, str(against), what, len(names))
        _show_differences(console, str(against), other.differences)
        words = "all the same" if other.same else "not the same"
        console.print(f"{against}: {other.compared:,} tensors, {other.bits:,} bits compared, {words}", soft_wrap=True)


def _show_differences(console: Console, where: str, differences: list[Difference]) -> None:
    for difference in differences[:_SHOWN]:
        console.print(f"{where}: {difference.name!r} differs: {difference}", style="red", soft_wrap=True)
    _show_rest(console, where, "differing", len(differences))


def _show_rest(console: Console, where: str, what: str, count: int) -> None:
    if count > _SHOWN:
        console.print(f"{where}: and {count - _SHOWN:,} more {what} (--json names all)", style="red", soft_wrap=True)
