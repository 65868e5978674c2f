"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar within a cell is escaped."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def percent(share: float) -> str:
    """Return a share as percent, without zeros at the end."""
    return f"{100 * share:.3g} %"


def signed(points: float) -> str:
    """Return a difference with its sign, a minus that is one."""
    text = f"{points:+.2f}"
    return text.replace("-", "−")
