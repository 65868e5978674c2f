"""One knob: with ``optimizer="adam"`` or ``"sgd"`` a compressed model trains at the learning rate of the dense one.

``python -m experiments.knob run`` trains the dense and the compressed model in PyTorch, with one seed at each rate of a
list, then with all seeds at the best rate of each, and so in JAX and Keras, at the best rates of PyTorch.
``python -m experiments.knob report`` writes the page. There is no warm-up, no weight decay, and one parameter group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from experiments import elsewhere, results, training
from experiments.cells import describe
from experiments.context import context
from experiments.errors import ExperimentError, run_app
from experiments.results import Line
from experiments.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
RESULTS = Path(__file__).parent / "results" / "knob.jsonl"
RATES = {"adamw": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "sgd": (0.03, 0.1, 0.3, 1.0)}
OPTIMIZERS = {"adamw": "Adam", "sgd": "SGD, momentum 0.9"}
SEEDS = 0, 1, 2
RATIO = 0.1
_IMAGES = Settings("mnist", "cnn", "dense", training=10_000, validation=5_000, epochs=3, batch=100, warmup=0.0)
BASES = {
    "digits": Settings("digits", "mlp", "dense", training=1_200, validation=237, epochs=10, batch=50, warmup=0.0),
    "mnist": _IMAGES,
    "fashion-mnist": _IMAGES.replace(data="fashion-mnist"),
}
_File = Annotated[Path, typer.Option("--results", help="The file of results.")]


class Runs:
    """What was measured, by framework and settings; the last line of a run counts."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = {(line["framework"], Settings(**line["settings"]).key): line for line in lines}

    def of(self, framework: str, settings: Settings) -> list[Line]:
        """Return the lines of settings, of all seeds that were run."""
        keys = [(framework, settings.replace(seed=seed).key) for seed in SEEDS]
        return [self.lines[key] for key in keys if key in self.lines]

    def best(self, settings: Settings) -> float:
        """Return the rate at which PyTorch has the best accuracy on validation images with the first seed."""
        rates = RATES[settings.optimizer]
        return max(rates, key=lambda lr: self._validation(settings.replace(lr=lr, seed=SEEDS[0])))

    def _validation(self, settings: Settings) -> float:
        line = self.lines.get(("torch", settings.key))
        if line is None:
            raise ExperimentError(f"run first what finds the rate: {describe(settings)}")
        return -1.0 if line["diverged"] else line["validation_accuracy"]


def compressed(settings: Settings) -> Settings:
    """Return the settings of the compressed model."""
    return settings.replace(method="matmul", ratio=RATIO)


def tuning(name: str) -> Iterator[tuple[str, Settings]]:
    """Iterate over what PyTorch runs to find the rates for a data set, with one seed."""
    for optimizer, rates in RATES.items():
        for lr in rates:
            dense = BASES[name].replace(optimizer=optimizer, lr=lr)
            yield from (("torch", dense), ("torch", compressed(dense)))


def repeated(name: str, runs: Runs, frameworks: Iterable[str]) -> Iterator[tuple[str, Settings]]:
    """Iterate over what is run with all seeds, at the best rates of PyTorch."""
    for seed in SEEDS:
        for optimizer in RATES:
            base = BASES[name].replace(optimizer=optimizer, seed=seed)
            dense, own = base.replace(lr=runs.best(base)), base.replace(lr=runs.best(compressed(base)))
            some = dict.fromkeys([dense, compressed(dense), compressed(own)])
            yield from ((framework, settings) for framework in frameworks for settings in some)


@app.command()
def run(
    images: Annotated[
        list[str] | None, typer.Option(help=f"Some of {', '.join(BASES)}; only digits by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    path: _File = RESULTS,
) -> None:
    """Run what is not in the file of results yet, on one thread."""
    torch.set_num_threads(1)
    about = context()
    for name in images or ["digits"]:
        _run(tuning(name), data, path, about)
        for frameworks in (["torch"], ["jax", "keras"]):
            _run(repeated(name, Runs(results.read(path)), frameworks), data, path, about)


def _run(todo: Iterable[tuple[str, Settings]], data: Path | None, path: Path, about: dict[str, Any]) -> None:
    done = Runs(results.read(path)).lines
    for framework, settings in todo:
        if (framework, settings.key) in done:
            continue
        folder = None if settings.data == "digits" else data
        outcome = training.run(settings, folder) if framework == "torch" else elsewhere.run(framework, settings, folder)
        line = {"framework": framework, "settings": dataclasses.asdict(settings), **outcome, **about}
        results.append(path, line)
        print(f"{outcome['test_accuracy']:6.2f} %  {framework:6}{describe(settings)}", flush=True)


@app.command()
def report(
    path: _File = RESULTS,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("docs/results/knob.md"),
) -> None:
    """Write the page from the results."""
    from experiments.report import knob

    output.write_text(knob.page(results.read(path)))


if __name__ == "__main__":
    run_app(app)
