"""The performance page, with targets, missed targets and two plots, and the page of sizes, from recorded results."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import AMX, Row, has_amx
from benchmarks.sizes import DENSE, FILE, FLOAT, PACKED, PARTS, POOL, QUANTIZED

HERE = Path(__file__).parent
NAMES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
NETWORKS = {"resnet34": "ResNet-34", "efficientnet_b0": "EfficientNet-B0", "cnn": "CNN", "mlp": "MLP", "x": " x "}
KERNELS_NETWORKS = "resnet34", "efficientnet_b0"  # on the page, the first one in its plot
FLOORS = {"build": 1.0, "exact gradients": 2.5, "fast gradients": 1.0}


class Result(NamedTuple):
    """A row, its run, its target and the note on a missed target."""

    run: dict[str, Any]
    row: Row
    target: float | None
    note: str | None

    @property
    def backend(self) -> str:
        name = NAMES[self.run["backend"]]
        amx = ", AMX" * has_amx(self.run)
        return name if self.run["backend"] == "numpy" else f"{name} ({self.row['mode']}{amx})"

    @property
    def network(self) -> str:
        name = str(self.row["network"])
        for code, text in NETWORKS.items():
            name = name.replace(code, text)
        return name

    @property
    def missed(self) -> float:
        """The percentage by which the target is missed; 0 if it is met or absent."""
        return 0.0 if self.target is None else max(0.0, 100 * (round(self.row["value"], 2) / self.target - 1))

    @property
    def cell(self) -> str:
        spread = f" ± {(self.row['high'] - self.row['low']) / 2:.2f}" if "low" in self.row else ""
        value = f"{self.row['value']:.2f}"
        aim = "" if self.target is None else f" ({self.target:g})"
        return (f"**{value}**" if self.missed else value) + spread + aim


def write(results: Path, output: Path, texts: Path = HERE) -> None:
    """Write ``performance.md``, its plots and ``results/sizes.md`` from a folder of results."""
    recorded = read(results, tomllib.loads((texts / "targets.toml").read_text(encoding="utf-8")))
    by_network = [lambda r: r.network, lambda r: r.backend, lambda r: f"{r.row['ratio']:g}"]
    ordered = sorted(
        recorded["kernels"], key=lambda r: (list(NAMES).index(r.run["backend"]), r.backend, r.row["ratio"])
    )
    kernels = [r for name in KERNELS_NETWORKS for r in ordered if r.row["network"] == name]
    page = (HERE / "page.md").read_text(encoding="utf-8")
    page = page.replace("@@step@@", section(recorded["step"], ["network", "backend", "ratio"], by_network))
    page = page.replace("@@inference@@", section(recorded["inference"], ["network", "backend"], by_network[:2]))
    page = page.replace("@@loading@@", section(recorded["loading"], ["network", "ratio"], by_network[::2]))
    page = page.replace("@@kernels@@", section(kernels, ["network", "backend", "ratio"], by_network))
    (output / "assets").mkdir(parents=True, exist_ok=True)
    (output / "performance.md").write_text(page, encoding="utf-8")
    (output / "results").mkdir(exist_ok=True)
    page = (HERE / "sizes.md").read_text(encoding="utf-8").replace("@@sizes@@", sizes(recorded["sizes"]))
    (output / "results" / "sizes.md").write_text(page, encoding="utf-8")
    of_first = [r for r in kernels if r.row["network"] == KERNELS_NETWORKS[0]]
    plot_kernels(drawn(of_first), output / "assets" / "performance-kernels.svg")
    plot_step(drawn(recorded["step"]), output / "assets" / "performance-step.svg")


def read(folder: Path, texts: dict[str, dict[str, Any]]) -> dict[str, list[Result]]:
    """Return all recorded results, by command."""
    recorded: dict[str, list[Result]] = {"kernels": [], "step": [], "inference": [], "loading": [], "sizes": []}
    for backend in (f"{name}{amx}" for name in NAMES for amx in ("", AMX)):
        for command, results in recorded.items():
            path = folder / f"{command}-{backend}.json"
            if path.exists():
                run = json.loads(path.read_text(encoding="utf-8"))
                results += [_result(run, row, texts) for row in run["rows"]]
    return recorded


def _result(run: dict[str, Any], row: Row, texts: dict[str, dict[str, Any]]) -> Result:
    units = "-int8" * (run["int8"] and run["backend"] == "torch") + AMX * has_amx(run)
    backend = run["backend"] + units
    name = f"{run['command']} {backend} {row['network']} {row['what']} {row['ratio']:g}"
    fits = {kind: next((x for p, x in texts[kind].items() if fnmatchcase(name, p)), None) for kind in texts}
    return Result(run, row, fits["targets"], fits["notes"])


def section(results: Sequence[Result], heads: list[str], keys: list[Callable[[Result], str]]) -> str:
    """Return a table of results, one column per measurement, with missed targets and conditions."""
    if not results:
        return "No results are recorded yet."
    columns = list(dict.fromkeys(r.row["what"] for r in results))
    columns.sort(key=lambda what: what.startswith("memory"))
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for r in results:
        cells.setdefault(tuple(key(r) for key in keys), {})[r.row["what"]] = r.cell
    rows = [[*key, *(row.get(what, "–") for what in columns)] for key, row in cells.items()]
    lines = [[*heads, *columns], ["---"] * (len(heads) + len(columns)), *rows]
    return "\n\n".join(["\n".join(f"| {' | '.join(line)} |" for line in lines), *misses(results), conditions(results)])


def sizes(results: Sequence[Result]) -> str:
    """Return a table of bytes, one row per file format, network and ratio, and what wrote the files."""
    if not results:
        return "No results are recorded yet."
    order = [DENSE, QUANTIZED, FLOAT, POOL, *PARTS, FILE, PACKED]
    whats = sorted({r.row["what"] for r in results}, key=order.index)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for r in results:
        key = (r.row["mode"], r.row["network"], f"{r.row['ratio']:g}")
        cells.setdefault(key, {})[r.row["what"]] = f"{r.row['bytes']:,}"
    rows = [[*key, *(row.get(what, "–") for what in whats)] for key, row in cells.items()]
    lines = [["format", "network", "ratio", *whats], ["---"] * 3 + ["---:"] * len(whats), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    made = dict.fromkeys(f"{r.row['tools']}, commit {r.run['commit']}, {r.run['date']}" for r in results)
    return f"{table}\n\nWritten with {'; with '.join(made)}."


def misses(results: Iterable[Result]) -> list[str]:
    """Return the list of missed targets: by how much each is missed, and its note."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for r in results:
        if r.missed:
            groups.setdefault(r.note or "Not explained yet.", {}).setdefault(r.row["what"], []).append(r)
    lines = []
    for note, kinds in groups.items():
        parts = []
        for what, missed in kinds.items():
            most, least = max(r.missed for r in missed), min(r.missed for r in missed)
            by = f"{most:.0f} %" if f"{most:.0f}" == f"{least:.0f}" else f"{least:.0f} to {most:.0f} %"
            who = ", ".join(dict.fromkeys(r.backend for r in missed))
            networks = " and ".join(dict.fromkeys(r.network for r in missed))
            parts.append(f"{what}: {who} on {networks}, missed by {by}")
        lines.append(f"- {'; '.join(parts)}. {note}")
    return ["\n".join(lines)] if lines else []


def conditions(results: Iterable[Result]) -> str:
    """Return the machine, versions and date of results."""
    lines: dict[str, list[str]] = {}
    for run in {id(r.run): r.run for r in results}.values():
        units = ", ".join(run["features"]) + ("; int8 products" if run["int8"] else "")
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "python")
        where = f"{run['processor']} ({units}), threads: {run['threads']}, commit {run['commit']}, {run['date']}"
        lines.setdefault(where, []).append(f"{versions} ({run['rounds']} rounds)")
    return "Measured on " + "; on ".join(f"{where}: {', '.join(runs)}" for where, runs in lines.items()) + "."


def drawn(results: list[Result]) -> list[Result]:
    """Return what plots show: results without AMX, if there are any."""
    return [r for r in results if not has_amx(r.run)] or results


def plot_kernels(results: Sequence[Result], path: Path) -> None:
    """Draw build and gradients relative to their raw products, one panel each, bars by ratio."""
    kinds = [kind for kind in FLOORS if any(r.row["what"] == kind for r in results)]
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind in zip(drawing.subplots(1, max(1, len(kinds)), squeeze=False)[0], kinds or ["build"], strict=True):
        of = [r for r in results if r.row["what"] == kind]
        _bars(axes, of, lambda r: r.backend, lambda r: f"ratio {r.row['ratio']:g}")
        axes.axhline(FLOORS[kind], color="0.3", linestyle=":")
        axes.set(title=f"{kind}, ResNet-34", ylabel="relative to raw float32 products")
    _save(drawing, path, "lower bound")


def plot_step(results: Sequence[Result], path: Path) -> None:
    """Draw training steps relative to the plain model."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    axes = drawing.subplots()
    timed = [r for r in results if r.row["what"] != "memory"]
    _bars(
        axes,
        timed,
        lambda r: "\n".join((*r.network.split(" ", 1), r.backend)),
        lambda r: f"{r.row['what']}, ratio {r.row['ratio']:g}",
    )
    axes.axhline(1, color="0.3", linestyle=":")
    axes.set(title="training step, batch 32", ylabel="relative to the plain model")
    _save(drawing, path, "plain model")


def _bars(
    axes: Axes, results: Sequence[Result], group: Callable[[Result], str], series: Callable[[Result], str]
) -> None:
    """Draw groups of bars, with quartiles as whiskers and targets as short lines."""
    groups = list(dict.fromkeys(group(r) for r in results))
    labels = sorted({series(r) for r in results})
    width = 0.8 / max(1, len(labels))
    for number, label in enumerate(labels):
        of = [r for r in results if series(r) == label]
        x = [groups.index(group(r)) + (number - (len(labels) - 1) / 2) * width for r in of]
        y = [r.row["value"] for r in of]
        spread = [[max(0.0, r.row["value"] - r.row["low"]) for r in of], [r.row["high"] - r.row["value"] for r in of]]
        axes.bar(x, y, 0.9 * width, yerr=spread, label=label, capsize=2, color=f"C{number}")
        aims = [(place, r.target) for place, r in zip(x, of, strict=True) if r.target is not None]
        axes.hlines([aim for _, aim in aims], [p - width / 2 for p, _ in aims], [p + width / 2 for p, _ in aims], "k")
    axes.set_xticks(range(len(groups)), [name.replace(" (", "\n(") for name in groups], fontsize="x-small")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _save(drawing: Figure, path: Path, dots: str) -> None:
    """Save a drawing as SVG, with a legend of bars, targets and the dotted line below it."""
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    if labels:
        title = f"solid line: target; dotted line: {dots}"
        drawing.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="x-small", title=title)
    with mpl.rc_context({"svg.hashsalt": "smh"}):
        drawing.savefig(path, format="svg", metadata={"Date": None})
