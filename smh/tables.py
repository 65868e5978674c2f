"""Tables for people: as plain text, in a notebook, with rich, and as data for pandas."""

from __future__ import annotations

import html
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smh.errors import SmhError

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Table:
    """Rows of text under the names of columns; ``str`` gives plain text.

    >>> print(Table(("layer", "numbers"), [("Linear", "1,230"), ("Embedding", "80")], right=["numbers"]))
    layer      numbers
    ------------------
    Linear       1,230
    Embedding       80
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()  # the columns of numbers, which are aligned on the right

    def __str__(self) -> str:
        """Return lines without blanks at their ends."""
        table = [self.columns, *self.rows]
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        lines = []
        for row in table:
            named = zip(self.columns, row, widths, strict=True)
            cells = (cell.rjust(width) if name in self.right else cell.ljust(width) for name, cell, width in named)
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table in the colors of the page that shows it."""
        rows = []
        for number, row in enumerate([self.columns, *self.rows]):
            tag = "td" if number else "th"
            cells = (
                f'<{tag} style="text-align: {"right" if name in self.right else "left"}">{html.escape(cell)}</{tag}>'
                for name, cell in zip(self.columns, row, strict=True)
            )
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return f"<table><thead>{rows[0]}</thead><tbody>{''.join(rows[1:])}</tbody></table>"

    def rich(self, text: str = "") -> rich.table.Table:
        """Return the table above a text, for rich. Cells that are too long are folded, not cut."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(caption=Text(text), caption_justify="left")
        for name in self.columns:
            table.add_column(name, justify="right" if name in self.right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def paragraph(text: str) -> str:
    """Return text as HTML that keeps its lines.

    >>> paragraph("1 < 2")
    '<p style="white-space: pre-line">1 &lt; 2</p>'
    """
    return f'<p style="white-space: pre-line">{html.escape(text)}</p>'


def data_frame(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return a data frame with a row for each record, or raise :class:`~smh.SmhError` if pandas is not installed."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise SmhError("to_pandas needs pandas: pip install pandas. to_dict gives the same numbers") from error
    return pandas.DataFrame(records)


def counted(number: int, noun: str) -> str:
    """Return a number and a noun, in the plural unless it is one.

    >>> counted(1, "tensor"), counted(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
