"""The page on training for small files, from the results of :mod:`experiments.mnist_rate`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import smh
from experiments import data
from experiments.mnist_rate import Cell, make
from experiments.report import names
from experiments.report.markdown import machine, percent, table
from experiments.results import Line
from experiments.stored import coded_bytes

_MODELS = {name: names.NETWORKS[name].title for name in ("lenet300", "lenet5")}
_PUBLISHED = {"lenet300": ("8.56", "1.9"), "lenet5": ("2.84", "1.0")}
_HEAD = ("network", "method", "pool ratio", "weight of the rate", "bits", "kB", "test error, %", "seeds")
_PAGE = """# Small files

What [the rate in the loss](../small_files.md) saves, with a pool and without one: LeNet-300-100 (784-300-100-10) and
LeNet-5 (two convolutions and two dense layers, as in Caffe) on MNIST.

- *pool and rate*: `smh.compress(model, ratio, exponents="fixed", optimizer="adam")` and `smh.rate` in the loss.
- *rate alone*: no pool. Each weight and bias is one integer, in one array for each tensor, with a fixed unit
  and a learned scale. Units and prior are those of the pool.
- *pool alone*: the pool without the rate in the loss.
- *published*: Oktay, Ballé, Singh and Shrivastava, "Scalable Model Compression by Entropy Penalized Reparameterization"
  (ICLR 2020), the rate on dense weights with learned transforms.

The size is that of all integers, entropy-coded as in a packed file, and of the scales. In the *pool* rows biases are
generated, too, so nothing is kept. Headers, which hold the plan and the digest, are not counted; the list below gives
their sizes.

{rows}
{settings}

The command that repeats it, for MNIST as images in folders:

```bash
python -m experiments.mnist_rate run --data FOLDER
python -m experiments.mnist_rate report
```

{about}
"""


def page(lines: list[Line]) -> str:
    """Return the page, in Markdown."""
    return _PAGE.format(
        rows=table(_HEAD, _rows(lines)),
        settings="\n".join(_settings(lines)),
        about=f"Each run on {machine(lines)}.",
    )


def stored_bytes(line: Line) -> int:
    """Return the bytes of all integers of a run as a packed file codes them, and of its scales.

    The order of integers does not matter for their entropy, so one with the same counts stands for them.
    """
    total, bits = 4 * int(line["scales"]), Cell(**line["settings"]).bits
    for least, *counts in line["counts"].values():
        total += coded_bytes(np.repeat(np.arange(least, least + len(counts)), counts), bits)
    return total


def _header(settings: dict[str, Any]) -> int:
    """Return the bytes of the header of a packed file of a network with a pool."""
    cell = dataclasses.replace(Cell(**settings), ratio=settings["ratio"] or 0.1)
    model, *_ = make(cell, *data.describe(cell.data, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        smh.save(path, model, packed=True)
        return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def _rows(lines: list[Line]) -> Iterator[list[str]]:
    """Iterate over the rows: for each network the methods, each with its seeds, then what was published."""
    for model, title in _MODELS.items():
        groups: dict[tuple[float | None, float], list[Line]] = {}
        for line in lines:
            if line["settings"]["model"] == model:
                groups.setdefault((line["settings"]["ratio"], line["settings"]["weight"]), []).append(line)
        for (ratio, weight), group in sorted(groups.items(), key=lambda one: (not one[0][1], not one[0][0], one[0][1])):
            method = "rate alone" if ratio is None else "pool and rate" if weight else "pool alone"
            sizes, errors = [stored_bytes(line) / 1000 for line in group], [line["error"] for line in group]
            named = ["" if ratio is None else percent(ratio), f"{weight:g}" if weight else ""]
            bits = Cell(**group[0]["settings"]).bits
            yield [title, method, *named, f"{bits}", _mean(sizes), _mean(errors), f"{len(group)}"]
        if groups:
            yield [title, "published", "", "", "", *_PUBLISHED[model], ""]


def _mean(values: list[float]) -> str:
    """Return a mean, with the range of several values."""
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def _settings(lines: list[Line]) -> Iterator[str]:
    """Iterate over a line for each network, about its training."""
    for model, title in _MODELS.items():
        found = [line["settings"] for line in lines if line["settings"]["model"] == model]
        if found:
            one = found[0]
            rates = ", ".join(f"{lr:g}" for lr in sorted({s["lr"] for s in found}, reverse=True))
            yield (
                f"- {title}: {one['training']:,} images, {one['epochs']} epochs, batches of {one['batch']}, Adam. The "
                f"learning rate of {rates} (pool, no pool) falls to 0 as a cosine; nothing is tuned per seed. "
                f"The header of a packed file takes {_header(one) / 1000:.1f} kB."
            )
