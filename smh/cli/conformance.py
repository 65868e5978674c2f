"""``smh conformance``: every law, for every installed backend, in one table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from smh.backends.registry import list_backends
from smh.cli.output import AsJson, ExitCode, emit, progress
from smh.errors import ConformanceError

_ENVIRONMENT = {
    # One thread each, since several backends run at a time; eight devices, so that sharding can be checked on a CPU.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
}


def run(
    backend: list[str] = typer.Option([], help="A backend to check; default: all whose frameworks are installed."),
    device: str = typer.Option("", help="The device, such as cuda; default: each backend's first."),
    mode: list[str] = typer.Option([], help="A mode to check; default: all that the backend declares."),
    deep: bool = typer.Option(False, help="Draw many plans from a new seed, and build at real sizes; takes hours."),
    plans: int = typer.Option(0, help="How many plans to draw, each with five cases; default: as deep as said."),
    seed: int = typer.Option(-1, help="Seed of the drawn plans; default: 0, or a new one with --deep."),
    jobs: int = typer.Option(2, min=1, help="How many backends are checked at a time, each in its own process."),
    as_json: bool = AsJson,
) -> None:
    """Check that backends give the specified bits, in all their modes."""
    suite = _suite()
    chosen = backend or list_backends(installed=True)
    missing = [] if backend else [name for name in list_backends() if name not in chosen]
    options = ["--deep"] * deep
    options += ["--device", device] if device else []
    options += [part for name in mode for part in ("--mode", name)]
    options += ["--plans", str(plans)] if plans else []
    options += ["--seed", str(seed)] if seed >= 0 else []
    reports = _check_all(suite, chosen, options, jobs)
    rows = [row for name in chosen for row in reports[name]["rows"]]
    failures = [failure for name in chosen for failure in reports[name]["failures"]]
    result = {
        "passed": not failures,
        "seeds": {name: reports[name]["seed"] for name in chosen},
        "plans": {name: reports[name]["plans"] for name in chosen},
        "rows": rows,
        "failures": failures,
        "missing": missing,
    }
    emit(result, as_json, lambda console: _print(console, result))
    if failures:
        raise typer.Exit(ExitCode.DIFFERENT)


def _suite() -> Path:
    """Return the folder of the suite, or say what is missing."""
    spec = importlib.util.find_spec("conformance.laws") if importlib.util.find_spec("conformance") else None
    if spec is None or spec.origin is None:
        raise ConformanceError("the package 'conformance' is not there: install smh from a checkout or a wheel")
    for needed in ("pytest", "hypothesis"):
        if importlib.util.find_spec(needed) is None:
            raise ConformanceError(f"the conformance suite needs {needed}: pip install 'smh[test]'")
    return Path(spec.origin).parent


def _check_all(suite: Path, backends: list[str], options: list[str], jobs: int) -> dict[str, Any]:
    reports = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        progress() as bars,
        ThreadPoolExecutor(jobs) as pool,
    ):
        tasks = {name: bars.add_task(f"{name}: waiting", total=None) for name in backends}

        def check(name: str) -> Any:
            bars.update(tasks[name], description=f"{name}: every law in every mode")
            return _check(suite, name, options, Path(folder) / f"{name}.json")

        futures = {pool.submit(check, name): name for name in backends}
        for future in as_completed(futures):
            name = futures[future]
            reports[name] = future.result()
            found = len(reports[name]["failures"])
            bars.update(
                tasks[name], description=f"{name}: {found} failed" if found else f"{name}: done", total=1, completed=1
            )
    return reports


def _check(suite: Path, name: str, options: list[str], report: Path) -> Any:
    """Run the suite for one backend in a process of its own, and read its report."""
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider", "--show-capture=no"]
    command += ["--backend", name, "--report", str(report), *options]
    environment = _ENVIRONMENT | os.environ
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # neither passed nor failed
        raise ConformanceError(f"the suite did not run for {name!r}: {_last_words(done.stdout + done.stderr)}")
    return json.loads(report.read_text(encoding="utf-8"))


def _last_words(output: str) -> str:
    """Return pytest's own errors, or the end of what it said."""
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return "; ".join(errors) or output[-2000:]


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(title="Conformance to SMH-1")
    for column in ("backend", "device", "mode"):
        table.add_column(column)
    for column in ("laws passed", "failed", "checks", "bits compared", "bits different"):
        table.add_column(column, justify="right")
    table.add_column("skipped")
    for row in result["rows"]:
        numbers = (row["passed"], row["failed"], row["checks"], row["bits"], row["different"])
        failed = row["failed"] or row["different"]
        table.add_row(
            row["backend"],
            row["device"],
            row["mode"],
            *(f"{number:,}" for number in numbers),
            row["skipped"],
            style="red" if failed else None,
        )
    for name in result["missing"]:
        table.add_row(name, *[""] * 7, f"not installed: pip install 'smh[{name}]'")
    console.print(table)
    seeds = ", ".join(f"{name} {seed}" for name, seed in result["seeds"].items())
    console.print(f"plans drawn from the seeds: {seeds}", soft_wrap=True)
    for failure in result["failures"]:
        console.print(f"failed: {failure['id']}", style="red", soft_wrap=True)
        console.print(failure["error"][-2000:], soft_wrap=True)
