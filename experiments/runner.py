"""Runs all cells without a result, in order, in one process or several. Only the parent process writes."""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from rich.console import Console

from experiments import data, results, training
from experiments.cells import Cell, Config, describe, reachable, tunings
from experiments.context import context
from experiments.errors import ExperimentError
from experiments.results import Line, Results, Waiting
from experiments.settings import Settings

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def choose(config: Config, only: str | None) -> list[Cell]:
    """Return the cells whose names match a pattern, and their tuning runs, in order.

    Raises
    ------
    ExperimentError
        If the pattern is not a regular expression or matches nothing.
    """
    if only is None:
        return list(config.cells)
    try:
        wanted = [cell for cell in config.cells if re.search(only, cell.id)]
    except re.error as error:
        raise ExperimentError(f"--only must be a regular expression; got {only!r}: {error}") from error
    if not wanted:
        raise ExperimentError(f"no cell matches --only {only!r}; --list shows all cells")
    needed = {s.key for cell in wanted for base in tunings(cell) for s in config.tuning_of(base)}
    names = {cell.id for cell in wanted}
    return [cell for cell in config.cells if cell.id in names or (cell.tuning and cell.settings.key in needed)]


def status(cell: Cell, config: Config, lines: Results) -> str:
    """Return ``done``, ``cannot``, ``to do``, or ``waits`` (for its tuning)."""
    try:
        settings = lines.resolve(cell, config)
    except Waiting:
        settings = cell.settings
        if lines.get(settings) is None and reachable(settings, config.folder) is None:
            return "waits"
    line = None if settings is None else lines.get(settings)
    return "to do" if line is None else "cannot" if "cannot" in line else "done"


class Runner:
    """Runs cells and remembers the failures of this call.

    Parameters
    ----------
    config : Config
        The configuration.
    path : Path
        The file of results. Failures are written to a file beside it.
    console : rich.console.Console
        The console for progress lines.
    device : str
        The device to train on.
    own : Path, optional
        A Python file that every process executes first.
    """

    def __init__(
        self, config: Config, path: Path, console: Console, device: str = "cpu", own: Path | None = None
    ) -> None:
        self.config = config
        self.path = path
        self.errors = path.with_suffix(".errors.jsonl")
        self.console = console
        self.found = Results(results.read(path))
        self.failed: dict[str, str] = {}
        self.device = device
        self.own = own
        self.context = context() | {"device": device}

    def run(self, cells: list[Cell], jobs: int) -> int:
        """Run all cells without a result, and return the number of failed runs.

        Raises
        ------
        ExperimentError
            Before any work, if data is missing, broken or too small.
        """
        self._check_data(cells)
        self._show(f"{self._settled(cells)} of {len(cells)} cells of {self.config.name} are done; results: {self.path}")
        self._show(f"device: {self.device}, processes: {jobs}, one thread each")
        self._show("    done  test accuracy  seconds  run")
        for message in self._here(cells) if jobs == 1 else self._elsewhere(cells, jobs):
            self._show(f"{self._settled(cells):>4}/{len(cells):<4} {message}")
        return len(self.failed)

    def _show(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _check_data(self, cells: list[Cell]) -> None:
        """Load each data set that a run needs, once, so that missing data is one error before any work."""
        for settings in {
            (s.data, s.training, s.validation): s
            for s in (cell.settings for cell in cells if status(cell, self.config, self.found) in ("to do", "waits"))
        }.values():
            data.load(settings.data, self.config.folder, settings.training, settings.validation)

    def _here(self, cells: list[Cell]) -> Iterator[str]:
        torch.set_num_threads(1)
        while True:
            ready = self._next(cells, set())
            if ready is None:
                return
            cell, settings = ready
            yield self._keep(
                cell, settings, perform(settings, self.config.folder, self.device, self._unfinished(settings))
            )

    def _elsewhere(self, cells: list[Cell], jobs: int) -> Iterator[str]:
        """Keep ``jobs`` processes busy. If one dies, all runs in progress start again: the pool does not say which."""
        running: dict[Future[Line], tuple[Cell, Settings]] = {}
        deaths: dict[str, int] = {}
        pool = _processes(jobs, self.own)
        try:
            while True:
                while len(running) < jobs:
                    ready = self._next(cells, {settings.key for _, settings in running.values()})
                    if ready is None:
                        break
                    running[self._submit(pool, ready[1])] = ready
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
                    pool = _processes(jobs, self.own)
                for cell, settings in died:
                    deaths[settings.key] = deaths.get(settings.key, 0) + 1
                    if deaths[settings.key] > 1:
                        yield self._keep(cell, settings, {"error": "its process, or another process of the pool, died"})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, pool: ProcessPoolExecutor, settings: Settings) -> Future[Line]:
        """Return the future of a run. If the pool broke while idle, the future has that exception."""
        try:
            return pool.submit(perform, settings, self.config.folder, self.device, self._unfinished(settings))
        except BrokenProcessPool as error:
            future: Future[Line] = Future()
            future.set_exception(error)
            return future

    def _unfinished(self, settings: Settings) -> Path:
        """Return the file for the state of a run in progress."""
        return self.path.with_suffix(".unfinished") / f"{settings.file_name}.pt"

    def _next(self, cells: list[Cell], running: set[str]) -> tuple[Cell, Settings] | None:
        """Return the first cell that is ready to run. Records cells that cannot be reached."""
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
        """Say whether a method cannot reach a ratio, and record it the first time."""
        error = reachable(cell.settings, self.config.folder)
        if error is None:
            return False
        settings = cell.settings.replace(lr=None)
        if self.found.get(settings) is None:
            self._add(cell, settings, {"cannot": {"least": error.least, "budget": error.budget}})
        return True

    def _keep(self, cell: Cell, settings: Settings, outcome: Line) -> str:
        """Record the outcome of a run, and return a line of text."""
        if "error" in outcome:
            self.failed[settings.key] = outcome["error"]
            line = {"cell": cell.id, "id": describe(settings), "settings": dataclasses.asdict(settings)}
            results.append(self.errors, line | outcome | self.context)
            return f"failed: {describe(settings)}: {outcome['error'].strip().splitlines()[-1]} (see {self.errors})"
        self._add(cell, settings, outcome)
        return f"{outcome['test_accuracy']:13.2f} %  {outcome['seconds']:7.1f}  {describe(settings)}"

    def _add(self, cell: Cell, settings: Settings, outcome: Line) -> None:
        line = {"cell": cell.id, "id": describe(settings), "settings": dataclasses.asdict(settings)}
        complete = line | outcome | self.context
        results.append(self.path, complete)
        self.found.add(complete)

    def _settled(self, cells: list[Cell]) -> int:
        return sum(status(cell, self.config, self.found) in ("done", "cannot") for cell in cells)


def perform(settings: Settings, folder: Path | None, device: str = "cpu", unfinished: Path | None = None) -> Line:
    """Return the outcome of a run, or ``error`` with a traceback."""
    try:
        return training.run(settings, folder, device, unfinished)
    except Exception:  # one failure must not stop the remaining runs
        return {"error": traceback.format_exc()}


def execute(path: Path) -> None:
    """Execute a Python file, which adds networks, methods or data sets."""
    name = f"experiments_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"--import needs a Python file; got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _processes(jobs: int, own: Path | None) -> ProcessPoolExecutor:
    """Return processes with one thread each, which end with this process."""
    for name in _THREADS:
        os.environ[name] = "1"
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(own,))


def _begin(own: Path | None) -> None:
    torch.set_num_threads(1)
    if own is not None:
        execute(own)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
