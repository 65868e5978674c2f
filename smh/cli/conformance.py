"""``smh conformance``: every law, for every installed backend, in one table."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import typer
from rich.console import RenderableType

import smh
from smh.backends.registry import list_backends
from smh.cli.output import AsJson, Listing, Quiet, emit, marked, progress
from smh.errors import ConformanceError, install_line

_ENVIRONMENT = {
    # One thread each, since several backends run at a time; eight devices, so that sharding can be checked on a CPU.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
}
_BESIDE = "conformance"  # the folder of the suite in a checkout, beside the library
_COUNTS = ("passed", "failed", "xfailed", "checks", "bits", "different")
_ROUND = 12  # plans that a process draws: with more, what compilers keep of them would not fit
_TOGETHER = 2  # modes that share a process, and the import of a framework, where so few plans are drawn


def run_conformance(
    backend: list[str] = typer.Option([], help="A backend to check. Default: all that are installed. Repeatable."),
    device: str = typer.Option("", help="The device, such as cuda. Default: each backend's first."),
    mode: list[str] = typer.Option([], help="A mode to check. Default: all that the backend declares. Repeatable."),
    deep: bool = typer.Option(False, help="Draw many plans from a new seed, and build at real sizes. Takes hours."),
    plans: int = typer.Option(
        0, min=0, help="How many plans to draw, each with seven cases. Default: 6, or 400 with --deep."
    ),
    seed: int = typer.Option(-1, min=-1, help="Seed of the drawn plans. Default: 0, or a new one with --deep."),
    jobs: int = typer.Option(2, min=1, help="How many processes run at a time."),
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Check that backends give the specified bits, in all their modes.

    Takes minutes for each backend; --plans 2 takes less.
    """
    suite = _suite()
    names = backend or list_backends(installed=True)
    options = ["--deep"] * deep
    options += ["--device", device] if device else []
    options += ["--plans", str(plans)] if plans else []
    asked = [part for name in mode for part in ("--mode", name)]
    asked += ["--seed", str(seed)] if seed >= 0 else []
    reports = _check_all(suite, names, options, asked, jobs, quiet)
    failures = [failure for name in names for failure in reports[name]["failures"]]
    result = {
        "passed": not failures,
        "seeds": {name: report["seed"] for name, report in reports.items()},
        "plans": {name: report["plans"] for name, report in reports.items()},
        "rows": [row for name in names for row in reports[name]["rows"]],
        "failures": failures,
        "missing": [] if backend else [name for name in list_backends() if name not in names],
    }
    emit(result, as_json, _shown(result), same=not failures, quiet=quiet)


def _suite() -> Path:
    """Return the folder of the suite, which a wheel has inside the library, and a checkout beside it."""
    package = Path(str(smh.__file__)).parent
    folders = [package / "conformance", package.parent / _BESIDE]
    suites = [folder for folder in folders if (folder / "laws.py").is_file()]
    if not suites:
        raise ConformanceError(f"the conformance suite is not installed: looked in {' and '.join(map(str, folders))}")
    for needed in ("pytest", "hypothesis"):
        if importlib.util.find_spec(needed) is None:
            raise ConformanceError(f"the conformance suite needs {needed}: {install_line('conformance')}")
    return suites[0]


def _check_all(
    suite: Path, backends: list[str], options: list[str], asked: list[str], jobs: int, quiet: bool
) -> dict[str, Any]:
    """Return a report for each backend, which is asked for its modes; a few are then checked in each process.

    Compilers keep their programs until a process ends: all modes in one would take its memory. What does not depend on
    drawn plans is checked by the first process of a mode.
    """
    with progress(quiet) as bars, ThreadPoolExecutor(jobs) as pool:
        try:
            bar = {name: bars.add_task(f"{name}: which modes it has", total=None) for name in backends}
            asking = pool.map(lambda name: _check(suite, name, [*options, *asked, "--collect-only"]), backends)
            reports = dict(zip(backends, asking, strict=True))
            checking = {}
            for name, report in reports.items():
                rows = [row for row in report["rows"] if not row["skipped"]]
                rounds = range(0, report["plans"], _ROUND)
                size = _TOGETHER if len(rounds) == 1 else 1
                groups = [rows[k : k + size] for k in range(0, len(rows), size)]
                bars.update(bar[name], description=f"{name}: every law in every mode", total=len(rows) * len(rounds))
                for group, drawn in itertools.product(groups, rounds):
                    arguments = [*options, *(part for row in group for part in ("--mode", row["mode"]))]
                    arguments += ["--seed", str(report["seed"] + drawn)]
                    arguments += ["--plans", str(min(_ROUND, report["plans"] - drawn))]
                    arguments += ["-k", "test_drawn_plans"] if drawn else []
                    checking[pool.submit(_check, suite, name, arguments)] = name, group
            for future in as_completed(checking):
                name, group = checking[future]
                part = future.result()
                for row, more in zip(group, part["rows"], strict=True):
                    row |= {key: row[key] + more[key] for key in _COUNTS}
                reports[name]["failures"] += part["failures"]
                failed = f": {len(reports[name]['failures'])} failed" if reports[name]["failures"] else ""
                bars.update(bar[name], advance=len(group), description=f"{name}{failed}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return reports


def _check(suite: Path, name: str, options: list[str]) -> Any:
    """Run the suite for one backend in a new process, and return its report."""
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider", "--show-capture=no"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += ["--backend", name, "--report", str(report), *options]
        done = subprocess.run(command, env=_ENVIRONMENT | os.environ, capture_output=True, text=True, check=False)
        if done.returncode in (0, 1):  # passed or failed
            return json.loads(report.read_text(encoding="utf-8"))
    what = f"the suite did not run for {name!r}"
    if done.returncode < 0:
        stopped = f"was stopped by {signal.Signals(-done.returncode).name}, as when memory runs out"
        what = f"the suite for {name!r} {stopped}; --jobs 1 needs less"
    raise ConformanceError(f"{what}: {_last_words(done.stdout + done.stderr)}")


def _last_words(output: str) -> str:
    """Return pytest's own errors, or what stands around that of Python, or the end."""
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    fatal = output.find("Fatal Python error")
    return "; ".join(errors) or (output[max(0, fatal - 1000) : fatal + 1000] if fatal >= 0 else output[-2000:])


def _shown(result: dict[str, Any]) -> Iterator[RenderableType]:
    columns = ("backend", "device", "mode", "laws passed", "failed", "checks", "bits compared", "bits different")
    listing = Listing(*columns, "skipped", title="Conformance to SMH-2")
    for row in result["rows"]:
        counts = [row[key] for key in ("passed", "failed", "checks", "bits", "different")]
        style = "red" if row["failed"] or row["different"] else ""
        listing.add(row["backend"], row["device"], row["mode"], *counts, row["skipped"], style=style)
    yield listing
    for name in result["missing"]:
        yield f"{name} is not installed: {install_line(name)}"
    yield f"plans drawn from the seeds: {', '.join(f'{name} {seed}' for name, seed in result['seeds'].items())}"
    for failure in result["failures"]:
        yield marked(f"failed: {failure['id']}")
        yield failure["error"][-2000:]
