"""Results: a file of JSON lines that is only ever added to, and what follows from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.cells import Cell, Config, tunings
from experiments.errors import ExperimentError
from experiments.settings import Settings, from_dict

Line = dict[str, Any]


class Waiting(Exception):  # noqa: N818
    """A cell whose learning rate is not known yet: tuning has not finished."""


class Results:
    """Lines by the settings of their runs.

    Parameters
    ----------
    lines : iterable of dict
        What was found so far.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.lines: dict[str, Line] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Take a line; the last one of a run counts."""
        self.lines[from_dict(line["settings"], f"the result {line.get('id')!r}").key] = line

    def get(self, settings: Settings) -> Line | None:
        """Return the line of a run, or that its method cannot reach its ratio, or None."""
        return self.lines.get(settings.key) or self.lines.get(settings.replace(lr=None).key)

    def best(self, runs: Iterable[Settings], without: Mapping[str, str] | None = None) -> Settings | None:
        """Return the run of the best accuracy on validation images; of equal ones the first.

        Parameters
        ----------
        runs : iterable of Settings
            The runs that tune.
        without : mapping, optional
            Keys of runs that have failed and are not waited for.

        Raises
        ------
        Waiting
            If one of the others has not been run.
        """
        found = []
        for settings in runs:
            line = self.lines.get(settings.key)
            if line is not None:
                found.append((line["validation_accuracy"], settings))
            elif settings.key not in (without or {}):
                raise Waiting
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def resolve(self, cell: Cell, config: Config, failed: Mapping[str, str] | None = None) -> Settings | None:
        """Return the settings of a cell with its rates filled in, or None if all runs that tune them have failed.

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
    """Return the lines of a file, without one that was cut because its writer was stopped; none if there is no file.

    Raises
    ------
    ExperimentError
        If another line is no JSON object with settings.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ExperimentError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(line, dict) or not isinstance(line.get("settings"), dict):
            raise ExperimentError(f"{path}, line {number} has no settings; got {text[:60]!r}")
        lines.append(line)
    return lines


def append(path: Path, line: Line) -> None:
    """Add a line to a file at once, in the place of a cut one if the file ends with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
