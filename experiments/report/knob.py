"""The page on the learning rate, from the results of :mod:`experiments.knob`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.knob import BASES, OPTIMIZERS, RATES, RATIO, Runs, compressed
from experiments.report.markdown import machine, percent, signed, table
from experiments.results import Line
from experiments.training import MOMENTUM

_FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX", "keras": "Keras"}
_TITLES = {"digits": "digits, MLP", "mnist": "MNIST, CNN", "fashion-mnist": "Fashion-MNIST, CNN"}
_TEXTS = {
    "digits": "- Digits: the handwritten digits of scikit-learn; an MLP of 64-1000-1000-10.",
    "mnist": "- MNIST: a network of three convolutions with batch norm and two dense layers.",
    "fashion-mnist": "- Fashion-MNIST: the same network.",
}
_PAGE = """# One learning rate

`optimizer="adam"` or `"sgd"` of `smh.compress` sets the gain of the pool and the exponents of the scales. So you can
keep the learning rate of the dense model, with one group of parameters. This page measures that
(`experiments/knob.py`).

{data}
- A compressed model stores {ratio} of the numbers of the dense one; in JAX and Keras, its pool has {ratio} of the
  weights.
- The learning rate starts at its full value and falls as a cosine. There is no warm-up and no weight decay; SGD has a
  momentum of {momentum}.
- Each model is tuned with one seed, by accuracy on validation images (the tables below). JAX and Keras use the rates of
  PyTorch, and their own initial values for the dense model.

## At the rate of the dense model

Test accuracy in percent, mean over seeds. The difference is that of the compressed model at the dense rate from the
same model at its best rate. The last columns count seeds, and runs at the dense rate whose loss or weights became NaN.

{rows}
Against the best rate, at most {worst:.2f} points are lost. {bad}
Rates are tuned with one seed, so a difference can be positive.

Gains are powers of two and rounded down, so generated weights move a little more slowly than dense ones at the same
rate. Where training is as short as here, a larger rate can make up for that.

## Accuracy by rate

PyTorch, one seed, percent of validation images.

{rates}
{about}
"""


def page(lines: list[Line]) -> str:
    """Return the page, in Markdown."""
    runs = Runs(lines)
    data = [name for name in BASES if any(line["settings"]["data"] == name for line in lines)]
    rows = [row for name in data for framework in _FRAMEWORKS for row in _rows(runs, name, framework)]
    bad = sum(row.bad for row in rows)
    return _PAGE.format(
        data="\n".join(_described(name) for name in data),
        ratio=percent(RATIO),
        momentum=MOMENTUM,
        rows=table(_HEAD, [row.cells() for row in rows]),
        worst=max(0.0, *(row.own - row.ours for row in rows)),
        bad=f"{bad or 'No'} run{'s' if bad > 1 else ''} at the dense rate ended in NaN.",
        rates="\n".join(_by_rate(runs, data, optimizer) for optimizer in RATES),
        about=f"Each run on {machine(lines)}.",
    )


_HEAD = (
    "data, network",
    "framework",
    "optimizer",
    "dense rate",
    "dense",
    "compressed",
    "best rate",
    "compressed, best rate",
    "difference",
    "seeds",
    "NaN",
)


@dataclass(frozen=True)
class _Row:
    """What one framework gave with one optimizer; ``ours`` is the compressed model at the rate of the dense one."""

    where: tuple[str, str, str]
    rates: tuple[float, float]
    dense: float
    ours: float
    own: float
    seeds: int
    bad: int

    def cells(self) -> list[str]:
        """Return the row of the table."""
        dense, ours, own = (f"{accuracy:.2f}" for accuracy in (self.dense, self.ours, self.own))
        rate, best = (f"{rate:g}" for rate in self.rates)
        return [*self.where, rate, dense, ours, best, own, signed(self.ours - self.own), f"{self.seeds}", f"{self.bad}"]


def _rows(runs: Runs, name: str, framework: str) -> Iterator[_Row]:
    """Iterate over the rows of a data set and framework; what was not run has none."""
    for optimizer, title in OPTIMIZERS.items():
        base = BASES[name].replace(optimizer=optimizer)
        rate, best = runs.best(base), runs.best(compressed(base))
        dense = base.replace(lr=rate)
        groups = [runs.of(framework, x) for x in (dense, compressed(dense), compressed(base.replace(lr=best)))]
        seeds = min(map(len, groups))
        if seeds:
            means = [sum(line["test_accuracy"] for line in group[:seeds]) / seeds for group in groups]
            bad = sum(line["diverged"] for line in groups[1][:seeds])
            yield _Row((_TITLES[name], _FRAMEWORKS[framework], title), (rate, best), *means, seeds, bad)


def _described(name: str) -> str:
    base = BASES[name]
    counts = f"{base.training:,} images for training and {base.validation:,} for validation"
    return f"{_TEXTS[name]}\n  {counts}; {base.epochs} epochs, batches of {base.batch}."


def _by_rate(runs: Runs, data: list[str], optimizer: str) -> str:
    """Return the table of accuracies by rate."""
    rates, rows = RATES[optimizer], []
    for name in data:
        dense = [BASES[name].replace(optimizer=optimizer, lr=lr) for lr in rates]
        for title, settings in (("dense", dense), ("compressed", map(compressed, dense))):
            found = [runs.lines.get(("torch", x.key)) for x in settings]
            cells = ["" if x is None else "NaN" if x["diverged"] else f"{x['validation_accuracy']:.2f}" for x in found]
            rows.append([_TITLES[name], title, *cells])
    return table([OPTIMIZERS[optimizer], "model", *(f"{lr:g}" for lr in rates)], rows)
