"""From a file to the first inference in PyTorch, relative to the dense file. Every load is in a fresh process."""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import smh.torch
from benchmarks.measure import Row, in_fresh_process, memory_row, over, resident
from benchmarks.torch_models import inputs
from benchmarks.torch_networks import network

DENSE = "dense"
KINDS = {DENSE: "", "compressed": "", "frozen": ", frozen"}
CACHES = ("warm", "cold")


def measure(names: Iterable[str], ratios: Iterable[float], rounds: int) -> Iterator[Row]:
    """Iterate over times with the file in the cache of the system or not, and over peaks of memory."""
    for name, ratio in itertools.product(names, ratios):
        with tempfile.TemporaryDirectory() as folder:
            paths = write(name, ratio, Path(folder))
            found: dict[tuple[str, str], list[list[float]]] = {case: [] for case in itertools.product(CACHES, KINDS)}
            for _ in range(rounds):
                for (cache, kind), results in found.items():
                    text = in_fresh_process("loading.first_inference", paths[kind], name, kind, cache)
                    results.append(json.loads(text))
        seconds = {case: [result[0] for result in results] for case, results in found.items()}
        of: dict[str, Any] = {"network": name, "ratio": ratio, "mode": "eager"}
        for cache, (kind, suffix) in itertools.product(CACHES, list(KINDS.items())[1:]):
            yield over(seconds[cache, kind], seconds[cache, DENSE], what=f"{cache}{suffix}", **of)
        peaks = {kind: [result[1] for result in found["warm", kind]] for kind in KINDS}
        medians = {kind: int(statistics.median(peak)) for kind, peak in peaks.items() if None not in peak}
        for kind in list(KINDS)[1:]:
            yield from memory_row(medians.get(kind), medians.get(DENSE), what=f"memory{KINDS[kind]}", **of)


def write(name: str, ratio: float, folder: Path) -> dict[str, str]:
    """Write a network as a dense file and as a compressed one. Return the paths by kind of model."""
    dense, small = str(folder / "dense.safetensors"), str(folder / "small.safetensors")
    model = network(name.split()[0])
    save_file(model.state_dict(), dense)
    smh.save(small, smh.torch.compress_(model, ratio))
    return {kind: dense if kind == DENSE else small for kind in KINDS}


def first_inference(path: str, name: str, kind: str, cache: str) -> str:
    """Return the seconds from a file to the output for one image, and the peak bytes beyond those before."""
    with torch.device("meta"):
        model = network(name.split()[0]).eval()
    x, measured = inputs(name, 1), Path("/proc/self/clear_refs")
    _prepare(path, cache)
    base = resident() if measured.exists() else None
    if base is not None:
        measured.write_text("5", encoding="utf-8")
    start = time.perf_counter()
    if kind == DENSE:
        model.load_state_dict(load_file(path), assign=True)
    else:
        model = smh.torch.load(path, model, frozen=kind == "frozen")
    with torch.no_grad():
        model(x)
    seconds = time.perf_counter() - start
    return json.dumps([seconds, None if base is None else resident("VmHWM") - base])


def _prepare(path: str, cache: str) -> None:
    """Bring a file into the cache of the system, or remove it from there."""
    with open(path, "rb") as file:
        for _ in iter(functools.partial(file.read, 1 << 20), b""):
            pass
        if cache == "cold":
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
