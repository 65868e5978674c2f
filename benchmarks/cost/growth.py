"""How time and memory grow with the number of weights, from 10**5 on, every point in a process of its own."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import smh
from cost.context import Figure, Job, fresh
from cost.memory import peak
from cost.timing import Timer, quartiles, ratio

SIDE = 316
"""Every tensor is a square of this side, about 10**5 weights, so that growth is growth in their number."""
RATIO = 0.1
ALL_FIT = 10**8
"""Up to so many weights all of them are built at once."""


def measure(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of all sizes, ``job["sizes"]``."""
    for weights in job["sizes"]:
        yield from fresh(job | {"cell": "growth at", "weights": weights})


def measure_at(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of one size: memory first, while the process is fresh, then time."""
    count = max(1, round(job["weights"] / SIDE**2))
    shapes = {f"layers.{i}": (SIDE, SIDE) for i in range(count)}
    timer = Timer(job["rounds"], job["clock"])
    runs: dict[str, Any] = {"plan": lambda: smh.Plan.build(shapes, ratio=RATIO)}
    memory = {"plan": peak(runs["plan"])}
    plan = smh.Plan.build(shapes, ratio=RATIO)
    variables = smh.initialize(plan)
    left, right = variables["pool/left"], variables["pool/right"]
    tensor = plan.tensors[count // 2]
    rows = slice(tensor.offset // plan.pool.side, (tensor.stop - 1) // plan.pool.side + 1)
    operations = {"build one": ([tensor.name], lambda: left[rows] @ right)}
    if plan.num_weights <= 1.1 * ALL_FIT:
        operations["build all"] = (None, lambda: left @ right)
    extra = {"weights": plan.num_weights, "tensors": count}
    yield _figure(extra, "plan", "ms", memory["plan"], 1e3 * timer.interleave(runs)["plan"])
    for operation, (names, raw) in operations.items():

        def build(names: Any = names) -> Any:
            return smh.materialize(plan, variables, names)

        grown = peak(build)
        times = timer.interleave({"raw": raw, "exact": build})
        yield _figure(extra, operation, "ms", grown, 1e3 * times["exact"])
        over = _figure(extra, operation, "times", grown, times["exact"])
        yield over | {"baseline": "left @ right", "floor": 2.0, **ratio(times, "exact", times["raw"])}


def _figure(extra: Figure, operation: str, unit: str, grown: int, values: np.ndarray) -> Figure:
    return {
        "model": f"{extra['weights']:.0e} weights",
        "pool": "matmul",
        "ratio": RATIO,
        "operation": operation,
        "variant": "exact",
        "baseline": None,
        "baseline_ms": None,
        "floor": None,
        "unit": unit,
        "extra": extra | {"peak_bytes": grown},
        **quartiles(values),
    }
