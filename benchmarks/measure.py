"""Measuring and recording: runs by turns, medians and quartiles of ratios, peak memory in a fresh process."""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

K = TypeVar("K")
Row = dict[str, Any]
"""A result: network, measured quantity, its value relative to its floor, and the quartiles over rounds."""
Case = Callable[[], Callable[[], object]]
"""Prepares a round, untimed, and returns the function to time."""
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GRADIENTS = ("exact", "fast")
"""The kinds of gradients."""
AMX = "-amx"
"""What names of results with AMX have after the backend."""
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def limit_threads(count: int) -> None:
    """Limit the threads of all frameworks. Call it before importing them, because they read the limit at import."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])
    for library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ[f"{library}_THREADS"] = str(count)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def by_turns(cases: Mapping[K, Case], rounds: int) -> dict[K, list[float]]:
    """Return the seconds of each case, round by round, without a first round, which also compiles."""
    seconds: dict[K, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, prepare in cases.items():
            run = prepare()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def over(times: list[float], floor: list[float], **what: Any) -> Row:
    """Return the row of a case, with times relative to its floor in the same rounds."""
    ratios = [time / least for time, least in zip(times, floor, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    seconds = {"seconds": statistics.median(times), "floor": statistics.median(floor)}
    row = what | {"value": middle, "low": low, "high": high} | seconds
    return {name: round(x, 5) if isinstance(x, float) else x for name, x in row.items()}


def steps(
    make: Callable[..., Case], mode: str, networks: Iterable[str], ratios: Iterable[float], rounds: int
) -> Iterator[Row]:
    """Iterate over training steps ``make(network, ratio, **options)`` relative to the plain model, with ratio None."""
    for network in networks:
        cases: dict[tuple[float | None, str], Case] = {(None, "plain"): make(network, None)}
        for ratio in ratios:
            for kind in GRADIENTS:
                cases[ratio, kind] = make(network, ratio, gradients=kind)
        seconds = by_turns(cases, rounds_of(network, rounds))
        for case in list(cases)[1:]:
            what = {"network": network, "ratio": case[0], "mode": mode, "what": case[1]}
            yield over(seconds[case], seconds[None, "plain"], **what)


def rounds_of(network: str, rounds: int) -> int:
    """Return the number of rounds of a network: half as many for large images."""
    return max(3, rounds // 2) if "224" in network and rounds > 3 else rounds


def peak_in_fresh_process(function: str, *arguments: Any) -> int | None:
    """Return the result of ``MODULE.FUNCTION(*arguments)`` of this package in a separate process; None off Linux."""
    if not on_linux():
        return None
    # Freed memory is returned at once, so resident memory is memory in use.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}
    return int(in_fresh_process(function, *arguments, **settings))


def in_fresh_process(function: str, *arguments: Any, **environment: str) -> str:
    """Return the result of ``MODULE.FUNCTION(*arguments)`` of this package in a separate process, as text."""
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)]
    done = subprocess.run(command, env=settings, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def on_linux() -> bool:
    """Return whether the system reports peak memory and can reset it."""
    return Path("/proc/self/clear_refs").exists()


def memory_row(peak: int | None, floor: int | None, **what: Any) -> list[Row]:
    """Return a row of memory, or an empty list if it was not measured."""
    return [] if peak is None or floor is None else [what | {"value": round(peak / floor, 5), "bytes": peak}]


def resident(field: str = "VmRSS") -> int:
    """Return the resident bytes of this process now, or for ``VmHWM`` their peak since :func:`peak_beyond` began."""
    gc.collect()
    if field == "VmRSS":
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def peak_beyond(base: int | None, run: Callable[[], object]) -> int:
    """Return the peak bytes beyond ``base``, by default the resident bytes before, in a second call of ``run``."""
    run()
    base = resident() if base is None else base
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    run()
    return resident("VmHWM") - base


def _multiplies_bytes(backend: str) -> bool:
    """Return whether the kernels of a backend use units for 8-bit integers here."""
    if backend != "torch":
        return False
    from smh.backends.torch import int8

    return int8.available()


def record(command: str, backend: str, rounds: int, rows: list[Row], folder: Path) -> Path:
    """Write the results of a command for a backend, with machine, versions and commit; those with AMX apart."""
    libraries = {"numpy": ["numpy"], "torch": ["torch"], "jax": ["jax"], "tensorflow": ["tensorflow", "keras"]}
    conditions = {
        "command": command,
        "backend": backend,
        "rounds": rounds,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "processor": processor(),
        "features": [name for name in ("avx2", "avx512f", *_INT8) if name in _cpu("flags").split()],
        "int8": _multiplies_bytes(backend),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries[backend]},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{command}-{backend}{AMX if has_amx(conditions) else ''}.json"
    head = json.dumps(conditions, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    return path


def has_amx(conditions: Mapping[str, Any]) -> bool:
    """Say whether products of bytes used the matrix units of a processor: such results stand beside others."""
    return bool(conditions["int8"]) and "amx_int8" in conditions["features"]


def processor() -> str:
    """Return the name of the processor."""
    return _cpu("model name") or platform.processor() or platform.machine()


def commit() -> str:
    """Return the last commit that changed the library, with a plus for later changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("log", "-1", "--format=%h", "--", "smh") + ("+" if git("status", "--porcelain", "smh") else "")


def _cpu(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(": ")[2] for line in lines if line.startswith(field)), "")


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(".")
    print(getattr(importlib.import_module(f"benchmarks.{module}"), name)(*json.loads(sys.argv[2])))
