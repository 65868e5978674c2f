"""Times of functions that run by turns, and what is said of them."""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHORTEST = 0.02
"""Seconds that one measurement takes at least: what is faster is repeated within it."""

Times = dict[str, np.ndarray]


@dataclass(frozen=True)
class Timer:
    """How times are taken.

    Parameters
    ----------
    rounds : int
        How often every function is measured.
    clock : str
        ``"wall"``, or ``"cpu"``: processor time, which other processes disturb less.
    """

    rounds: int
    clock: str = "wall"

    def interleave(self, runs: Mapping[str, Callable[[], object]]) -> Times:
        """Run functions by turns, A B C A B C, and return the seconds of each in every round.

        Each runs once before, so that everything is loaded, traced and compiled.
        """
        for run in runs.values():
            run()
        gc.collect()
        once = {name: self._seconds(run, 1) for name, run in runs.items()}
        repeats = {name: min(1000, max(1, math.ceil(SHORTEST / max(1e-9, taken)))) for name, taken in once.items()}
        rounds = [once] if set(repeats.values()) == {1} else []
        while len(rounds) < self.rounds:
            rounds.append({name: self._seconds(run, repeats[name]) for name, run in runs.items()})
        return {name: np.asarray([taken[name] for taken in rounds]) for name in runs}

    def _seconds(self, run: Callable[[], object], repeats: int) -> float:
        clock = CLOCKS[self.clock]
        if repeats > 1:
            run()  # what is short shall meet its own data in the caches, not what ran before it
        start = clock()
        for _ in range(repeats):
            run()
        return (clock() - start) / repeats


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Return the median of some values and the quartiles around it, by the names that figures have."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"value": float(median), "low": float(low), "high": float(high)}


def ratio(times: Times, name: str, base: np.ndarray) -> dict[str, float]:
    """Return the quartiles of a function's times over a baseline's, round by round, and the baseline's median."""
    return quartiles(times[name] / base) | {"baseline_ms": float(1e3 * np.median(base))}
