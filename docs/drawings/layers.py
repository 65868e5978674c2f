"""Draw the bytes of a network before and after compression: ``python docs/drawings/layers.py``.

The network is the CNN of docs/results/accuracy.md, by its shapes.
"""

from __future__ import annotations

from math import prod

from canvas import THEMES, Canvas

import smh

SHAPES = {
    "conv 1": (3, 3, 1, 32),
    "conv 2": (3, 3, 32, 64),
    "conv 3": (3, 3, 64, 64),
    "dense 1": (1024, 216),
    "dense 2": (216, 10),
}
COLORS = {"conv 1": "four", "conv 2": "one", "conv 3": "three", "dense 1": "two", "dense 2": "four"}
KEPT = 650  # parameters and statistics of batch norm, and the biases of the last layer
LEFT, WIDTH, HEIGHT = 20.0, 860.0, 54.0


def draw(theme: str) -> None:
    """Draw a bar before, a bar after at the same scale, and that one enlarged."""
    plan = smh.Plan.build(SHAPES, ratio=0.1)
    scales = 4 * len(SHAPES)
    before = {name: 4 * prod(shape) for name, shape in SHAPES.items()} | {"kept": 4 * KEPT}
    after = {"pool": plan.file_bytes - scales, "scales": scales, "kept": 4 * KEPT}
    colors = COLORS | {"pool": "pool", "scales": "ink", "kept": "soft"}
    total = sum(before.values())
    canvas = Canvas(900, 372, theme, "Bytes of a network before and after compression")

    def bar(y: float, title: str, parts: dict[str, int], unit: float, least: float) -> float:
        canvas.text(LEFT, y - 12, title, text_anchor="start", font_size=16, font_weight=600)
        x = LEFT
        for name, size in parts.items():
            width = size / unit
            canvas.rect(x, y, max(width - 1.5, 0.5), HEIGHT, rx=min(3.0, width / 3), fill=colors[name])
            if width > least:
                canvas.text(x + width / 2, y + 25, name, fill="paper", font_size=13.5, font_weight=600)
                canvas.text(x + width / 2, y + 44, f"{size:,}", fill="paper", font_size=13)
            x += width
        return x

    bar(40, f"before: {total:,} bytes of float32", before, total / WIDTH, 48)
    small = sum(after.values())
    end = bar(164, f"after: {small:,} bytes, at the same scale", after, total / WIDTH, 200)
    for x1, x2 in ((LEFT, LEFT), (end, LEFT + WIDTH)):
        canvas.line(x1, 164 + HEIGHT + 3, x2, 300 - 34 if x1 == x2 else 297, stroke_dasharray="3 4", stroke="soft")
    bar(300, "after, enlarged", after, small / WIDTH, 60)
    canvas.save(f"layers-{theme}.svg")


if __name__ == "__main__":
    for name in THEMES:
        draw(name)
