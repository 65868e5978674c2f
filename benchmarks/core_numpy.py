"""Speed and memory of the core of version 2 in NumPy, against raw float32 products, by turns in one process.

OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.core_numpy [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan

SIDES = (2300, 4612)
RATIOS = (0.02, 0.1, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"{processor()}, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s), {rounds} rounds by turns, medians\n")
    print("| n | ratio | build | build, default kernels | gradients | memory of building | memory of gradients |")
    print("|---|---|---|---|---|---|---|")
    for side in SIDES:
        for ratio in RATIOS:
            print(row(side, ratio, rounds), flush=True)


def row(side: int, ratio: float, rounds: int) -> str:
    """Return a line: times over raw float32 products; peak memory over that of the weights."""
    plan = Plan.build({"a": (side, side)}, ratio=9, pool=pools.Matmul(n=side, m=int(ratio * side / 2)))
    kernels, variables = NumpyKernels(), initial_variables(plan)
    left, right = variables["pool/left"], variables["pool/right"]
    g = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    times = by_turns(
        [
            lambda: left @ right,
            lambda: generate.materialize(kernels, plan, variables),
            lambda: generate.materialize(Kernels(np), plan, variables),
            lambda: (g @ right.T, left.T @ g),
            lambda: generate.vjp(kernels, plan, variables, {"a": g}),
        ],
        rounds,
    )
    weights = 4 * side * side
    build = peak(lambda: generate.materialize(kernels, plan, variables)) / weights
    pull = (peak(lambda: generate.vjp(kernels, plan, variables, {"a": g})) - left.nbytes - right.nbytes) / weights
    return (
        f"| {side} | {ratio} | {times[1] / times[0]:.2f} | {times[2] / times[0]:.2f} | {times[4] / times[3]:.2f} "
        f"| {build:.2f} | {pull:.2f} beyond what is returned |"
    )


def by_turns(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median time of each function; they run one after another, round by round."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for times, function in zip(found, functions, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in found]


def peak(function: Callable[[], object]) -> int:
    """Return the most bytes that NumPy holds while a function runs, its result included."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    _ = function()
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most


def processor() -> str:
    """Return the name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "an unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unknown processor")


if __name__ == "__main__":
    main()
