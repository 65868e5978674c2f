"""The page on fine-tuning without data, from the results of :mod:`experiments.datafree`."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.datafree import INPUTS
from experiments.report.markdown import machine, percent, table
from experiments.results import Line

_METHODS = {
    None: "fit alone",
    "samples": "fit, tuned on samples",
    "images": "fit, tuned on training images",
    "noise": "fit, tuned on noise",
}
_HEAD = ("network", "pool ratio", "error of the fit", "test accuracy, %", "seeds")
_PAGE = """# Without data

How much accuracy [tuning without data](../warm_start.md#without-data) brings back to a fitted network, on CIFAR-10. The
network has three convolutions with batch norm and two dense layers, at {width:g} times the units of `cnn` in
`experiments/models.py`. `smh.fit` compresses it, then it learns the outputs of the dense network, without labels.

- *fit alone*: `smh.fit(model, ratio)`, no tuning.
- *samples*: inputs of `smh.datafree.samples`, {made} steps for each batch of {batch}, other options by default.
- *training images*: real inputs, as many as samples. This needs data.
- *noise*: as much Gaussian noise, with mean 0 and deviation 1 like the normalized images.

{rows}
Dense network: {training:,} training images, {epochs} epochs, AdamW, learning rate {dense_lr:g}.

Tuning: {n:,} inputs, {steps} steps of {batch} shifted and mirrored inputs, Adam, learning rate {lr:g}, divergence of
probabilities at temperature {temperature:g}. Batch norms are in training mode. Settings are the same for all inputs.
The learning rate is the better of 0.002 and 0.005 for each of the inputs, on 3,000 test images, with seed 0 and a ratio
of 30 %.

{seeds}

The commands that repeat it, for CIFAR-10 as images in folders:

```bash
python -m experiments.datafree run --data FOLDER
python -m experiments.datafree report
```

{about}
"""


def page(lines: list[Line]) -> str:
    """Return the page, in Markdown."""
    last = lines[-1]
    count = len({line["settings"]["seed"] for line in lines})
    return _PAGE.format(
        **last["settings"] | {"rows": table(_HEAD, _rows(lines))},
        seeds="One seed: small differences mean nothing." if count == 1 else "Ranges are those of the seeds.",
        about=f"Each run on {machine(lines)}.",
    )


def _rows(lines: list[Line]) -> Iterator[list[str]]:
    """Iterate over the rows: the dense network, then for each ratio the methods."""
    groups: dict[tuple[float | None, str | None], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["settings"]["ratio"], line["settings"]["inputs"]), []).append(line)
    ratios = sorted({ratio for ratio, _ in groups if ratio}, reverse=True)
    for key in [(None, None), *((ratio, inputs) for ratio in ratios for inputs in (None, *INPUTS))]:
        if group := groups.get(key):
            ratio, inputs = key
            accuracies = _mean([line["accuracy"] for line in group])
            if ratio is None:
                yield ["dense", "", "", accuracies, f"{len(group)}"]
            else:
                errors = [line["fit_error"] for line in group]
                error = f"{sum(errors) / len(errors):.2f}"
                yield [_METHODS[inputs], percent(ratio), error, accuracies, f"{len(group)}"]


def _mean(values: list[float]) -> str:
    """Return a mean, with the range of several values."""
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"
