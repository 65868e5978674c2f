"""Draw accuracy over bytes from the tables of docs/results/accuracy.md: ``python docs/drawings/accuracy.py``.

Methods in float32 take four bytes a variable. For smh there are two curves with the same accuracies: four bytes a
variable, as measured with version 0.1, and one byte for each variable of the pool, computed.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from canvas import THEMES, Canvas

PAGE = Path(__file__).parent.parent / "results" / "accuracy.md"
NETWORKS = {"CNN": "CNN, 279,578 weights", "MLP": "MLP, 1,796,010 weights"}
SMH = "smh, matrix product"
METHODS = {  # row of the page: label, color
    "pruning": ("pruning", "two"),
    "low rank": ("low rank", "three"),
    "width multiplier": ("width multiplier", "four"),
}
LOW, HIGH = 82.0, 90.5
Point = tuple[float, float, float]  # bytes, accuracy, deviation
Rows = dict[str, list[str]]


def table(section: str, after: str) -> Rows:
    """Return the rows of the first table after a line, by what stands in their first cell."""
    lines = section[section.index(after) :].split("\n")
    start = next(k for k, line in enumerate(lines) if line.startswith("|"))
    rows: Rows = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        rows[first] = rest
    return rows


def points(accuracies: Rows, stored: Rows, method: str, pool_bytes: int = 4) -> list[Point]:
    """Return the points of a method, the largest first; a pool may have fewer bytes a variable than the rest."""
    rest = number(next(cell for cell in stored["random pool"] if cell)) if pool_bytes != 4 else 0  # scales, kept
    found = []
    for accuracy, count in zip(accuracies[method], stored[method], strict=True):
        match = re.fullmatch(r"([\d.]+) ± ([\d.]+)", accuracy)
        if match:
            size = pool_bytes * (number(count) - rest) + 4 * rest
            found.append((float(size), float(match[1]), float(match[2])))
    return found


def number(text: str) -> int:
    """Return an integer that is written with commas."""
    return int(text.replace(",", ""))


class Panel:
    """One network: axes, and curves in them."""

    def __init__(self, canvas: Canvas, left: float, top: float, width: float, height: float, x: range) -> None:
        self.canvas, self.left, self.top, self.width, self.height = canvas, left, top, width, height
        self.x = (math.log10(x.start), math.log10(x.stop))

    def at(self, size: float, accuracy: float) -> tuple[float, float]:
        """Return where a point lies; errors are on a logarithmic scale, as are bytes."""
        share = (math.log10(size) - self.x[0]) / (self.x[1] - self.x[0])
        down = math.log((100 - accuracy) / (100 - HIGH)) / math.log((100 - LOW) / (100 - HIGH))
        return self.left + share * self.width, self.top + down * self.height

    def axes(self, title: str, ticks: dict[int, str]) -> None:
        """Draw title, ticks and rules."""
        canvas, bottom = self.canvas, self.top + self.height
        canvas.text(self.left, self.top - 14, title, text_anchor="start", font_weight=600)
        for accuracy in (82, 84, 86, 87, 88, 89, 90):
            y = self.at(10.0 ** self.x[0], accuracy)[1]
            canvas.line(self.left, y, self.left + self.width, y)
            canvas.text(self.left - 8, y + 4, f"{accuracy}", fill="soft", font_size=12, text_anchor="end")
        for size, label in ticks.items():
            x = self.at(size, HIGH)[0]
            canvas.line(x, bottom, x, bottom + 5, stroke="soft")
            canvas.text(x, bottom + 19, label, fill="soft", font_size=12)

    def curve(self, found: list[Point], color: str, **attributes: object) -> None:
        """Draw a curve with the standard deviations of its points."""
        inside = [point for point in found if point[1] >= LOW]
        self.canvas.path([self.at(*point[:2]) for point in inside], stroke=color, **attributes)
        for size, accuracy, deviation in inside:
            x, y = self.at(size, accuracy)
            high, low = (self.at(size, accuracy + sign * deviation)[1] for sign in (1, -1))
            low = min(low, self.top + self.height)
            self.canvas.line(x, high, x, low, stroke=color, stroke_width=1.2, stroke_opacity=0.55)
            self.canvas.add("circle", cx=x, cy=y, r=3.4, fill=color)

    def label(self, size: float, accuracy: float, text: str, color: str, **attributes: object) -> None:
        """Write the name of a curve beside it."""
        x, y = self.at(size, accuracy)
        self.canvas.text(x, y, text, fill=color, font_size=13, font_weight=600, **attributes)


def draw(theme: str) -> None:
    """Draw both networks side by side."""
    text = PAGE.read_text(encoding="utf-8")
    canvas = Canvas(960, 440, theme, "Test accuracy over bytes for smh, pruning, low rank and narrower networks")
    spans = {"CNN": range(4_000, 1_400_000), "MLP": range(18_000, 9_000_000)}
    ticks = {
        "CNN": {10_000: "10 kB", 100_000: "100 kB", 1_000_000: "1 MB"},
        "MLP": {100_000: "100 kB", 1_000_000: "1 MB", 7_184_040: "7.2 MB"},
    }
    for k, (network, title) in enumerate(NETWORKS.items()):
        section = text[text.index(f"\n## {network}\n") :]
        accuracies, stored = table(section, f"## {network}"), table(section, "Stored variables:")
        panel = Panel(canvas, 46 + 484 * k, 68, 420, 300, spans[network])
        panel.axes(title, ticks[network])
        (mean,) = re.findall(r"^[\d.]+", accuracies["dense"][0])
        size = 4.0 * number(stored["dense"][0])
        x, y = panel.at(size, float(mean))
        canvas.line(panel.left, y, panel.left + panel.width, y, stroke="soft", stroke_dasharray="2 4")
        canvas.rect(x - 4, y - 4, 8, 8, fill="ink")
        canvas.text(x, y + (20 if network == "CNN" else 22), "dense", font_size=13, font_weight=600)
        for method, (_, color) in METHODS.items():
            panel.curve(points(accuracies, stored, method), color)
        panel.curve(points(accuracies, stored, SMH), "smh", stroke_dasharray="5 4", stroke_opacity=0.6)
        panel.curve(points(accuracies, stored, SMH, pool_bytes=1), "smh", stroke_width=3.2)
        for label, (where, accuracy, color) in LABELS[network].items():
            panel.label(where, accuracy, label, color)
    canvas.text(canvas.width / 2, 418, "bytes of the stored variables (logarithmic)", fill="soft", font_size=13)
    canvas.text(46, 22, "test accuracy on Fashion-MNIST, %", fill="soft", font_size=13, text_anchor="start")
    canvas.save(f"accuracy-bytes-{theme}.svg")


LABELS = {  # bytes, accuracy, color
    "CNN": {
        "smh, 8 bits (computed)": (13_000, 89.35, "smh"),
        "float32": (11_000, 86.2, "smh"),
        "pruning": (300_000, 90.2, "two"),
        "low rank": (62_000, 83.4, "three"),
        "width multiplier": (105_000, 86.3, "four"),
    },
    "MLP": {
        "smh, 8 bits (computed)": (72_000, 88.05, "smh"),
        "float32": (2_300_000, 88.05, "smh"),
        "pruning": (400_000, 86.95, "two"),
        "low rank": (380_000, 84.0, "three"),
        "width multiplier": (62_000, 84.25, "four"),
    },
}


if __name__ == "__main__":
    for name in THEMES:
        draw(name)
