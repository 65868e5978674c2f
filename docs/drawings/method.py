"""Draw the method with the numbers of a real plan: ``python docs/drawings/method.py``.

Integers of two thin matrices, their product, and the layers that are cut from it are those that smh makes; a colour is
a layer, its strength the size of a weight.
"""

from __future__ import annotations

import numpy as np
from canvas import MONO, THEMES, Canvas, mix

import smh
from smh.core.generate import put_on_grids
from smh.core.kernels import Kernels

SHAPES = {"conv": (8, 10), "fc1": (10, 5), "fc2": (5, 2)}
COLORS = {"conv": "one", "fc1": "two", "fc2": "three"}
CELL, SMALL, GAP = 24.0, 13.5, 12.0


def draw(theme: str) -> None:
    """Draw pool, product and layers from left to right."""
    plan = smh.Plan.build(SHAPES, ratio=0.4)
    variables = smh.initialize(plan)
    grids = put_on_grids(Kernels(np), plan, variables)
    left, right = (grids[side].integers.astype(int) for side in ("left", "right"))
    n, m = left.shape
    virtual = (left @ right).reshape(-1)
    canvas = Canvas(860, 424, theme, "Two thin matrices of integers, their product, and the layers that it is cut into")

    x, y, edge = 220.0, 86.0, CELL * n  # of the product
    side = x - GAP - m * CELL
    pool(canvas, right, x, y - GAP - m * CELL)
    pool(canvas, left, side, y)
    note(
        canvas, side - 14, y + 96, ["two thin matrices", "of small integers:", f"{2 * n * m} are trained", "and stored"]
    )

    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in SHAPES.values())])
    for i in range(n * n):
        layer = int(np.searchsorted(starts, i, side="right")) - 1
        color = "rule" if layer >= len(SHAPES) else COLORS[list(SHAPES)[layer]]
        cell(canvas, x + i % n * CELL, y + i // n * CELL, color, float(virtual[i]), virtual)
    canvas.text(x + edge / 2, y + edge + 32, f"one exact product: {n * n} virtual weights", font_size=15, fill="soft")

    at, top = x + edge + 130, 16.0
    for (name, (rows, columns)), start in zip(SHAPES.items(), starts, strict=False):
        color = COLORS[name]
        for i, value in enumerate(virtual[start : start + rows * columns]):
            cell(canvas, at + i % columns * SMALL, top + i // columns * SMALL, color, float(value), virtual, SMALL)
        middle = top + rows * SMALL / 2
        arrow(canvas, x + edge + 8, y + CELL * (start + rows * columns / 2) / n, at - 70, middle)
        scale = float(variables[f"scale/{name}"])
        canvas.text(at - 34, middle + 5, f"× {scale:.2f}", font_size=15, font_weight=600, fill=color)
        label = at + columns * SMALL + 12
        canvas.text(label, middle - 3, name, text_anchor="start", font_size=15, font_weight=700, fill=color)
        canvas.text(label, middle + 15, f"{rows} × {columns}", text_anchor="start", fill="soft")
        top += rows * SMALL + 22
    canvas.text(at + 60, y + edge + 32, "cut into layers, a scale for each", font_size=15, fill="soft")
    canvas.save(f"method-{theme}.svg")


def note(canvas: Canvas, x: float, y: float, lines: list[str]) -> None:
    """Write the caption of the pool, which ends at ``x``."""
    canvas.text(x, y - 26, "pool", font_size=19, font_weight=700, fill="pool", text_anchor="end")
    for k, line in enumerate(lines):
        canvas.text(x, y + 21 * k, line, font_size=15, fill="soft", text_anchor="end")


def pool(canvas: Canvas, values: np.ndarray, x: float, y: float) -> None:
    """Draw a matrix of the pool with its integers."""
    for (row, column), value in np.ndenumerate(values):
        fill = mix(canvas.colors["pool"], canvas.colors["paper"], 0.10 + 0.22 * abs(int(value)) / 127)
        left, top = x + column * CELL, y + row * CELL
        canvas.rect(left + 0.75, top + 0.75, CELL - 1.5, CELL - 1.5, rx=3, fill=fill)
        canvas.text(left + CELL / 2, top + CELL / 2 + 3.5, f"{value}", font_size=10, font_family=MONO)


def cell(canvas: Canvas, x: float, y: float, color: str, value: float, of: np.ndarray, size: float = CELL) -> None:
    """Draw a weight: the stronger its colour, the larger it is."""
    share = 0.16 + 0.84 * min(1.0, abs(value) / float(np.quantile(np.abs(of), 0.95)))
    fill = mix(canvas.colors[color], canvas.colors["paper"], share if color != "rule" else 0.5)
    canvas.rect(x + 0.75, y + 0.75, size - 1.5, size - 1.5, rx=3, fill=fill)


def arrow(canvas: Canvas, x1: float, y1: float, x2: float, y2: float) -> None:
    """Draw a curved arrow to the right."""
    half = (x1 + x2) / 2
    d = f"M{x1:.1f} {y1:.1f}C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}m-6 -4l6 4l-6 4"
    canvas.add("path", d=d, fill="none", stroke="soft", stroke_width=1.5, stroke_linecap="round")


if __name__ == "__main__":
    for name in THEMES:
        draw(name)
