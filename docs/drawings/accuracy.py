"""Draw accuracy over measured bytes from the results of experiments: ``python docs/drawings/accuracy.py``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from canvas import THEMES, Canvas

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from experiments import results  # noqa: E402
from experiments.report.by_bytes import Point, best_so_far, points  # noqa: E402

METHODS = {  # label: color, methods
    "pruning": ("two", ("pruned",)),
    "integers": ("one", ("integers",)),
    "low rank": ("three", ("lowrank",)),
    "width multiplier": ("four", ("width",)),
    "smh": ("smh", ("kronecker", "matmul", "hash1")),
}
NETWORKS = {  # file: title, seeds at least, lowest and highest accuracy, places of labels as bytes and accuracy
    "bytes": (
        "CNN, 280,154 numbers, three seeds",
        3,
        (46.0, 69.0),
        {
            "smh": (8_300, 62.6),
            "integers": (40_000, 68.0),
            "pruning": (15_500, 55.6),
            "low rank": (12_200, 50.2),
            "width multiplier": (52_000, 61.2),
        },
    ),
    "cifar_resnet20": (
        "ResNet-20, 271,098 numbers, one or three seeds",
        1,
        (56.0, 78.0),
        {
            "smh": (15_500, 72.6),
            "integers": (10_800, 68.3),
            "pruning": (105_000, 74.1),
            "low rank": (62_000, 62.5),
            "width multiplier": (135_000, 70.4),
        },
    ),
}
SPAN = 4_000, 300_000
TICKS = {10_000: "10 kB", 100_000: "100 kB"}


class Panel:
    """One network: axes, and curves in them."""

    def __init__(self, canvas: Canvas, left: float, top: float, accuracies: tuple[float, float]) -> None:
        self.canvas, self.left, self.top, self.width, self.height = canvas, left, top, 420, 300
        self.accuracies = accuracies

    def at(self, size: float, accuracy: float) -> tuple[float, float]:
        """Return where a point lies; bytes are on a logarithmic scale."""
        least, most = map(math.log, SPAN)
        low, high = self.accuracies
        share = (math.log(size) - least) / (most - least)
        return self.left + share * self.width, self.top + (high - accuracy) / (high - low) * self.height

    def axes(self, title: str) -> None:
        """Draw title, ticks and rules."""
        canvas, bottom = self.canvas, self.top + self.height
        canvas.text(self.left, self.top - 14, title, text_anchor="start", font_weight=600)
        low, high = self.accuracies
        for accuracy in range(-(-int(low) // 5) * 5, int(high) + 1, 5):
            y = self.at(SPAN[0], accuracy)[1]
            canvas.line(self.left, y, self.left + self.width, y)
            canvas.text(self.left - 8, y + 4, f"{accuracy}", fill="soft", font_size=12, text_anchor="end")
        for size, label in TICKS.items():
            x = self.at(size, high)[0]
            canvas.line(x, bottom, x, bottom + 5, stroke="soft")
            canvas.text(x, bottom + 19, label, fill="soft", font_size=12)

    def curve(self, found: Iterable[Point], color: str, **attributes: object) -> None:
        """Draw a curve with the standard deviations of its points."""
        inside = [p for p in found if p.accuracy >= self.accuracies[0] and SPAN[0] <= p.size <= SPAN[1]]
        self.canvas.path([self.at(p.size, p.accuracy) for p in inside], stroke=color, **attributes)
        for point in inside:
            x, y = self.at(point.size, point.accuracy)
            if point.spread is not None:
                high, low = (self.at(point.size, point.accuracy + sign * point.spread)[1] for sign in (1, -1))
                low = min(low, self.top + self.height)
                self.canvas.line(x, high, x, low, stroke=color, stroke_width=1.2, stroke_opacity=0.55)
            self.canvas.add("circle", cx=x, cy=y, r=3.4, fill=color)

    def dense(self, accuracy: float) -> None:
        """Draw the accuracy of the dense network."""
        y = self.at(SPAN[0], accuracy)[1]
        self.canvas.line(self.left, y, self.left + self.width, y, stroke="soft", stroke_dasharray="2 4")
        self.canvas.text(self.left + 4, y - 6, "dense, float32, 1.1 MB", fill="soft", font_size=12, text_anchor="start")


def draw(theme: str) -> None:
    """Draw both networks side by side."""
    canvas = Canvas(
        960, 440, theme, "Test accuracy over bytes for smh, integers, pruning, low rank and narrower networks"
    )
    for k, (name, (title, seeds, accuracies, labels)) in enumerate(NETWORKS.items()):
        lines = results.read(ROOT / "experiments" / "results" / f"{name}.jsonl")
        found, dense = points(lines), [x["test_accuracy"] for x in lines if x["settings"]["method"] == "dense"]
        panel = Panel(canvas, 46 + 484 * k, 68, accuracies)
        panel.axes(title)
        panel.dense(sum(dense) / len(dense))
        for label, (color, methods) in METHODS.items():
            of = [point for point in found if point.settings.method in methods and point.seeds >= seeds]
            front = best_so_far((point.size, point) for point in of)
            panel.curve((point for _, point in front), color, stroke_width=3.2 if label == "smh" else 1.8)
        for label, (size, accuracy) in labels.items():
            x, y = panel.at(size, accuracy)
            canvas.text(x, y, label, fill=METHODS[label][0], font_size=13, font_weight=600)
    canvas.text(canvas.width / 2, 418, "bytes, entropy-coded (logarithmic)", fill="soft", font_size=13)
    canvas.text(46, 22, "test accuracy on CIFAR-10, %", fill="soft", font_size=13, text_anchor="start")
    canvas.save(f"accuracy-bytes-{theme}.svg")


if __name__ == "__main__":
    for name in THEMES:
        draw(name)
