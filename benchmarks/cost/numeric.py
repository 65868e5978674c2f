"""Building weights and taking gradients, over the raw operations of the same sizes in the same framework."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import smh
from cost.context import Figure, Job
from cost.frameworks import FRAMEWORKS, Framework
from cost.shapes import MODELS, Shapes, by_size
from cost.timing import Timer, ratio

FLOORS = {"exact": 2.0, "fast": 1.0, "exact gradients": 3.0}
"""Arithmetic alone. Exact gradients of learnable scales need the virtual weights: a third product in float64."""
WIDE = "raw product in float64"
Runs = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class _Case:
    """A model, a pool and a ratio, with plans for the arithmetics and the arrays of a framework."""

    framework: Framework
    shapes: Shapes
    pool: str
    plans: dict[str, smh.Plan]
    variables: dict[str, Any]

    @property
    def backend(self) -> Any:
        return smh.get_backend(self.framework.backend).in_mode(self.framework.mode)

    @property
    def plan(self) -> smh.Plan:
        return next(iter(self.plans.values()))


def measure(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of one framework, model, pool and ratio."""
    framework = FRAMEWORKS[job["backend"]]()
    timer = Timer(job["rounds"], job["clock"])
    pool = job["pool"]
    case = _make_case(framework, MODELS[job["model"]](), pool, job["ratio"], job["arithmetics"])
    for operation, baseline, runs in _operations(case):
        times = timer.interleave(runs)
        for variant in list(runs)[1:]:
            floor = FLOORS.get(f"{variant} {operation}", FLOORS.get(variant)) if pool != "hash" else None
            yield {
                "model": job["model"],
                "pool": pool,
                "ratio": job["ratio"],
                "operation": operation,
                "variant": variant,
                "baseline": baseline,
                "floor": floor,
                "extra": _extra(case),
                **ratio(times, variant, times["raw"]),
            }


def _make_case(framework: Framework, shapes: Shapes, pool: str, share: float, arithmetics: list[str]) -> _Case:
    plans = {a: smh.Plan.build(shapes, ratio=share, pool=pool, arithmetic=a) for a in arithmetics}
    runner = smh.get_backend(framework.backend)
    variables = smh.initialize(next(iter(plans.values())))
    return _Case(framework, shapes, pool, plans, {name: runner.asarray(x) for name, x in variables.items()})


def _extra(case: _Case) -> dict[str, Any]:
    """Return sizes: those of the products, or the bytes of a stored index that a hash pool does without."""
    if case.pool == "hash":
        return {"weights": case.plan.num_weights, "index_bytes": 4 * case.plan.num_weights}
    return {"weights": case.plan.num_weights, "n": case.plan.pool.side, "m": case.plan.pool.terms}


def _operations(case: _Case) -> Iterator[tuple[str, str, Runs]]:
    """Iterate over operations: a name, that of the baseline, and what to run."""
    rng = np.random.default_rng(0)
    runner, wait = case.backend, case.framework.wait
    raw = _RawHash(case, rng) if case.pool == "hash" else _RawProducts(case, rng)
    everything = (0, case.plan.num_weights)
    spans = {tensor.name: (tensor.offset, tensor.stop) for tensor in case.plan.tensors}
    chosen = {"build all": (None, everything)}
    if len(spans) > 1:
        chosen |= {f"build one, the {size}": ([name], spans[name]) for size, name in by_size(case.shapes).items()}
    for operation, (names, span) in chosen.items():
        runs: Runs = {"raw": raw.forward(*span)}
        for arithmetic, plan in case.plans.items():
            runs[arithmetic] = lambda plan=plan, names=names: wait(runner.materialize(plan, case.variables, names))
        if operation == "build all":
            runs |= raw.others()
        yield operation, raw.forward_name, runs
    cotangents = {
        name: runner.asarray(rng.standard_normal(shape, dtype=np.float32)) for name, shape in case.shapes.items()
    }
    runs = {"raw": raw.backward()}
    for arithmetic, plan in case.plans.items():
        runs[arithmetic] = lambda plan=plan: wait(runner.vjp(plan, case.variables, cotangents))
    yield "gradients", raw.backward_name, runs


class _RawProducts:
    """float32 products of the sizes that a matmul or Kronecker pool has."""

    forward_name = "left @ right"
    backward_name = "g @ right.T, left.T @ g"

    def __init__(self, case: _Case, rng: np.random.Generator) -> None:
        self._framework, self._pool, self._rng = case.framework, case.pool, rng
        self._side, self._terms = case.plan.pool.side, case.plan.pool.terms
        self._backend = case.backend
        self._right = self._random(self._terms, self._side)

    def forward(self, start: int, stop: int) -> Callable[[], Any]:
        """Return the product of those rows of left that weights ``start`` to ``stop`` are made of."""
        # A Kronecker pool of side d * d has its weights in rows of d**3, from d rows of the product each.
        group = math.isqrt(self._side) if self._pool == "kronecker" else 1
        width = group * self._side
        rows = group * ((stop - 1) // width - start // width + 1)
        return self._framework.raw(self._framework.product, self._random(rows, self._terms), self._right)

    def backward(self) -> Callable[[], Any]:
        """Return both gradient products."""
        left, g = self._random(self._side, self._terms), self._random(self._side, self._side)
        return self._framework.raw(self._framework.gradients, left, self._right, g)

    def others(self) -> Runs:
        """Return the product in float64, which exact arithmetic cannot do without."""
        shapes = (self._side, self._terms), (self._terms, self._side)
        wide = [self._backend.asarray(self._rng.standard_normal(shape)) for shape in shapes]
        return {WIDE: self._framework.raw_float64(self._framework.product, *wide)}

    def _random(self, *shape: int) -> Any:
        return self._backend.asarray(self._rng.standard_normal(shape, dtype=np.float32))


class _RawHash:
    """A gather from an index that was made beforehand and is stored, and its transpose."""

    forward_name = "table[index], stored int32 index"
    backward_name = "sums by a stored int32 index"

    def __init__(self, case: _Case, rng: np.random.Generator) -> None:
        self._framework, self._rng = case.framework, rng
        self._backend, self._weights = case.backend, case.plan.num_weights
        self._table = case.backend.asarray(rng.standard_normal(case.plan.pool.size, dtype=np.float32))
        self._size = case.plan.pool.size
        self._index = rng.integers(0, self._size, self._weights, dtype=np.int32)

    def forward(self, start: int, stop: int) -> Callable[[], Any]:
        """Return the gather of weights ``start`` to ``stop``."""
        index = self._backend.asarray(self._index[start:stop])
        return self._framework.raw(self._framework.gather, self._table, index)

    def others(self) -> Runs:
        """Return nothing: a gather has no arithmetic."""
        return {}

    def backward(self) -> Callable[[], Any]:
        """Return the sums of the cotangents of all weights that share an entry."""
        g = self._backend.asarray(self._rng.standard_normal(self._weights, dtype=np.float32))
        scatter = functools.partial(self._framework.scatter, size=self._size)
        return self._framework.raw(scatter, self._backend.asarray(self._index), g)
