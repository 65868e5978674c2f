"""Claims of the paper, its figures, and the measurements of this project, with sizes counted alike.

The figures are those of *Structured Multi-Hashing for Model Compression* (CVPR 2020, arXiv 1911.11177) for ResNet-32 on
CIFAR-10, in percent, by the share of variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from experiments.report import names
from experiments.report.markdown import percent, signed, table
from experiments.report.places import Place, Places, ahead, place, ratios

_FULL = 92.91
_SMH = {0.258: 92.54, 0.1: 90.15, 0.031: 86.18}
_WIDTH = {0.254: 89.19, 0.064: 84.37}
_SCALES = 0.7  # points of top-1, the mean of its table 3
_FASTER = 7.7  # its table 1
_OURS = ("matmul", "kronecker")
_UNMEASURED = "not measured yet"


def claims(groups: Places, networks: Iterable[str], only_measured: bool = False) -> str:
    """Return the table, for networks that have a table of methods. ``only_measured`` leaves out all other claims."""
    own = {group: groups[group] for group in networks}
    rows = [
        [
            "A model keeps most of its accuracy at about 25 % of the variables",
            _points(_SMH[0.258] - _FULL, 0.258),
            _join(_to_dense(own, 0.25, 0.258)),
        ],
        ["at 10 %", _points(_SMH[0.1] - _FULL, 0.1), _join(_to_dense(own, 0.1))],
        ["at 3 %", _points(_SMH[0.031] - _FULL, 0.031), _join(_to_dense(own, 0.03, 0.031))],
        [
            "It is more accurate than a narrower network of the same size",
            f"{signed(_SMH[0.258] - _WIDTH[0.254])} at {percent(0.258)} against {percent(0.254)}",
            _join(_to_width(own)),
        ],
        [
            "and of twice the size",
            f"{signed(_SMH[0.031] - _WIDTH[0.064])} at {percent(0.031)} against {percent(0.064)}",
            _join(_to_wider(own)),
        ],
        ["A learnable scale per tensor helps", f"{signed(_SCALES)} on average", _join(_scales(groups))],
        [
            "It trains faster than ten hashes per weight of the same size",
            f"{_FASTER:g} times",
            _join(_times(own)),
        ],
    ]
    shown = [row for row in rows if not only_measured or row[-1] != _UNMEASURED]
    return table(["claim", "paper, points of accuracy", "measured here"], shown)


def _points(difference: float, share: float) -> str:
    return f"{signed(difference)} at {percent(share)}"


def _join(parts: Iterator[str]) -> str:
    return "; ".join(parts) or _UNMEASURED


def _named(group: str, method: str) -> str:
    return f"{names.title(names.NETWORKS, group)}, {names.title(names.METHODS, method).removeprefix('smh, ')}"


def _to_dense(groups: Places, *near: float) -> Iterator[str]:
    """Compare with the dense model at the given ratios, which are nearly equal."""
    for group in groups:
        dense = place(groups, group, "dense", None)
        for method in _OURS:
            entries = [place(groups, group, method, ratio) for ratio in near]
            for entry in filter(None, entries if dense else []):
                yield f"{_named(group, method)}: {_difference(entry, dense)}"


def _to_width(groups: Places) -> Iterator[str]:
    for group in groups:
        for method in _OURS:
            parts = []
            for ratio in ratios(groups[group].values()):
                entry, width = place(groups, group, method, ratio), place(groups, group, "width", ratio)
                if entry and width:
                    parts.append(f"{_difference(entry, width)} at {percent(ratio)}")
            if parts:
                yield f"{_named(group, method)}: {', '.join(parts)}"


def _to_wider(groups: Places) -> Iterator[str]:
    """Compare with the width multiplier at the next ratio that is at least twice as large."""
    for group in groups:
        for method in _OURS:
            parts = []
            for ratio in ratios(groups[group].values()):
                entry = place(groups, group, method, ratio)
                wider = [r for r in ratios(groups[group].values()) if r >= 2 * ratio]
                width = place(groups, group, "width", min(wider)) if wider else None
                if entry and width:
                    difference = _difference(entry, width)
                    parts.append(f"{difference} at {percent(ratio)} against {percent(min(wider))}")
            if parts:
                yield f"{_named(group, method)}: {', '.join(parts)}"


def _scales(groups: Places) -> Iterator[str]:
    for (label, ratio), learnable in groups.get("learn-scale", {}).items():
        fixed = place(groups, "learn-scale", f"{label.removesuffix('learnable')}fixed", ratio)
        if label.endswith("learnable") and learnable.lines and fixed:
            model = names.title(names.NETWORKS, learnable.settings.model)
            yield f"{model} at {percent(ratio or 1)}: {_difference(learnable, fixed)}"


def _times(groups: Places) -> Iterator[str]:
    """Compare runs of one commit only, because other commits may have run on other machines."""
    for group in groups:
        for ratio in ratios(groups[group].values()):
            ten, ours = place(groups, group, "hash10", ratio), place(groups, group, "matmul", ratio)
            if ten and ours:
                shared = {line["commit"] for line in ten.lines} & {line["commit"] for line in ours.lines}
                if shared:
                    times = [_seconds(found, shared) for found in (ten, ours)]
                    title = names.title(names.NETWORKS, group)
                    yield f"{title} at {percent(ratio)}: {times[0] / times[1]:.1f} times"


def _seconds(entry: Place, commits: set[str]) -> float:
    return median(line["training_seconds"] for line in entry.lines if line["commit"] in commits)


def _difference(one: Place, other: Place) -> str:
    return signed(ahead(one.by_seed, other.by_seed))
