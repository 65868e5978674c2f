"""Fine-tuning without data: a small CNN on CIFAR-10, fitted and then tuned to the outputs of the dense network.

``python -m experiments.datafree run --data FOLDER`` runs every cell without a result, seed by seed.
``python -m experiments.datafree report`` writes the page. The network is trained once for each seed. It is fitted at
each ratio, and the result is tuned on inputs that :func:`smh.datafree.samples` makes, on as many training images, or on
Gaussian noise. Labels are not used. The settings of all inputs are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional

import smh
from experiments import data, models, results, training
from experiments.data import Data
from experiments.errors import ExperimentError, run_app
from experiments.results import Line

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
RESULTS = Path(__file__).parent / "results" / "datafree.jsonl"
SEEDS = 0, 1, 2
RATIOS = 0.5, 0.3
INPUTS = "samples", "images", "noise"
_File = Annotated[Path, typer.Option("--results", help="The file of results.")]


@dataclass(frozen=True)
class Cell:
    """The settings of a run.

    Without a ratio it is that of the dense network, without inputs that of the fit alone. ``epochs`` and ``dense_lr``
    are those of the dense network, ``n`` the number of inputs, ``made`` the steps that make each batch of samples, and
    ``steps``, ``lr`` and ``temperature`` belong to the tuning.
    """

    seed: int
    ratio: float | None = None
    inputs: str | None = None
    data: str = "cifar10"
    model: str = "cnn"
    width: float = 0.5
    training: int = 20_000
    epochs: int = 6
    dense_lr: float = 2e-3
    batch: int = 100
    n: int = 1000
    made: int = 200
    steps: int = 300
    lr: float = 5e-3
    temperature: float = 2.0


def cells() -> Iterator[Cell]:
    """Iterate over all runs, the first seed first."""
    for seed in SEEDS:
        yield Cell(seed)
        for ratio in RATIOS:
            yield from (Cell(seed, ratio, inputs) for inputs in (None, *INPUTS))


def run_cell(cell: Cell, folder: Path | None) -> Line:
    """Make the model of a run, and test it."""
    begun = time.perf_counter()
    loaded = data.load(cell.data, folder, cell.training, 0)
    dense = _dense(dataclasses.replace(cell, ratio=None, inputs=None), folder)
    if cell.ratio is None:
        return {"accuracy": training.accuracy(dense, loaded.test), "seconds": time.perf_counter() - begun}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error of the fit is a result
        model, report = smh.fit(dense, cell.ratio)
    if cell.inputs:
        tune(model, dense, _inputs(dataclasses.replace(cell, ratio=None), folder), cell)
    return {
        "accuracy": training.accuracy(model, loaded.test),
        "fit_error": report.error,
        "seconds": time.perf_counter() - begun,
    }


def tune(model: nn.Module, dense: nn.Module, inputs: torch.Tensor, cell: Cell) -> None:
    """Train a model to give the outputs of the dense one, by the divergence of their probabilities."""
    optimizer = torch.optim.Adam(model.parameters(), lr=cell.lr)
    generator = torch.Generator().manual_seed(cell.seed)
    dense.eval()
    model.train()
    for step in range(cell.steps):
        optimizer.param_groups[0]["lr"] = cell.lr * training.rate(step, cell.steps, 0.0)
        x = inputs[torch.randint(len(inputs), (cell.batch,), generator=generator)]
        x = training.augmented(x, generator)
        with torch.no_grad():
            wanted = functional.log_softmax(dense(x) / cell.temperature, dim=1)
        found = functional.log_softmax(model(x) / cell.temperature, dim=1)
        loss = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@functools.lru_cache(maxsize=1)
def _dense(cell: Cell, folder: Path | None) -> nn.Module:
    """Return the trained dense network."""
    loaded = data.load(cell.data, folder, cell.training, 0)
    torch.manual_seed(cell.seed)
    generator = torch.Generator().manual_seed(cell.seed)
    model = models.build(cell.model, loaded.shape, loaded.classes, cell.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cell.dense_lr, weight_decay=0.05)
    per_epoch = cell.training // cell.batch
    steps = cell.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(cell.training, generator=generator)
        optimizer.param_groups[0]["lr"] = cell.dense_lr * training.rate(step, steps, 0.05)
        first = step % per_epoch * cell.batch
        x, y = loaded.training.batch(order[first : first + cell.batch])
        loss = functional.cross_entropy(model(training.augmented(x, generator)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % per_epoch == 0:
            print(f"    epoch {(step + 1) // per_epoch} of {cell.epochs}  loss {loss.item():.4f}", flush=True)
    return model


@functools.lru_cache(maxsize=len(INPUTS))
def _inputs(cell: Cell, folder: Path | None) -> torch.Tensor:
    """Return what a model is tuned on."""
    loaded: Data = data.load(cell.data, folder, cell.training, 0)
    if cell.inputs == "samples":
        dense = _dense(dataclasses.replace(cell, inputs=None), folder)
        return smh.datafree.samples(
            dense, cell.n, loaded.shape, steps=cell.made, batch=cell.batch, seed=cell.seed, progress=True
        )
    if cell.inputs == "images":
        return loaded.training.batch(torch.arange(cell.n))[0]
    if cell.inputs == "noise":
        return torch.randn(cell.n, *loaded.shape, generator=torch.Generator().manual_seed(cell.seed))
    raise ExperimentError(f"inputs must be one of {', '.join(INPUTS)}; got {cell.inputs!r}")


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    path: _File = RESULTS,
    seeds: Annotated[int, typer.Option(help="How many seeds to run.")] = len(SEEDS),
) -> None:
    """Run every cell without a result, on one thread."""
    chosen = (cell for cell in cells() if cell.seed in SEEDS[:seeds])
    results.run_missing(
        chosen,
        path,
        lambda cell: run_cell(cell, data),
        lambda line: f"{line['accuracy']:6.2f} %  {line['seconds']:6.1f} s",
    )


@app.command()
def report(
    path: _File = RESULTS,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("docs/results/datafree.md"),
) -> None:
    """Write the page from the results."""
    from experiments.report import datafree

    output.write_text(datafree.page(results.read(path)))


if __name__ == "__main__":
    run_app(app)
