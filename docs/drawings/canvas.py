"""A canvas for SVG: shapes and text with coordinates, in the colours of a light or of a dark page."""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
THEMES = {
    "light": {
        "ink": "#1f2933",
        "soft": "#5f6c7b",
        "rule": "#d5dbe1",
        "paper": "#ffffff",
        "pool": "#4453a6",
        "smh": "#4453a6",
        "one": "#2a7f9e",
        "two": "#c2571a",
        "three": "#3d8b4f",
        "four": "#8e4aa8",
    },
    "dark": {
        "ink": "#e4e8ee",
        "soft": "#a3afbd",
        "rule": "#465162",
        "paper": "#1e2129",
        "pool": "#a5b0f5",
        "smh": "#a5b0f5",
        "one": "#5cc0df",
        "two": "#f09a5e",
        "three": "#7fd08f",
        "four": "#cf9be4",
    },
}


class Canvas:
    """Elements of a drawing, collected in order; colours are names of a theme."""

    def __init__(self, width: float, height: float, theme: str, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.colors = THEMES[theme]
        self.elements: list[str] = []

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """Add an element; ``fill`` and ``stroke`` take a name of the theme, numbers are rounded."""
        parts = [f"<{tag}"]
        for name, value in attributes.items():
            if isinstance(value, float):
                value = f"{value:.2f}".rstrip("0").rstrip(".")
            elif isinstance(value, str):
                value = self.colors.get(value, value)
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
        self.elements.append(" ".join(parts) + ("/>" if text is None else f">{escape(text, quote=False)}</{tag}>"))

    def rect(self, x: float, y: float, width: float, height: float, **attributes: object) -> None:
        """Add a rectangle."""
        self.add("rect", x=x, y=y, width=width, height=height, **attributes)

    def line(self, x1: float, y1: float, x2: float, y2: float, **attributes: object) -> None:
        """Add a straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, **{"stroke": "rule", **attributes})

    def text(self, x: float, y: float, text: str, **attributes: object) -> None:
        """Add a line of text; ``x`` is its middle unless ``text_anchor`` says otherwise."""
        self.add("text", text, x=x, y=y, **{"fill": "ink", "font_size": 14, "text_anchor": "middle", **attributes})

    def path(self, points: list[tuple[float, float]], **attributes: object) -> None:
        """Add a line through points."""
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.add("path", d=d, **{"fill": "none", "stroke": "ink", "stroke_width": 2, **attributes})

    def save(self, name: str) -> None:
        """Write the drawing into the assets of the site."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" role="img" font-family="{FONT}">'
        )
        lines = [head, f"<title>{escape(self.title)}</title>", *self.elements, "</svg>", ""]
        (ASSETS / name).write_text("\n".join(lines), encoding="utf-8")


def mix(color: str, other: str, share: float) -> str:
    """Return ``share`` of one colour, ``#rrggbb``, and the rest of another."""
    pairs = [(int(color[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
