"""Runs what is not in the results yet, in order, in one process or several; only the parent writes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import results, training
from experiments.cells import Cell, Config, describe, reachable, tunings
from experiments.context import context
from experiments.errors import ExperimentError
from experiments.results import Line, Results, Waiting
from experiments.settings import Settings

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def choose(config: Config, only: str | None) -> list[Cell]:
    """Return the cells whose name has a match of a pattern, and the runs that tune them, in order.

    Raises
    ------
    ExperimentError
        If the pattern is no regular expression or matches nothing.
    """
    if only is None:
        return list(config.cells)
    try:
        wanted = [cell for cell in config.cells if re.search(only, cell.id)]
    except re.error as error:
        raise ExperimentError(f"--only must be a regular expression; got {only!r}: {error}") from error
    if not wanted:
        raise ExperimentError(f"no cell matches {only!r}; --list shows all of them")
    needed = {s.key for cell in wanted for base in tunings(cell) for s in config.tuning_of(base)}
    names = {cell.id for cell in wanted}
    return [cell for cell in config.cells if cell.id in names or (cell.tuning and cell.settings.key in needed)]


def status(cell: Cell, config: Config, found: Results) -> str:
    """Return ``done``, ``cannot``, ``to do``, or ``waits`` for what tunes its rate."""
    try:
        settings = found.resolve(cell, config)
    except Waiting:
        settings = cell.settings
        if found.get(settings) is None and reachable(settings, config.folder) is None:
            return "waits"
    line = None if settings is None else found.get(settings)
    return "to do" if line is None else "cannot" if "cannot" in line else "done"


class Runner:
    """Runs cells, and remembers which have failed in this call.

    Parameters
    ----------
    config : Config
        What there is.
    path : Path
        The file of results; what fails goes to a file beside it.
    console : rich.console.Console
        Where progress is shown.
    device : str
        Where models are trained.
    """

    def __init__(self, config: Config, path: Path, console: Console, device: str = "cpu") -> None:
        self.config = config
        self.path = path
        self.errors = path.with_suffix(".errors.jsonl")
        self.console = console
        self.found = Results(results.read(path))
        self.failed: dict[str, str] = {}
        self.device = device
        self.context = context() | {"device": device}

    def run(self, cells: list[Cell], jobs: int) -> int:
        """Run what is missing, and return how many runs have failed."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("cells", total=len(cells))
            steps = self._here(cells) if jobs == 1 else self._elsewhere(cells, jobs)
            progress.update(bar, completed=self._settled(cells))
            for message in steps:
                progress.console.print(message, highlight=False, markup=False, soft_wrap=True)
                progress.update(bar, completed=self._settled(cells))
        return len(self.failed)

    def _here(self, cells: list[Cell]) -> Iterator[str]:
        torch.set_num_threads(1)
        while True:
            ready = self._next(cells, set())
            if ready is None:
                return
            cell, settings = ready
            yield self._keep(cell, settings, perform(settings, self.config.folder, self.device))

    def _elsewhere(self, cells: list[Cell], jobs: int) -> Iterator[str]:
        """Keep so many processes busy. Where one dies, what ran is run once more: nothing says which of them it was."""
        running: dict[Future[Line], tuple[Cell, Settings]] = {}
        deaths: dict[str, int] = {}
        pool = _processes(jobs)
        try:
            while True:
                while len(running) < jobs:
                    ready = self._next(cells, {settings.key for _, settings in running.values()})
                    if ready is None:
                        break
                    running[_submit(pool, ready[1], self.config.folder, self.device)] = ready
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                died = [running.pop(future) for future in finished if isinstance(future.exception(), BrokenProcessPool)]
                for future in finished & running.keys():
                    yield self._keep(*running.pop(future), future.result())
                if died:
                    died += running.values()
                    running.clear()
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = _processes(jobs)
                for cell, settings in died:
                    deaths[settings.key] = deaths.get(settings.key, 0) + 1
                    if deaths[settings.key] > 1:
                        yield self._keep(cell, settings, {"error": "the process that ran it, or one beside it, died"})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _next(self, cells: list[Cell], running: set[str]) -> tuple[Cell, Settings] | None:
        """Return the first cell that can be run now; what cannot be reached is noted on the way."""
        for cell in cells:
            if self._unreachable(cell):
                continue
            try:
                settings = self.found.resolve(cell, self.config, self.failed)
            except Waiting:
                continue
            if settings is not None and self.found.get(settings) is None:
                if settings.key not in running and settings.key not in self.failed:
                    return cell, settings
        return None

    def _unreachable(self, cell: Cell) -> bool:
        """Say whether a method cannot reach a ratio, and write it down the first time."""
        error = reachable(cell.settings, self.config.folder)
        if error is None:
            return False
        settings = cell.settings.replace(lr=None)
        if self.found.get(settings) is None:
            self._add(cell, settings, {"cannot": {"least": error.least, "budget": error.budget}})
        return True

    def _keep(self, cell: Cell, settings: Settings, outcome: Line) -> str:
        """Write down how a run went, and say it in a line."""
        if "error" in outcome:
            self.failed[settings.key] = outcome["error"]
            line = {"cell": cell.id, "id": describe(settings), "settings": dataclasses.asdict(settings)}
            results.append(self.errors, line | outcome | self.context)
            return f"failed: {describe(settings)}: {outcome['error'].strip().splitlines()[-1]} (see {self.errors})"
        self._add(cell, settings, outcome)
        return f"{outcome['test_accuracy']:6.2f} %  {outcome['seconds']:5.1f} s  {describe(settings)}"

    def _add(self, cell: Cell, settings: Settings, outcome: Line) -> None:
        line = {"cell": cell.id, "id": describe(settings), "settings": dataclasses.asdict(settings)}
        complete = line | outcome | self.context
        results.append(self.path, complete)
        self.found.add(complete)

    def _settled(self, cells: list[Cell]) -> int:
        return sum(status(cell, self.config, self.found) in ("done", "cannot") for cell in cells)


def perform(settings: Settings, folder: Path | None, device: str = "cpu") -> Line:
    """Return the outcome of a run, or ``error`` with a traceback if it raised something."""
    try:
        return training.run(settings, folder, device)
    except Exception:  # whatever it is, it must not stop the other runs
        return {"error": traceback.format_exc()}


def _processes(jobs: int) -> ProcessPoolExecutor:
    """Return processes that use one thread each, and end when this one does."""
    for name in _THREADS:
        os.environ[name] = "1"
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _submit(pool: ProcessPoolExecutor, settings: Settings, folder: Path | None, device: str) -> Future[Line]:
    """Return the future of a run; of a pool that broke while it was idle, one that says so."""
    try:
        return pool.submit(perform, settings, folder, device)
    except BrokenProcessPool as error:
        future: Future[Line] = Future()
        future.set_exception(error)
        return future


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
