"""The conformance suite and the demonstration, run as a user does, and what they say kept.

With a time, the suite is run again and again until that is over, with other plans each time; what each run finds is
kept at once, so that a stop loses no more than the run that it stops.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smh.v2.backends.registry import list_backends
from trust.record import Findings

_RUN = "import sys; from smh.v2.cli import main; sys.exit(main())"


def run(
    check: str, backends: Sequence[str] = (), seconds: float = 0, options: Sequence[str] = ()
) -> Iterator[Findings]:
    """Run the suite for one backend after the other, each time in processes of its own.

    Parameters
    ----------
    check : str
        ``conformance``, the suite as it is by default, or ``deep``, with ``--deep``.
    backends : sequence of str
        Which; all whose frameworks are installed by default.
    seconds : float
        How long at least, for each backend; a run that finds something ends it.
    options : sequence of str
        More of ``smh conformance``.

    Yields
    ------
    Findings
        Of each run.
    """
    for backend in backends or list_backends(installed=True):
        end = time.monotonic() + seconds
        while True:
            yield (findings := _run(check, backend, options))
            if findings.failures or time.monotonic() >= end:
                break


def _run(check: str, backend: str, options: Sequence[str]) -> Findings:
    """Run the suite once for one backend."""
    findings = Findings(check, labels={"backend": backend})
    found = _printed("conformance", "--backend", backend, "--json", *["--deep"] * (check == "deep"), *options)
    rows = found["rows"]
    findings.labels["modes"] = ", ".join(row["mode"] for row in rows if row["passed"] or row["failed"])
    findings.labels["seeds"] = str(found["seeds"][backend])
    findings.count("runs of the suite")
    findings.count("plans drawn", found["plans"][backend])
    for what, key in (
        ("laws passed", "passed"),
        ("laws failed", "failed"),
        ("checks", "checks"),
        ("bits compared", "bits"),
        ("bits different", "different"),
    ):
        findings.count(what, sum(row[key] for row in rows))
    findings.skipped.update({f"some of mode {row['mode']}": row["skipped"] for row in rows if row["skipped"]})
    for failure in found["failures"]:
        findings.expect(False, f"{failure['id']}: {failure['error'][-500:]}")
    different = sum(row["different"] for row in rows)
    findings.expect(found["passed"] and not different, f"{different} bits are different")
    return findings


def demo() -> Findings:
    """Run the demonstration with its defaults."""
    findings = Findings("demo")
    with tempfile.TemporaryDirectory() as folder:
        found = _printed("demo", "--json", "--out", str(Path(folder) / "digits.safetensors"))
    findings.count("weights", found["weights"])
    for what in ("dense", "pool"):
        findings.count(f"{what}: variables", found[what]["variables"])
        findings.count(f"{what}: bytes", found[what]["bytes"])
        findings.measure(f"{what}: test accuracy, %", 100 * found[what]["accuracy"])
    findings.count("bits different after loading", found["bits_different"])
    findings.expect(found["same"], "the loaded weights differ from those that were saved")
    return findings


def _printed(*arguments: str) -> dict[str, Any]:
    """Return the JSON object that a command of the library prints."""
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"smh {' '.join(arguments)} exits with {done.returncode}: {done.stderr[-1500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
