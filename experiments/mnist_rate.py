"""Training for small files: LeNets on MNIST, with and without the rate in the loss, with and without a pool.

``python -m experiments.mnist_rate run --data FOLDER`` trains every cell without a result, seed by seed.
``python -m experiments.mnist_rate report`` writes the page. Results hold how often each integer occurs, from which the
page computes bytes. A pool generates all weights and biases. Without a pool, every tensor is rounded to integers of its
own, with a learned scale.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional

import smh
from experiments import data, models, results, sizes, training
from experiments.data import Images
from experiments.errors import run_app
from experiments.integers import RoundedTensors
from experiments.results import Line

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
RESULTS = Path(__file__).parent / "results" / "mnist_rate.jsonl"
SEEDS = 0, 1, 2
_File = Annotated[Path, typer.Option("--results", help="The file of results.")]


@dataclass(frozen=True)
class Cell:
    """The settings of a run: ``ratio`` is that of the pool, or None without one; ``weight`` that of the rate."""

    model: str
    ratio: float | None
    weight: float
    lr: float
    seed: int
    epochs: int
    batch: int = 200
    training: int = 60_000
    data: str = "mnist"
    bits: int = 8


def cells() -> Iterator[Cell]:
    """Iterate over all runs, the first seed of every method first."""
    for seed in SEEDS:
        large = Cell("lenet300", 0.1, 5e-6, 1e-2, seed, epochs=20)
        small = Cell("lenet5", 0.05, 2e-5, 1e-2, seed, epochs=3, batch=100, bits=5)
        for cell in (large, small):
            alone = dataclasses.replace(cell, ratio=None, lr=2e-3)
            yield from (cell, alone, dataclasses.replace(alone, weight=cell.weight / 2.5))
            yield from (dataclasses.replace(cell, weight=2.0 * cell.weight), dataclasses.replace(cell, weight=0.0))


Rate = Callable[[], torch.Tensor]
Integers = Callable[[], dict[str, torch.Tensor]]


def make(cell: Cell, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, Rate, Integers]:
    """Return a model, its rate, and its integers by array."""
    model = models.build(cell.model, shape, classes)
    return _without_pool(model, cell.bits) if cell.ratio is None else _with_pool(model, cell)


def _with_pool(model: nn.Module, cell: Cell) -> tuple[nn.Module, Rate, Integers]:
    options = {"include": ["*.weight", "*.bias"], "scale": {"*.weight": "fan_in", "*.bias": 0.03}}
    small = smh.compress(
        model, cell.ratio, bits=cell.bits, exponents="fixed", optimizer="adam", seed=cell.seed, **options
    )
    pool, names = smh.plan_of(small).pool, ("left", "right")

    def integers() -> dict[str, torch.Tensor]:
        arrays = {name: getattr(small, f"pool_{name}").detach() for name in names}
        units = {name: 2.0 ** (e - cell.bits + 1) for name, e in zip(names, pool.exponents, strict=True)}
        return {
            name: (x / units[name]).round().clamp(1 - 2 ** (cell.bits - 1), 2 ** (cell.bits - 1) - 1)
            for name, x in arrays.items()
        }

    return small, lambda: smh.rate(small), integers


def _without_pool(model: nn.Module, bits: int) -> tuple[nn.Module, Rate, Integers]:
    tensors = RoundedTensors(list(sizes.layers(model).values()), ("weight", "bias"), bits)
    return model, tensors.rate, lambda: {str(k): q for k, q in enumerate(tensors.integers())}


def train(cell: Cell, folder: Path | None) -> Line:
    """Train and test a model, and count its integers."""
    begun = time.perf_counter()
    loaded = data.load(cell.data, folder, cell.training, 0)
    torch.manual_seed(cell.seed)
    model, rate, integers = make(cell, loaded.shape, loaded.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=cell.lr)
    batches, per_epoch = _batches(loaded.training, cell), cell.training // cell.batch
    steps, total = cell.epochs * per_epoch, 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cell.lr * training.rate(step, steps, 0.0)
        x, y = next(batches)
        loss = functional.cross_entropy(model(x), y)
        total += loss.item()
        if cell.weight:
            loss = loss + cell.weight * rate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % per_epoch == 0:
            with torch.no_grad():
                kilobytes = rate().item() / 8000
            text = f"epoch {(step + 1) // per_epoch} of {cell.epochs}  loss {total / per_epoch:.4f}  {kilobytes:.2f} kB"
            print(f"    {text}  {time.perf_counter() - begun:6.1f} s", flush=True)
            total = 0.0
    return {
        "error": 100.0 - training.accuracy(model, loaded.test),
        "counts": {name: _counts(q) for name, q in integers().items()},
        "scales": sum(x.numel() == 1 for x in model.parameters()),
        "seconds": time.perf_counter() - begun,
    }


def _batches(images: Images, cell: Cell) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over batches without end, in an order given by the seed. Incomplete batches are dropped."""
    generator = torch.Generator().manual_seed(cell.seed)
    while True:
        order = torch.randperm(len(images), generator=generator)
        for indices in order[: len(order) // cell.batch * cell.batch].split(cell.batch):
            yield images.batch(indices)


def _counts(q: torch.Tensor) -> list[int]:
    """Return how often each integer from the least to the largest occurs, and before that the least."""
    whole = q.numpy().astype(np.int64).reshape(-1)
    return [int(whole.min()), *np.bincount(whole - whole.min()).tolist()]


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    path: _File = RESULTS,
) -> None:
    """Train every cell without a result, on one thread."""
    results.run_missing(cells(), path, lambda cell: train(cell, data), lambda line: f"{line['error']:6.2f} %")


@app.command()
def report(
    path: _File = RESULTS,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("docs/results/rate.md"),
) -> None:
    """Write the page from the results."""
    from experiments.report import mnist_rate

    output.write_text(mnist_rate.page(results.read(path)))


if __name__ == "__main__":
    run_app(app)
