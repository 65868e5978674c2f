"""The tables of a network, of questions and of learning rates."""

from __future__ import annotations

from collections.abc import Callable

from experiments.cells import Question
from experiments.report import names
from experiments.report.markdown import percent, table
from experiments.report.places import Key, Place, Tuning, labels, ratios
from experiments.results import Line

Rows = dict[Key, Place]


def accuracy(rows: Rows) -> str:
    """Return the test accuracy of methods by ratio, with the dense model on top."""
    return _by_ratio(rows, lambda place: place.text(), of_dense="all")


def stored(rows: Rows) -> str:
    """Return the numbers of stored variables, or the smallest possible number if a method cannot reach a ratio."""

    def count(place: Place) -> str:
        if place.cannot is not None:
            return f"cannot: at least {place.cannot['cannot']['least']:,}"
        return "" if place.stored is None else f"{place.stored:,}"

    return _by_ratio(rows, count, of_dense="first")


def _by_ratio(rows: Rows, text: Callable[[Place], str], of_dense: str = "") -> str:
    columns = ratios(rows.values())
    lines = []
    for label in labels(rows.values()):
        if (label, None) in rows:
            if of_dense:
                lines.append([names.title(names.METHODS, label), text(rows[label, None]), *[""] * (len(columns) - 1)])
            continue
        entries = [rows.get((label, ratio)) for ratio in columns]
        lines.append([names.title(names.METHODS, label), *("" if place is None else text(place) for place in entries)])
    return table(["method", *map(percent, columns)], lines)


def question(asked: Question, rows: Rows) -> str:
    """Return the table of a question."""
    lines = []
    for place in rows.values():
        rates = dict.fromkeys(_rate(line) for line in place.lines)
        of = next(iter(place.lines), None)
        lines.append(
            [
                place.label,
                "" if place.settings.ratio is None else percent(place.settings.ratio),
                "" if of is None else f"{of['stored']:,}",
                ", ".join(rates),
                place.text(),
            ]
        )
    head = ["", "ratio", "stored variables", "learning rate", "test accuracy, %"]
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    body = table([head[i] for i in kept], ([line[i] for i in kept] for line in lines))
    note = f"{asked.note}\n\n" if asked.note else ""
    answer = f"\n{asked.answer}\n" if asked.answer else ""
    return f"### {asked.title}\n\n{note}{body}{answer}"


def _rate(line: Line) -> str:
    settings = line["settings"]
    named = (("", "lr"), (", rest ", "rest_lr"), (", dense ", "dense_lr"))
    return "".join(f"{what}{settings[name]:g}" for what, name in named if settings[name] is not None)


def rates(tuned: list[Tuning]) -> str:
    """Return accuracies on validation images by rate. The selected rate is bold, and marked if it is at an edge."""
    tables = []
    for optimizer in dict.fromkeys(tuning.base.optimizer for tuning in tuned):
        of = [tuning for tuning in tuned if tuning.base.optimizer == optimizer]
        columns = sorted({rate for tuning in of for rate in tuning.accuracies})
        lines = []
        for tuning in of:
            base = tuning.base
            share = "" if base.ratio is None else percent(base.ratio)
            cells = [_accuracy(tuning, rate) for rate in columns]
            titles = names.title(names.NETWORKS, base.model), names.title(names.METHODS, base.method)
            lines.append([*titles, share, _special(tuning), *cells])
        head = ["network", "method", "ratio", "", *(f"{rate:g}" for rate in columns)]
        kept = [i for i in range(len(head)) if i != 3 or any(line[3] for line in lines)]
        body = table([head[i] for i in kept], ([line[i] for i in kept] for line in lines))
        tables.append(f"{OPTIMIZERS[optimizer]}:\n\n{body}")
    return "\n".join(tables)


OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD with momentum"}
_PLAIN = ("bits", "scale", "learn_scale", "scale_rate", "include", "initial")


def _special(tuning: Tuning) -> str:
    """Return the settings that differ from those of the tables."""
    defaults = type(tuning.base).__dataclass_fields__
    values = {name: getattr(tuning.base, name) for name in _PLAIN}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != defaults[name].default)


def _accuracy(tuning: Tuning, rate: float) -> str:
    if rate not in tuning.accuracies:
        return "–"
    text = f"{tuning.accuracies[rate]:.2f}"
    return f"**{text}**{' †' if tuning.at_edge else ''}" if rate == tuning.best else text
