"""The plot of growth; it needs Matplotlib."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot

from cost.context import Figure

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "smh"  # equal figures give an equal file


def plot(figures: list[Figure], path: Path) -> None:
    """Draw time and memory over the number of weights."""
    drawing, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    absolute = [figure for figure in figures if figure["unit"] == "ms"]
    for operation in dict.fromkeys(figure["operation"] for figure in absolute):
        points = sorted((f["extra"]["weights"], f) for f in absolute if f["operation"] == operation)
        weights = [number for number, _ in points]
        times.loglog(weights, [f["value"] for _, f in points], "o-", label=operation)
        memory.loglog(weights, [f["extra"]["peak_bytes"] / 1e6 for _, f in points], "o-", label=operation)
    everything = sorted({figure["extra"]["weights"] for figure in absolute})
    memory.loglog(everything, [4e-6 * number for number in everything], "k:", label="all weights, float32")
    for axes, what in ((times, "time, ms"), (memory, "peak memory beyond the variables, MB")):
        axes.set(xlabel="weights", ylabel=what)
        axes.legend()
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)
