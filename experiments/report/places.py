"""The results of each place of the tables: accuracies over seeds, and missing seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean, stdev

from experiments.cells import Cell, Config
from experiments.results import Line, Results, Waiting
from experiments.settings import Settings


@dataclass
class Place:
    """All seeds of one row and ratio."""

    label: str
    settings: Settings
    asked: int = 0
    lines: list[Line] = field(default_factory=list)
    cannot: Line | None = None

    @property
    def accuracies(self) -> list[float]:
        """The test accuracy of each completed seed."""
        return [line["test_accuracy"] for line in self.lines]

    @property
    def by_seed(self) -> dict[int, float]:
        """The test accuracy by seed."""
        return {line["settings"]["seed"]: line["test_accuracy"] for line in self.lines}

    @property
    def mean(self) -> float | None:
        """Their mean, or None."""
        return mean(self.accuracies) if self.lines else None

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation, or None of fewer than two."""
        return stdev(self.accuracies) if len(self.lines) > 1 else None

    @property
    def stored(self) -> int | None:
        """The number of stored variables, or None."""
        return self.lines[0]["stored"] if self.lines else None

    def text(self) -> str:
        """Return the text of a table: mean, standard deviation, and the number of seeds if some are missing."""
        if self.cannot is not None:
            return "cannot"
        if self.mean is None:
            return "–"
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        missing = f" ({len(self.lines)} of {self.asked} seeds)" if len(self.lines) < self.asked else ""
        return f"{self.mean:.2f}{spread}{missing}"


Key = tuple[str, float | None]
Places = dict[str, dict[Key, Place]]


def gather(config: Config, results: Results) -> Places:
    """Return places by group, then by label and ratio, in the order of the configuration."""
    groups: Places = {}
    for cell in config.cells:
        if not cell.tuning:
            places = groups.setdefault(cell.group, {})
            place = places.setdefault((cell.label, cell.settings.ratio), Place(cell.label, cell.settings))
            _take(place, cell, config, results)
    return groups


def _take(place: Place, cell: Cell, config: Config, results: Results) -> None:
    place.asked += 1
    line = results.get(cell.settings)
    if line is None:
        try:
            settings = results.resolve(cell, config)
        except Waiting:
            return
        line = None if settings is None else results.get(settings)
    if line is None:
        return
    if "cannot" in line:
        place.cannot = line
    else:
        place.lines.append(line)


@dataclass(frozen=True)
class Tuning:
    """Accuracy on validation images of a method with each completed rate."""

    base: Settings
    accuracies: dict[float, float]
    complete: bool

    @property
    def best(self) -> float | None:
        """The selected rate; None while runs are missing."""
        if not self.complete:
            return None
        return max(self.accuracies, key=lambda rate: self.accuracies[rate])

    @property
    def at_edge(self) -> bool:
        """Whether the rate is the lowest or highest of the list, so a better rate may lie outside it."""
        return self.best in (min(self.accuracies), max(self.accuracies)) if self.complete else False


def tunings(config: Config, lines_of: Results) -> list[Tuning]:
    """Return the tuning of rates, in the order of the configuration."""
    bases = dict.fromkeys(cell.settings.replace(lr=None) for cell in config.cells if cell.tuning)
    results = []
    for base in bases:
        lines = {rate: lines_of.lines.get(base.replace(lr=rate).key) for rate in config.rates[base.optimizer]}
        accuracies = {rate: line["validation_accuracy"] for rate, line in lines.items() if line is not None}
        results.append(Tuning(base, accuracies, len(accuracies) == len(lines)))
    return [tuning for tuning in results if tuning.accuracies]


def ratios(places: Iterable[Place]) -> list[float]:
    """Return all ratios, the largest first."""
    return sorted({p.settings.ratio for p in places if p.settings.ratio is not None}, reverse=True)


def labels(places: Iterable[Place]) -> list[str]:
    """Return all labels, in order."""
    return list(dict.fromkeys(place.label for place in places))


def place(groups: Places, group: str, label: str, ratio: float | None) -> Place | None:
    """Return a place if it has results."""
    entry = groups.get(group, {}).get((label, ratio))
    return entry if entry is not None and entry.lines else None


def ahead(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Return the mean difference of accuracies by seed: of the seeds of both, or else of the means."""
    seeds = one.keys() & other.keys()
    if not seeds:
        return mean(one.values()) - mean(other.values())
    return mean(one[seed] - other[seed] for seed in seeds)
