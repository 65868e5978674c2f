"""What a figure depends on besides the code that it measures: machine, versions, commit, threads."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("numpy", "torch", "jax", "tensorflow")
Figure = dict[str, Any]
Job = dict[str, Any]


def context() -> Figure:
    """Return what all figures of a call share, its load at the start included."""
    return {
        "machine": {"cpu": _processor(), "cores": os.cpu_count(), "load": [round(x, 2) for x in os.getloadavg()]},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--", "smh")),
        "source": source(),
    }


def source() -> str:
    """Return a fingerprint of the library's code as it is measured, committed or not."""
    sha = hashlib.sha256()
    for path in sorted((ROOT / "smh").rglob("*.py")):
        sha.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]


def environment(threads: int) -> dict[str, str]:
    """Return the environment in which every library uses so many threads, and this checkout is imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    count = dict.fromkeys((*names, "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(threads))
    if threads == 1:
        count["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # As installed: Python may keep what it has compiled, so that only the first import compiles anything.
    others = {"PYTHONDONTWRITEBYTECODE": "", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    return os.environ | count | {"PYTHONPATH": path} | others


def fresh(job: Job, **variables: str) -> Iterator[Figure]:
    """Iterate over what a job gives in a process of its own.

    Raises
    ------
    RuntimeError
        If the process fails; it has said why on standard error.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "job", json.dumps(job)]
    surroundings = environment(job["threads"]) | variables
    with subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode:
        raise RuntimeError(f"the measurement failed with exit code {process.returncode}: {json.dumps(job)}")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
