"""Results: an append-only file of JSON lines, and the rates that follow from it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.cells import Cell, Config, tunings
from experiments.context import context
from experiments.errors import ExperimentError
from experiments.settings import Settings, from_dict

Line = dict[str, Any]


class Waiting(Exception):  # noqa: N818
    """A cell without a learning rate so far, because its tuning has not finished."""


class Results:
    """Lines by the settings of their runs.

    Parameters
    ----------
    lines : iterable of dict
        The lines of a file of results.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.lines: dict[str, Line] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Add a line. The last line of a run counts."""
        self.lines[from_dict(line["settings"], f"the result {line.get('id')!r}").key] = line

    def get(self, settings: Settings) -> Line | None:
        """Return the line of a run, the line saying that its method cannot reach its ratio, or None."""
        return self.lines.get(settings.key) or self.lines.get(settings.replace(lr=None).key)

    def best(self, runs: Iterable[Settings], without: Mapping[str, str] | None = None) -> Settings | None:
        """Return the first run with the best accuracy on validation images.

        Parameters
        ----------
        runs : iterable of Settings
            The tuning runs.
        without : mapping, optional
            Keys of failed runs, which are skipped.

        Raises
        ------
        Waiting
            If one of the remaining runs has no result.
        """
        done = []
        for settings in runs:
            line = self.lines.get(settings.key)
            if line is not None:
                done.append((line["validation_accuracy"], settings))
            elif settings.key not in (without or {}):
                raise Waiting
        return max(done, key=lambda pair: pair[0])[1] if done else None

    def resolve(self, cell: Cell, config: Config, failed: Mapping[str, str] | None = None) -> Settings | None:
        """Return the settings of a cell with its tuned rates, or None if all tuning runs have failed.

        Raises
        ------
        Waiting
            If tuning has not finished.
        """
        settings = cell.settings
        for base in tunings(cell):
            best = self.best(config.tuning_of(base), failed)
            if best is None:
                return None
            settings = settings.replace(lr=best.lr) if base == cell.tuned_as else settings.replace(dense_lr=best.lr)
        return settings


def read(path: Path) -> list[Line]:
    """Return the lines of a file, except a truncated last line; an empty list for a missing file.

    Raises
    ------
    ExperimentError
        If another line is not a JSON object with settings.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ExperimentError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(line, dict) or not isinstance(line.get("settings"), dict):
            raise ExperimentError(f"{path}, line {number} has no settings; got {text[:60]!r}")
        lines.append(line)
    return lines


def run_missing(cells: Iterable[Any], path: Path, run: Callable[[Any], Line], text: Callable[[Line], str]) -> None:
    """Run every cell without a result, on one thread, from committed code only.

    Parameters
    ----------
    cells : iterable
        Instances of one dataclass, the settings of the runs.
    path : Path
        The file of results.
    run : callable
        Returns the outcome of a cell.
    text : callable
        Returns the outcome in a few words.
    """
    torch.set_num_threads(1)
    about = context()
    if about["changed"]:
        raise ExperimentError("the working tree has changes: commit them first, so that results name their code")
    for cell in cells:
        if any(type(cell)(**line["settings"]) == cell for line in read(path)):
            continue
        print(cell, flush=True)
        line = {"settings": dataclasses.asdict(cell), **run(cell), **about}
        append(path, line)
        print(f"{text(line)}  {cell}", flush=True)


def append(path: Path, line: Line) -> None:
    """Append a line to a file and flush it, replacing a truncated last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
