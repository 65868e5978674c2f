"""The plots, as SVG. Equal results give equal files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from experiments.report import names
from experiments.report.places import Place, Tuning, labels

_ACCURACIES = (99, 98, 97, 96, 95, 94, 93, 92, 91, 90, 89, 88, 87, 86, 85, 84, 82, 80, 75, 70, 60, 50, 40, 30, 20, 10)
_MARKERS = "osD^v<>Pp*h"


def accuracy(title: str, places: list[Place], path: Path) -> None:
    """Draw accuracy over stored variables, one line per method. Bars are standard deviations over seeds."""
    drawing = Figure(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    order = names.ordered(names.METHODS, [*names.METHODS, *labels(places)])
    for label in (name for name in labels(places) if name != "dense"):
        series = [place for place in places if place.label == label and place.stored and place.mean is not None]
        series.sort(key=lambda place: (place.stored or 0, place.settings.ratio or 0))
        if series:
            axes.errorbar(
                [place.stored or 0 for place in series],
                [100 - (place.mean or 0) for place in series],
                yerr=[place.deviation or 0 for place in series],
                linestyle="none" if label == "random" else "-",
                markersize=5,
                capsize=2,
                **_style(label, order),
            )
    for place in places:
        if place.label == "dense" and place.mean is not None:
            axes.axhline(100 - place.mean, color="0.4", linestyle="--", label=f"dense, {place.stored:,} variables")
    axes.set_xscale("log")
    _scaled(axes)
    axes.set(title=title, xlabel="stored variables", ylabel="test accuracy, % (errors are logarithmic)")
    axes.legend(fontsize="small")
    _save(drawing, path)


def rates(tuned: list[Tuning], path: Path) -> bool:
    """Draw accuracy on validation images over learning rates, one panel per network, at the first tuned ratio.

    The plot shows one optimizer and default settings. Returns whether there is anything to show.
    """
    of = [tuning for tuning in tuned if tuning.base.optimizer == tuned[0].base.optimizer and _plain(tuning)]
    models = list(dict.fromkeys(tuning.base.model for tuning in of))
    if not models:
        return False
    order = names.ordered(names.METHODS, [*names.METHODS, *(tuning.base.method for tuning in of)])
    drawing = Figure(figsize=(4.5 * len(models), 4), layout="constrained")
    for axes, model in zip(drawing.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        seen: set[str] = set()
        for tuning in of:
            method = tuning.base.method
            if tuning.base.model == model and method not in seen:
                x = sorted(tuning.accuracies)
                axes.plot(x, [100 - tuning.accuracies[rate] for rate in x], markersize=4, **_style(method, order))
                seen.add(method)
        axes.set_xscale("log")
        _scaled(axes)
        axes.set(title=names.title(names.NETWORKS, model), xlabel="learning rate", ylabel="validation accuracy, %")
        axes.legend(fontsize="x-small")
    _save(drawing, path)
    return True


def _style(label: str, order: list[str]) -> dict[str, Any]:
    """Return the line style of a label, which depends on its place in an order."""
    number = order.index(label)
    color = "black" if label == "dense" else f"C{number - 1}"
    return {"color": color, "marker": _MARKERS[number % len(_MARKERS)], "label": names.title(names.METHODS, label)}


def _plain(tuning: Tuning) -> bool:
    """Return whether settings are those of the tables."""
    defaults = type(tuning.base).__dataclass_fields__
    return all(
        getattr(tuning.base, name) == defaults[name].default
        for name in ("bits", "scale", "learn_scale", "scale_rate", "include")
    )


def _scaled(axes: Axes) -> None:
    """Turn an axis of errors into one of accuracies, the best above."""
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(FixedLocator([100 - accuracy for accuracy in _ACCURACIES]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _save(drawing: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "smh"}):
        drawing.savefig(path, format="svg", metadata={"Date": None})
