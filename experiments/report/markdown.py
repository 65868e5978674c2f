"""What all pages have: tables, numbers, and where runs took place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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


def machine(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the processors of all runs, and the versions of the last one."""
    processors = ", ".join(sorted({line["cpu"] for line in lines}))
    versions = ", ".join(f"{name} {version}" for name, version in lines[-1]["versions"].items() if name != "smh")
    return f"one thread of {processors}; {versions}"
