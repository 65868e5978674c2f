"""The page on accuracy by bytes, from results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.report import names
from experiments.report.claims import claims
from experiments.report.markdown import machine, percent, table
from experiments.report.places import Place, Places, ahead
from experiments.results import Line
from experiments.settings import Settings, from_dict

_MARKERS = "osPDvXd*^<"
_SHOWN = 16
"""Points of accuracy below the best that the plot shows."""
CONFIGS = ("cifar_resnet20", "cifar_resnet32", "bytes")
"""The configurations of the page."""
BUDGETS = (0.1, 0.05, 0.02, 0.01, 0.007)
"""Bytes over those of the dense float32 model."""
METHODS = ("matmul", "kronecker", "hash1", "fold", "integers", "dense", "pruned", "lowrank", "width")
"""Methods in the order of the tables. Others follow them."""
_ROUNDED = ("dense", "pruned", "lowrank", "width")
_ADDED: dict[str, Callable[[Settings], bool]] = {
    "the rate": lambda settings: settings.rate > 0,
    "a teacher": lambda settings: settings.teacher,
    "a learned activation": lambda settings: settings.activation != "relu",
    "the first and the last layer kept": lambda settings: settings.include == "inner",
}
"""What makes another row of a method in the tables."""
_PAGE = """# Accuracy by bytes

<!-- Written by `python -m experiments bytes`; changes by hand are lost. -->

The cost of a model is the size of its file. Here every method is stored as integers with an entropy coder, so that
each is compared at its best: a pruned network with most of its integers 0, a dense network rounded to a few bits,
and pools of integers.

Bytes are those of all integers, entropy-coded as in a [packed file](../files.md), with 4 bytes for each scale, bias and
number of batch norm. Headers are not counted, for no method. *Variables* are all stored numbers; for a pruned network,
they are the nonzero weights without their positions. Methods that train float32 weights are rounded after training to
8, 6, 5 or 4 bits. *With the rate* means that the estimated bits are a part of the loss
([small files](../small_files.md)). *With a teacher* is distillation from the dense model of the same seed. *With a
learned activation*, eight linear segments with learned slopes take the place of ReLU. *1 hash* is the method of
HashedNets, with one table for all layers. Layers that are *kept* are stored in float32. STABLE-RPS is not a pool of
smh, because it is the best method at no size.

The tables show the best of each method within a budget, in percent of the dense float32 bytes: test accuracy, mean ±
standard deviation over seeds, and the bytes. The best one is selected by accuracy on validation images, among those
with most seeds. Bold: the highest test accuracy. The plots show each method with all that is added to it, at its best.
The sentences below a table compare the best of smh with the best other method, selected alike, with the seeds that both
have. Where smh is behind, pools of other sizes and weights of the rate were tried, as listed below, and the methods of
[What was tried](ideas.md).

{parts}## What the paper claims

The figures of the paper ([arXiv 1911.11177](https://arxiv.org/abs/1911.11177)) are for ResNet-32 on CIFAR-10, trained
for 180 epochs. The last column was measured with the networks above, without the rate, a teacher or a learned
activation. Differences are points of test accuracy at equal numbers of stored variables. Those on scales and on time
were measured with version 0.1: [Accuracy](accuracy.md#what-the-paper-claims).

{claims}
## When to choose something else

- **A larger file is acceptable.** Quantization is simpler and needs no extra training. With 6 bits: {rounded}.
- **Only the number of nonzero weights counts**, as on hardware for sparse products. Choose pruning.
- **Time or memory at run time counts.** A generated layer computes with full-size weights. A narrower network or low
  rank also computes less.

[When to use smh, and when not](../comparison.md) has the other reasons.

## All settings

{every}
The commands that repeat it, for CIFAR-10 as images in folders:

```bash
{commands}
python -m experiments bytes
```

{about}
"""
_PART = """## {model} on {data}

{training}. The dense model has {dense:,} numbers, {dense_bytes:,.0f} kB in float32, and an accuracy of {accuracy} %.
Batch norms and biases take {kept:.1f} kB, with any method but a narrower network.

![Accuracy by bytes](bytes-{name}.svg)

![Accuracy by variables](variables-{name}.svg)

{best}
{answer}

"""


_MEANS = ("stored", "bytes", "validation_accuracy")
"""What is averaged over seeds, besides test accuracies."""


@dataclass(frozen=True)
class Point:
    """A method with settings, over its seeds."""

    family: str
    settings: Settings
    bits: int
    variables: float
    size: float
    by_seed: Mapping[int, float]  # test accuracies
    validation: float

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return mean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """The standard deviation, or None for one seed."""
        return stdev(self.by_seed.values()) if self.seeds > 1 else None

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)

    @property
    def text(self) -> str:
        """Accuracy with its spread."""
        return f"{self.accuracy:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


def points(lines: Iterable[Line]) -> list[Point]:
    """Return the points of results, in the order of the families, the smallest first."""
    groups: dict[tuple[Settings, int], list[dict[str, Any]]] = {}
    for line in lines:
        settings = from_dict(line["settings"], "a result").replace(seed=0)
        for entry in line.get("bytes", ()):
            groups.setdefault((settings, entry["bits"]), []).append({**line, **entry})
    found = []
    for (settings, bits), some in groups.items():
        variables, size, validation = (mean(one[key] for one in some) for key in _MEANS)
        accuracies = {one["settings"]["seed"]: one["test_accuracy"] for one in some}
        found.append(Point(family_of(settings), settings, bits, variables, size, accuracies, validation))
    return sorted(found, key=_order)


def family_of(settings: Settings) -> str:
    """Return the title of a row of the tables: the method, and what is added to it."""
    added = [what for what, used in _ADDED.items() if used(settings)]
    listed = " and ".join([", ".join(added[:-1]), added[-1]] if added[1:] else added)
    title = names.title(names.METHODS, settings.method) + (f", with {listed}" if added else "")
    return title + ", rounded after training" * (settings.method in _ROUNDED)


def _is_plain(settings: Settings) -> bool:
    """Say whether nothing is added to a method."""
    return not any(used(settings) for used in _ADDED.values())


def _order(point: Point) -> tuple[int, str, float]:
    """Return the place of a point in the tables."""
    method = point.settings.method
    return METHODS.index(method) if method in METHODS else len(METHODS), point.family, point.size


def _families(found: Iterable[Point]) -> list[str]:
    """Return the families of points that are in the order of the tables."""
    return list(dict.fromkeys(point.family for point in found))


def best(found: Iterable[Point], family: str, budget: float) -> Point | None:
    """Return the point of a family within a budget that is best on validation images, among those with most seeds."""
    within = [point for point in found if point.family == family and point.size <= budget]
    return max(within, key=_preference, default=None)


def leaders(found: Iterable[Point], budget: float) -> tuple[Point | None, Point | None]:
    """Return the best points of the library and of other methods within a budget, preferred alike."""
    found = list(found)
    tops = [point for family in _families(found) if (point := best(found, family, budget))]
    ours, others = ([top for top in tops if top.family.startswith("smh") == own] for own in (True, False))
    one, other = (max(some, key=_preference, default=None) for some in (ours, others))
    return one, other


def best_so_far(of: Iterable[tuple[float, Point]]) -> list[tuple[float, Point]]:
    """Return the points, with their places, that no point at a smaller place exceeds on validation images."""
    front: list[tuple[float, Point]] = []
    for place, point in sorted(of, key=lambda one: (one[0], -one[1].validation)):
        if not front or point.validation > front[-1][1].validation:
            front.append((place, point))
    return front


def _preference(point: Point) -> tuple[int, float]:
    """Return what the best point has most of; test images have no say in it."""
    return point.seeds, point.validation


def write(lines: list[Line], output: Path) -> None:
    """Write the page, and two plots for each network."""
    output.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if "bytes" in line:
            groups.setdefault((line["settings"]["model"], line["settings"]["data"]), []).append(line)
    parts, every, rounded = [], [], list[str]()
    for (model, data), some in groups.items():
        found, dense, title = points(some), some[0]["dense"], names.title(names.NETWORKS, model)
        kilobytes, numbers = [one.size / 1000 for one in found], [one.variables for one in found]
        _plot(
            found,
            kilobytes,
            dense / 250,
            title,
            "kB, entropy-coded",
            "float32 bytes",
            output / f"bytes-{model}.svg",
        )
        _plot(found, numbers, dense, title, "stored variables", "variables", output / f"variables-{model}.svg")
        parts.append(_part(model, data, some))
        rounded += _rounded(found, some, title)
        every.append(f"### {title}\n\n{_every(found, 4 * dense)}")
    commits = ", ".join(dict.fromkeys(line["commit"] + (" with changes" * line["changed"]) for line in lines))
    plain = _places(lines)
    page = _PAGE.format(
        parts="".join(parts),
        claims=claims(plain, plain, only_measured=True),
        rounded="; ".join(rounded),
        every="\n".join(every),
        commands="\n".join(f"python -m experiments run --config experiments/{x}.toml --data FOLDER" for x in CONFIGS),
        about=f"{len(lines)} runs, each on {machine(lines)}; commits {commits}.",
    )
    (output / "bytes.md").write_text(page, encoding="utf-8")


def _places(lines: Iterable[Line]) -> Places:
    """Return the plain runs by network, method and ratio."""
    groups: Places = {}
    for line in lines:
        settings = from_dict(line["settings"], "a result")
        if _is_plain(settings):
            places = groups.setdefault(settings.model, {})
            place = places.setdefault((settings.method, settings.ratio), Place(settings.method, settings))
            place.lines.append(line)
    return groups


def _part(model: str, data: str, lines: list[Line]) -> str:
    found, first = points(lines), lines[0]
    whole = 4 * first["dense"]
    accuracy = _accuracy(lines)
    return _PART.format(
        model=names.title(names.NETWORKS, model),
        name=model,
        data=names.title(names.DATA, data),
        training=_training(from_dict(first["settings"], "a result")),
        dense=first["dense"],
        dense_bytes=whole / 1000,
        kept=max(x["stored_parts"]["kept"] for x in lines if _is_plain(from_dict(x["settings"], "a result"))) / 250,
        accuracy="–" if accuracy is None else f"{accuracy:.2f}",
        best=_best(found, whole),
        answer="\n".join(_answers(found, whole)),
    )


def _rounded(found: list[Point], lines: list[Line], title: str) -> list[str]:
    """Say what the dense network loses by rounding to 6 bits, if it was measured."""
    accuracy, whole = _accuracy(lines), 4 * lines[0]["dense"]
    return [
        f"{title}, {percent(point.size / whole)} of the bytes, {accuracy - point.accuracy:.1f} points lost"
        for point in found
        if accuracy is not None and point.settings.method == "dense" and point.bits == 6
    ]


def _accuracy(lines: list[Line]) -> float | None:
    """Return the accuracy of the dense network in float32."""
    dense = [line["test_accuracy"] for line in lines if line["settings"]["method"] == "dense"]
    return mean(dense) if dense else None


def _training(settings: Settings) -> str:
    images = f"{settings.training:,} training images" + ", mirrored and shifted" * settings.augment
    arithmetic = ", bfloat16" if settings.precision == "bfloat16" else ""
    return f"{images}, {settings.epochs} epochs, batches of {settings.batch}, AdamW{arithmetic}"


def _best(found: list[Point], whole: int) -> str:
    """Return the table of the best points, one row for each family that has any."""
    budgets = [budget for budget in BUDGETS if any(point.size <= budget * whole for point in found)]
    of = {family: [best(found, family, budget * whole) for budget in budgets] for family in _families(found)}
    of = {family: row for family, row in of.items() if any(row)}
    top = [max(point.accuracy for row in of.values() if (point := row[k])) for k in range(len(budgets))]

    def cell(point: Point | None, most: float) -> str:
        if point is None:
            return "–"
        text = f"**{point.text}**" if point.accuracy == most else point.text
        return f"{text} ({point.size / 1000:.1f} kB)"

    head = ["method", *(f"{percent(budget)}: {budget * whole / 1000:.1f} kB" for budget in budgets)]
    return table(head, ([family, *map(cell, row, top)] for family, row in of.items()))


def _answers(found: list[Point], whole: int) -> Iterable[str]:
    """Iterate over a line for each budget: the best recipe of the library against the best other method."""
    for budget in BUDGETS:
        one, other = leaders(found, budget * whole)
        if one and other:
            points = ahead(one.by_seed, other.by_seed)
            where = f"{abs(points):.2f} points {'ahead of' if points > 0 else 'behind'}"
            seeds = " (one seed)" if min(one.seeds, other.seeds) == 1 else ""
            yield f"- Within {percent(budget)}, {one.family} is {where} the best other method{seeds}: {other.family}."


def _every(found: list[Point], whole: int) -> str:
    head = ("method", "variables", "rate", "learning rate", "bits", "kB", "of dense", "test accuracy, %", "seeds")
    return table(
        head,
        (
            [
                point.family,
                "" if point.settings.ratio is None else percent(point.settings.ratio),
                f"{point.settings.rate:g}" if point.settings.rate else "",
                f"{point.settings.lr:g}",
                f"{point.bits}",
                f"{point.size / 1000:.1f}",
                percent(point.size / whole),
                point.text,
                f"{point.seeds}",
            ]
            for point in found
        ),
    )


def _plot(
    found: list[Point], places: list[float], whole: float, network: str, label: str, share: str, path: Path
) -> None:
    """Draw accuracy over ``places``: for each method, with all that is added to it, its :func:`best_so_far`.

    ``whole`` is the place of the dense model, ``label`` the unit of places, and ``share`` what the dense model has.
    """
    drawing = Figure(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    for number, method in enumerate(dict.fromkeys([*METHODS, *(point.settings.method for point in found)])):
        of = [(place, point) for place, point in zip(places, found, strict=True) if point.settings.method == method]
        front = best_so_far(of)
        if front:
            x, y = [place for place, _ in front], [point.accuracy for _, point in front]
            spread = [point.spread or 0.0 for _, point in front]
            title = names.title(names.METHODS, method)
            style = {"marker": _MARKERS[number % len(_MARKERS)], "linestyle": "-" if title.startswith("smh") else "--"}
            color = mpl.colormaps["tab10"](number % 10)
            axes.errorbar(x, y, yerr=spread, color=color, markersize=5, capsize=2, label=title, **style)
    axes.set_xscale("log")
    axes.set(title=network, xlabel=label, ylabel="test accuracy, %")
    above = axes.secondary_xaxis("top", functions=(lambda x: x * 100 / whole, lambda x: x * whole / 100))
    above.set_xlabel(f"% of the dense {share}")
    axes.set_ylim(bottom=max(point.accuracy for point in found) - _SHOWN)
    for axis in (axes.xaxis, above.xaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with mpl.rc_context({"svg.hashsalt": "smh"}):
        drawing.savefig(path, format="svg", metadata={"Date": None})
