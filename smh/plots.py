"""Figures of plans and reports. They need Matplotlib, and no window: each is a figure to show or to save."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from smh.errors import SmhError, install_line

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as _Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise SmhError(f"plots need Matplotlib: {install_line('plot')}") from error

if TYPE_CHECKING:
    from smh.core.plan import Plan

_COLORS = ("#4c78a8", "#f2a65a", "#6bb38a", "#d9737b", "#9d86c4", "#c9b458", "#6fb7c9", "#b98a6a")
_SPARE, _INK = "#e6e6e6", "#222222"
_PIXELS = 720  # of the square, along an edge
_LINE = 0.025  # of the square's height that a line of text needs
_BARS = 15
_NAME = 44  # characters of a label


class Figure(_Figure):
    """A figure that notebooks show by themselves, whether or not pyplot is imported."""

    def _repr_png_(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=110)
        return target.getvalue()


def plan_figure(plan: Plan) -> Figure:
    """Return the cells of a plan as a square, colored by tensor, and the arrays of its pool at the same scale.

    Arrays lie on the left of the square and above it by turns, as the factors of a matrix product do.
    """
    n = math.isqrt(plan.capacity - 1) + 1
    cells = max(plan.capacity, plan.num_weights)
    rows = -(-cells // n)
    figure = Figure(figsize=(11, 7), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.imshow(
        _owners(plan, n, rows),
        cmap=ListedColormap([_SPARE, *_COLORS]),
        vmin=0,
        vmax=len(_COLORS),
        extent=(0, n, rows, 0),
        interpolation="nearest",
        aspect="equal",
    )
    axes.add_patch(Rectangle((0, 0), n, rows, fill=False, edgecolor=_INK, linewidth=0.8))
    left, top = _draw_arrays(axes, plan, n, rows)
    end = _label_tensors(axes, plan, n, rows)
    notes = [f"{plan.num_weights:,} weights of {len(plan.tensors)} tensors from {plan.num_variables:,} variables"]
    if plan.num_weights > plan.capacity:
        axes.plot([-0.03 * n, 1.03 * n], [plan.capacity / n] * 2, color=_INK, linestyle="--", linewidth=1.2)
        below = "repeat the square" if plan.layout == "cyclic" else "are constant (padding)"
        notes.append(f"cells below the dashed line {below}")
    title = f"{plan.pool.in_words()}: {plan.capacity:,} virtual weights, row by row"
    axes.set_title(f"{title}\n{'; '.join(notes)}", fontsize=10, color=_INK, loc="left")
    axes.set_xlim(-left, end)
    axes.set_ylim(rows * 1.02, -top)
    axes.set_axis_off()
    return figure


def bars(sizes: Mapping[str, tuple[int, int]], title: str) -> Figure:
    """Return horizontal bars of bytes before and after by layer, the largest first, the smallest summed."""
    ranked = sorted(sizes.items(), key=lambda layer: -layer[1][0])
    shown, rest = ranked[:_BARS], ranked[_BARS:]
    if rest:
        shown.append((f"{len(rest)} smaller layers", (sum(x[0] for _, x in rest), sum(x[1] for _, x in rest))))
    figure = Figure(figsize=(8, 1.3 + 0.4 * len(shown)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    places = np.arange(len(shown))
    for k, (name, color) in enumerate((("before", "#b8c4d3"), ("after", _COLORS[0]))):
        drawn = axes.barh(places + 0.4 * k - 0.2, [size[k] for _, size in shown], 0.38, label=name, color=color)
        axes.bar_label(drawn, [_bytes(size[k]) for _, size in shown], padding=3, fontsize=8, color=_INK)
    axes.set_yticks(places, [_literal(_short(layer or "(model)")) for layer, _ in shown], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: _bytes(int(value)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _owners(plan: Plan, n: int, rows: int) -> np.ndarray:
    """Return for each pixel the color of the tensor whose cell it shows, 0 for spare cells."""
    y, x = ((np.arange(min(k, _PIXELS)) + 0.5) * k // min(k, _PIXELS) for k in (rows, n))
    cells = y.astype(np.int64)[:, None] * n + x.astype(np.int64)
    stops = np.array([tensor.stop for tensor in plan.tensors])
    tensors = np.searchsorted(stops, cells, side="right")
    return np.where(tensors < len(stops), 1 + tensors % len(_COLORS), 0)


def _draw_arrays(axes: Axes, plan: Plan, n: int, rows: int) -> tuple[float, float]:
    """Draw the arrays of the pool at the scale of the square; return how far they reach on the left and above."""
    gap = 0.06 * n
    reach = [gap, gap]
    for number, (name, shape) in enumerate(plan.pool.variable_shapes().items()):
        above = number % 2
        thickness = math.prod(shape) / n
        corner = (0.0, -reach[1] - thickness) if above else (-reach[0] - thickness, 0.0)
        sides = (n, thickness) if above else (thickness, n)
        axes.add_patch(Rectangle(corner, *sides, facecolor="#9a9a9a", edgecolor=_INK, linewidth=0.6))
        text = f"{name}: {' x '.join(map(str, shape))}"
        if above:
            axes.text(n / 2, corner[1] - 0.01 * n, text, ha="center", va="bottom", fontsize=8, color=_INK)
        else:
            place = corner[0] - 0.01 * n
            axes.text(place, n / 2, text, ha="right", va="center", rotation=90, fontsize=8, color=_INK)
        reach[above] += thickness + gap
    return reach[0], reach[1]


def _label_tensors(axes: Axes, plan: Plan, n: int, rows: int) -> float:
    """Write the names of tensors beside their cells, those of small neighbors together; return where they end."""
    least, groups = 2 * _LINE * rows * n, [[plan.tensors[0]]]
    for tensor in plan.tensors[1:]:
        if max(tensor.size, groups[-1][-1].stop - groups[-1][0].offset) < least:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
    places = [(group[0].offset + group[-1].stop) / 2 / n for group in groups]
    heights, line = list(places), _LINE * rows
    for k in range(1, len(groups)):  # down, where labels would overlap, and up again from the lower edge
        heights[k] = max(heights[k], heights[k - 1] + line)
    heights.append(rows + line)
    for k in reversed(range(len(groups))):
        heights[k] = min(heights[k], heights[k + 1] - line)
    longest = 0
    for group, place, y in zip(groups, places, heights[:-1], strict=True):
        names, size = [group[0].name, group[-1].name][: len(group)], group[-1].stop - group[0].offset
        text = " ... ".join(_short(name, _NAME if len(names) == 1 else _NAME - 14) for name in names)
        more = f" ({len(group)} tensors)" if len(group) > 1 else ""
        axes.plot([n, 1.03 * n, 1.05 * n], [place, y, y], color=_INK, linewidth=0.6)
        text = f"{text}{more}: {size:,}"
        axes.text(1.06 * n, y, _literal(text), va="center", fontsize=8, color=_INK)
        longest = max(longest, len(text))
    return 1.06 * n + 0.55 * _LINE * rows * longest


def _short(name: str, most: int = _NAME) -> str:
    return name if len(name) <= most else f"{name[: 3 * most // 5]}...{name[3 - 2 * most // 5 :]}"


def _literal(text: str) -> str:
    """Return text in which Matplotlib sees no formula."""
    return "".join(x if x.isprintable() else "?" for x in text).replace("$", r"\$")


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
