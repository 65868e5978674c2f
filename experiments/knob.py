"""One knob: with ``optimizer="adam"`` or ``"sgd"`` a compressed model trains at the learning rate of the dense one.

``python -m experiments.knob run`` trains the dense model and the compressed one at each rate of a list, in PyTorch; then
the digits in JAX and Keras, at the rates that were best in PyTorch. ``python -m experiments.knob report`` writes the
page. The *dense rate* is the one at which the dense model has the best accuracy on validation images, mean over seeds.
There is no warm-up, no weight decay, and one group of parameters.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from experiments import elsewhere, results, training
from experiments.cells import describe
from experiments.context import context
from experiments.report.markdown import signed, table
from experiments.results import Line
from experiments.settings import Settings
from smh.errors import SmhError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "knob.jsonl"
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
NAMES = {"torch": "PyTorch", "jax": "JAX", "keras": "Keras"}
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
        """Return the rate at which PyTorch has the best accuracy on validation images, mean over seeds."""
        return max(
            RATES[settings.optimizer],
            key=lambda lr: mean(self.of("torch", settings.replace(lr=lr)), "validation_accuracy"),
        )


def mean(lines: list[Line], what: str) -> float:
    """Return the mean over lines, minus infinity where there are none."""
    return statistics.fmean(line[what] for line in lines) if lines else -float("inf")


def compressed(settings: Settings) -> Settings:
    """Return the settings of the compressed model."""
    return settings.replace(method="matmul", ratio=RATIO)


def wanted(name: str) -> Iterator[tuple[str, Settings]]:
    """Iterate over what PyTorch runs for a data set, seed by seed."""
    for seed in SEEDS:
        for optimizer, rates in RATES.items():
            for lr in rates:
                dense = BASES[name].replace(optimizer=optimizer, lr=lr, seed=seed)
                yield from (("torch", dense), ("torch", compressed(dense)))


def wanted_elsewhere(runs: Runs) -> Iterator[tuple[str, Settings]]:
    """Iterate over what JAX and Keras run: the digits, at the best rates of PyTorch."""
    for seed in SEEDS:
        for optimizer in RATES:
            base = BASES["digits"].replace(optimizer=optimizer)
            rate, own = runs.best(base), runs.best(compressed(base))
            dense = base.replace(lr=rate, seed=seed)
            for framework in ("jax", "keras"):
                some = [dense, compressed(dense), compressed(dense.replace(lr=own))]
                yield from ((framework, settings) for settings in dict.fromkeys(some))


@app.command()
def run(
    images: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(BASES)}; only digits by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the images.")] = None,
    path: _File = RESULTS,
) -> None:
    """Run what is not in the file of results yet, on one thread."""
    torch.set_num_threads(1)
    about = context()
    for name in images or ["digits"]:
        _run(wanted(name), data, path, about)
    if BASES["digits"].data in (images or ["digits"]):
        _run(wanted_elsewhere(Runs(results.read(path))), data, path, about)


def _run(todo: Iterable[tuple[str, Settings]], data: Path | None, path: Path, about: dict[str, Any]) -> None:
    done = Runs(results.read(path)).lines
    for framework, settings in todo:
        if (framework, settings.key) in done:
            continue
        folder = None if settings.data == "digits" else data
        outcome = (
            training.run(settings, folder) if framework == "torch" else elsewhere.run(framework, settings, folder)
        )
        line = {"framework": framework, "settings": dataclasses.asdict(settings), **outcome, **about}
        results.append(path, line)
        print(f"{outcome['test_accuracy']:6.2f} %  {framework:6}{describe(settings)}", flush=True)


@app.command()
def report(
    path: _File = RESULTS,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("docs/results/knob.md"),
) -> None:
    """Write the page from the results."""
    output.write_text(page(results.read(path)))


def page(lines: list[Line]) -> str:
    """Return the page, in Markdown."""
    runs = Runs(lines)
    return table(["framework"], [])


def main() -> None:
    """Run the command line; errors that the project knows are one line, not a traceback."""
    try:
        app()
    except SmhError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
