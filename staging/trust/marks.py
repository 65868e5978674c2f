"""Tables of results that other pages show, between marks in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from trust.record import Line
from trust.report import latest, table


def filled(text: str, lines: Iterable[Line]) -> str:
    """Return a page with the tables of the last results between its marks.

    Raises
    ------
    ValueError
        If it lacks a mark.
    """
    found = latest(lines)
    for name, make in _TABLES.items():
        begin, end = f"<!-- {name}: written by `python -m trust report` -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        if len(re.findall(pattern, text, re.DOTALL)) != 1:
            raise ValueError(f"the page needs the lines {begin!r} and {end!r}, once each")
        body = f"{begin}\n\n{make([line for line in found if line['check'] == name])}\n\n{end}"
        text = re.sub(pattern, lambda _, body=body: body, text, flags=re.DOTALL)
    return text


def _conformance(lines: list[Line]) -> str:
    rows = [
        (
            line["backend"],
            line["modes"],
            *(f"{line['counts'][what]:,}" for what in ("laws passed", "bits compared", "bits different")),
        )
        for line in lines
    ]
    return table(("backend", "modes", "laws passed", "bits compared", "bits different"), rows)


def _demo(lines: list[Line]) -> str:
    rows = []
    for line in lines:
        for what, name in (("dense", "dense"), ("pool", "matmul pool")):
            rows.append(
                (
                    name,
                    f"{line['counts']['weights']:,}",
                    f"{line['counts'][f'{what}: variables']:,}",
                    f"{line['measured'][f'{what}: test accuracy, %']:.1f} %",
                    f"{line['counts'][f'{what}: bytes']:,}",
                )
            )
    return table(("", "weights", "variables", "test accuracy", "bytes"), rows)


_TABLES: dict[str, Callable[[list[Line]], str]] = {"demo": _demo, "conformance": _conformance}
