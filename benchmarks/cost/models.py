"""Training steps and inference of compressed models, over the plain model's of the same framework."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import smh
from cost.context import Figure, Job
from cost.frameworks import FRAMEWORKS, Framework
from cost.timing import Timer, ratio

FACTOR = {"fast": 1.0, "exact": 2.0}
"""How long the products of an arithmetic take at least, over raw float32 ones."""
_VARIANTS = (("cached", "exact"), ("layer", "exact"), ("full", "exact"), ("layer", "fast"), ("full", "fast"))


def of(framework: Framework) -> Any:
    """Return the module that makes a framework's models: all of these have the same functions."""
    return importlib.import_module(f"cost.{framework.backend}_models")


def measure_step(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of a training step: all ratios and arithmetics by turns with the plain model."""
    framework = FRAMEWORKS[job["backend"]]()
    models, mode = of(framework), framework.mode
    x, y = models.inputs(job["model"], job["size"], job["batch"])
    plain = models.make(job["model"], job["size"])
    kinds = [(arithmetic, share) for share in job["ratios"] for arithmetic in job["arithmetics"]]
    made = {kind: models.compress(plain, kind[1], kind[0]) for kind in kinds}
    runs = {"plain": models.train(mode, plain, x, y)}
    runs |= {f"{arithmetic} {share}": models.train(mode, made[arithmetic, share], x, y) for arithmetic, share in kinds}
    for share in job["ratios"]:
        plan = models.plan_of(made[job["arithmetics"][0], share])
        runs[f"raw {share}"] = _products(framework, plan, backward=True)
    times = Timer(job["rounds"], job["clock"]).interleave(runs)
    base = times["plain"]
    common = {"model": job["model"], "pool": "matmul", "operation": about(job), "baseline": "plain step", "extra": {}}
    for share in job["ratios"]:
        raw = times[f"raw {share}"]
        alone = ratio(times, f"raw {share}", base)
        common["ratio"] = share
        yield common | {"variant": "raw products alone", "floor": None, **alone}
        for arithmetic in job["arithmetics"]:
            floor = 1 + FACTOR[arithmetic] * alone["value"]
            yield common | {"variant": arithmetic, "floor": floor, **ratio(times, f"{arithmetic} {share}", base)}
        if "fast" in job["arithmetics"]:
            yield common | {
                "variant": "fast over plain and raw",
                "baseline": "plain step + raw products",
                "floor": 1.0,
                **ratio(times, f"fast {share}", base + raw),
            }


def measure_inference(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of a forward pass, by residency."""
    framework = FRAMEWORKS[job["backend"]]()
    models, mode = of(framework), framework.mode
    plain = models.make(job["model"], job["size"])
    share = job["ratios"][0]
    made = {f"{residency}, {a}": models.compress(plain, share, a, residency) for residency, a in _VARIANTS}
    for batch in job["batches"]:
        x, _ = models.inputs(job["model"], job["size"], batch)
        runs = {"plain": models.infer(mode, plain, x)}
        runs["raw products alone"] = _products(framework, models.plan_of(made["full, exact"]), backward=False)
        runs |= {name: models.infer(mode, model, x) for name, model in made.items()}
        times = Timer(job["rounds"], job["clock"]).interleave(runs)
        alone = ratio(times, "raw products alone", times["plain"])["value"]
        for name in list(runs)[1:]:
            residency, _, arithmetic = name.partition(", ")
            floor = {"cached": 1.0, "raw products alone": None}.get(residency, 1 + FACTOR.get(arithmetic, 0) * alone)
            yield {
                "model": job["model"],
                "pool": "matmul",
                "ratio": share,
                "operation": about(job | {"batch": batch}),
                "variant": name,
                "baseline": "plain forward",
                "floor": floor,
                "extra": {},
                **ratio(times, name, times["plain"]),
            }


def about(job: Job) -> str:
    """Return an operation with the size and number of its inputs."""
    size = job["size"]
    what = f"width {size}" if job["model"] in ("mlp", "tiny") else f"{size} x {size}"
    return f"{job.get('what', job['cell'])}, {what}, batch {job['batch']}"


def _products(framework: Framework, plan: smh.Plan, *, backward: bool) -> Callable[[], Any]:
    """Return the raw float32 products that generating a model's weights cannot do without."""
    side, terms = plan.pool.side, plan.pool.terms
    asarray, rng = smh.get_backend(framework.backend).asarray, np.random.default_rng(0)
    left, right, g = (
        asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in ((side, terms), (terms, side), (side, side))
    )
    forward = framework.raw(framework.product, left, right)
    if not backward:
        return forward
    gradients = framework.raw(framework.gradients, left, right, g)
    return lambda: (forward(), gradients())
