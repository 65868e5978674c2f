"""Training steps and inference of compressed models in PyTorch, over the plain model's."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cost import torch_models
from cost.context import Figure, Job
from cost.timing import Timer, ratio
from smh.backends import torch as smh

FACTOR = {"fast": 1.0, "exact": 2.0}
"""How long the products of an arithmetic take at least, over raw float32 ones."""


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Return a training step: forward, backward, and plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def infer(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return a forward pass without gradients."""

    @torch.no_grad()
    def run() -> None:
        model(x)

    return run


def products(model: nn.Module, backward: bool) -> Callable[[], Any]:
    """Return the raw float32 products that generating a model's weights cannot do without."""
    left, right = model.pool_left.detach(), model.pool_right.detach()
    if not backward:
        return lambda: left @ right
    g = torch.randn(left.shape[0], right.shape[1])
    return lambda: (left @ right, g @ right.mT, left.mT @ g)


def measure_step(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of a training step: all ratios and arithmetics by turns with the plain model."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    x, y = torch_models.inputs(job["model"], job["size"], job["batch"])
    plain = torch_models.make(job["model"], job["size"])
    kinds = [(arithmetic, share) for share in job["ratios"] for arithmetic in job["arithmetics"]]
    models = {(a, share): smh.compress(plain, ratio=share, arithmetic=a) for a, share in kinds}
    runs = {"plain": train(plain, x, y)} | {f"{a} {share}": train(model, x, y) for (a, share), model in models.items()}
    for share in job["ratios"]:
        runs[f"raw {share}"] = products(models["fast", share], backward=True)
    times = Timer(job["rounds"], job["clock"]).interleave(runs)
    base = times["plain"]
    common = {"model": job["model"], "pool": "matmul", "operation": _about(job), "baseline": "plain step", "extra": {}}
    for share in job["ratios"]:
        raw = times[f"raw {share}"]
        alone = ratio(times, f"raw {share}", base)
        common["ratio"] = share
        yield common | {"variant": "raw products alone", "floor": None, **alone}
        for arithmetic in job["arithmetics"]:
            floor = 1 + FACTOR[arithmetic] * alone["value"]
            yield common | {"variant": arithmetic, "floor": floor, **ratio(times, f"{arithmetic} {share}", base)}
        yield common | {
            "variant": "fast over plain and raw",
            "baseline": "plain step + raw products",
            "floor": 1.0,
            **ratio(times, f"fast {share}", base + raw),
        }


def measure_inference(job: Job) -> Iterator[Figure]:
    """Iterate over the figures of a forward pass, by residency."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plain = torch_models.make(job["model"], job["size"]).eval()
    share = job["ratios"][0]
    variants = [("cached", "exact"), ("layer", "exact"), ("full", "exact"), ("layer", "fast"), ("full", "fast")]
    models = {
        f"{residency}, {arithmetic}": smh.compress(plain, ratio=share, arithmetic=arithmetic, residency=residency)
        for residency, arithmetic in variants
    }
    for batch in job["batches"]:
        x, _ = torch_models.inputs(job["model"], job["size"], batch)
        runs = {"plain": infer(plain, x), "raw products alone": products(models["full, exact"], backward=False)}
        runs |= {name: infer(model, x) for name, model in models.items()}
        times = Timer(job["rounds"], job["clock"]).interleave(runs)
        alone = ratio(times, "raw products alone", times["plain"])["value"]
        for name in list(runs)[1:]:
            residency, _, arithmetic = name.partition(", ")
            floor = {"cached": 1.0, "raw products alone": None}.get(residency, 1 + FACTOR.get(arithmetic, 0) * alone)
            yield {
                "model": job["model"],
                "pool": "matmul",
                "ratio": share,
                "operation": _about(job | {"batch": batch}),
                "variant": name,
                "baseline": "plain forward",
                "floor": floor,
                "extra": {},
                **ratio(times, name, times["plain"]),
            }


def _about(job: Job) -> str:
    size = job["size"]
    what = f"width {size}" if job["model"] in ("mlp", "tiny") else f"{size} x {size}"
    return f"{job['cell']}, {what}, batch {job['batch']}"
