"""The file of results: one JSON line for each call of a command, only ever added to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import smh.v2 as smh

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(smh.__file__).resolve().parent.parent
RESULTS = ROOT / "trust" / "results" / "trust.jsonl"
PACKAGES = ("numpy", "safetensors", "torch", "jax", "tensorflow")
MOST_FAILURES = 10
Line = dict[str, Any]


@dataclass
class Findings:
    """What a command found, while it is at work.

    Parameters
    ----------
    check : str
        The command.

    Attributes
    ----------
    counts : dict of str to int
        How often what was done, and what came of it.
    measured, bounds : dict of str to number
        Figures, and how large those of the same names may be.
    skipped : dict of str to str
        What could not be done here, and why.
    failures : list of str
        What did not hold, in words; the first ones.
    labels : dict of str to str
        What tells several findings of one command apart.
    context : dict
        What :func:`context` said at the start, when the library was imported.
    """

    check: str
    counts: dict[str, int] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    context: Line = field(default_factory=lambda: context())
    started: float = field(default_factory=time.monotonic)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count; a number of 0 makes it appear."""
        self.counts[what] = self.counts.get(what, 0) + number

    def measure(self, what: str, value: float, bound: float | None = None) -> None:
        """Keep a figure, which must not be above its bound."""
        self.measured[what] = value
        if bound is not None:
            self.bounds[what] = bound
            self.expect(value <= bound, f"{what} is {value:g}, and may be {bound:g}")

    def expect(self, holds: bool, what: str) -> None:
        """Note a failure, unless something holds."""
        if not holds:
            self.count("failures")
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(what)

    def line(self) -> Line:
        """Return the line of results."""
        return {
            **self.context,
            **self.labels,
            "check": self.check,
            "counts": self.counts,
            "measured": self.measured,
            "bounds": self.bounds,
            "skipped": self.skipped,
            "failures": self.failures,
            "passed": not self.failures,
            "seconds": round(time.monotonic() - self.started, 1),
        }


def context() -> Line:
    """Return what a line tells besides what was found: of the library that is imported, wherever it lies."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--", "smh", "trust/*.py")),
        "source": source(),
        "versions": {"python": platform.python_version(), "smh": smh.__version__} | _versions(),
        "system": platform.system(),
    }


def source() -> str:
    """Return a fingerprint of the library's code, committed or not."""
    sha = hashlib.sha256()
    for path in sorted((LIBRARY / "smh").rglob("*.py")):
        sha.update(str(path.relative_to(LIBRARY)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a file at once; one that was cut because its writer was stopped is taken out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Line]:
    """Return the lines of a file, without one that was cut."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(text) for text in whole.splitlines()]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(LIBRARY), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
