"""A page of tables from the file of results: the last line of each check, or of each engine and such of one.

Of a check that is done in many runs, it is the sum of all lines that the same code and versions gave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trust.record import Line

CHECKS = {
    "demo": (
        "Demonstration",
        "`smh demo`: a classifier trained from a pool, saved, loaded, and its weights compared.",
    ),
    "conformance": (
        "Conformance",
        "`smh conformance`: every law for every backend in every mode, decided by golden vectors and by an oracle in "
        "integers.",
    ),
    "deep": (
        "Deep conformance",
        "`smh conformance --deep`, again and again for an hour or more, each time with other plans, and with shapes of "
        "real size.",
    ),
    "fuzz": (
        "Hostile files",
        "Files, plans and mappings that were made to break the readers. Only the library's own errors may come out, "
        "within limits of memory and time.",
    ),
    "faults": (
        "Faults while saving",
        "Savers of a file that exists already, disturbed at random moments. After each fault the file is read, its "
        "digest is computed anew, and all that it holds is compared with what its version is known to hold.",
    ),
    "numerics": (
        "Arithmetic under attack",
        "Exact products of operands that are made to break them, by every backend, and sums of their terms in every "
        "order, against integers. As a control, the same sums in plain float32, where orders show.",
    ),
    "orders": (
        "Hash seeds and orders of import",
        "Golden vectors, built, differentiated and digested in processes of their own.",
    ),
    "soak": (
        "Long training",
        "A small compressed model in PyTorch, SGD with momentum, one thread, once for each residency. Figures of "
        "growth are between the first mark, after a twentieth of the steps, and the end.",
    ),
    "packages": (
        "Packages",
        "The library, built and installed into fresh environments as a user does it, and used there.",
    ),
}
"""Title and description of each check, in the order of the page."""


_NUMBERS = (
    "count",
    "measured",
    "at most",
    "seconds",
    "laws passed",
    "bits compared",
    "bits different",
    "weights",
    "variables",
    "test accuracy",
    "bytes",
)


SUMMED = ("deep",)
"""Checks of many runs, each of which has a line."""


def latest(lines: Iterable[Line]) -> list[Line]:
    """Return the last line of each check, or of each engine, environment or backend of it, or the sum of its runs."""
    found: dict[tuple[str, ...], Line] = {}
    for line in lines:
        key = (line["check"], *_variant(line))
        same = key in found and all(found[key].get(what) == line.get(what) for what in ("source", "versions", "system"))
        found[key] = _sum(found[key], line) if same and line["check"] in SUMMED else line
    order = list(CHECKS)
    return sorted(found.values(), key=lambda line: (order.index(line["check"]), *map(str, _variant(line))))


def _sum(a: Line, b: Line) -> Line:
    """Return what two runs of one check found; all else is said of the later one."""
    return {
        **b,
        "counts": {what: a["counts"].get(what, 0) + b["counts"].get(what, 0) for what in a["counts"] | b["counts"]},
        "skipped": a["skipped"] | b["skipped"],
        "failures": a["failures"] + b["failures"],
        "passed": a["passed"] and b["passed"],
        "changed": a["changed"] or b["changed"],
        "seconds": round(a["seconds"] + b["seconds"], 1),
        "seeds": f"{a['seeds']}, {b['seeds']}",
        "modes": ", ".join(dict.fromkeys(f"{a['modes']}, {b['modes']}".split(", "))),
    }


def page(lines: Iterable[Line]) -> str:
    """Return the page, Markdown."""
    text = [
        "# Trust",
        "<!-- Written by `python -m trust report`; changes by hand are lost. -->",
        "Attempts to break the library, and their results. `python -m trust` runs each check and adds its result to "
        "`trust/results/trust.jsonl`. This page shows the last run of each check; for deep conformance, the sum of all "
        "runs of the same code. A check fails if a figure exceeds its bound.",
    ]
    shown = ""
    chosen = latest(lines)
    text.append(table(("check", "result", "seconds", "date", "commit"), [_summary(line) for line in chosen]))
    for line in chosen:
        title, description = CHECKS[line["check"]]
        if title != shown:
            text += [f"## {title}", description]
            shown = title
        text += _section(line)
    return "\n\n".join(text) + "\n"


def _variant(line: Line) -> list[str]:
    return [str(line[key]) for key in ("engine", "environment", "backend") if line.get(key)]


def _summary(line: Line) -> tuple[str, ...]:
    title = CHECKS[line["check"]][0]
    name = f"[{title}](#{re.sub(r'[^a-z]+', '-', title.lower())})" + "".join(f", {x}" for x in _variant(line))
    commit = line["commit"] + (" and changes" if line["changed"] else "")
    if "source" in line:
        commit += f" (code {line['source']})"
    return name, "passed" if line["passed"] else "**failed**", f"{line['seconds']:,}", line["date"], commit


def _section(line: Line) -> list[str]:
    text = [f"### {', '.join(_variant(line))}"] if _variant(line) else []
    counts = [(what, _number(number)) for what, number in line["counts"].items()]
    if counts:
        text.append(table(("what", "count"), counts))
    bounds = line["bounds"]
    measured = [
        (what, _number(x), _number(bounds[what]) if what in bounds else "") for what, x in line["measured"].items()
    ]
    if measured:
        text.append(table(("what", "measured", "at most"), measured))
    text += [f"{key.capitalize()}: {line[key]}." for key in ("modes", "seeds") if line.get(key)]
    text += [f"Not done here: {what}, because {why}." for what, why in line["skipped"].items()]
    text += [f"**Failed:** {what}." for what in line["failures"]]
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    return [*text, f"{line['date']}, {line['system']}, {versions}; {line['seconds']:,} s."]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table, Markdown; numbers stand to the right."""
    marks = (
        "---",
        *["---:" if name in _NUMBERS else "---" for name in head[1:]],
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:,.4g}" if abs(x) < 1000 else f"{x:,.0f}"
