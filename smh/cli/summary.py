"""Many tensors in a few lines: tensors whose names differ only in numbers are shown as one group."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.text import Text

from smh.cli.output import Listing, marked
from smh.core.plan import Plan
from smh.models.compression import ModelTensor
from smh.tables import counted
from smh.text import shortened

T = TypeVar("T")

_MOST = 40  # groups that are shown
_LONGEST = 200  # characters of a name


def grouped(
    items: Iterable[T], name_of: Callable[[T], str], key: Callable[[T], object] = lambda item: None
) -> list[tuple[str, list[T]]]:
    """Return groups of items, in order, by their common name, in which ``*`` stands for numbers that differ.

    Items of one group also agree in ``key``.

    >>> [label for label, _ in grouped(["fc1.weight", "fc2.weight", "norm1.weight"], str)]
    ['fc*.weight', 'norm1.weight']
    """
    groups: dict[tuple[str, object], list[T]] = {}
    for item in items:
        groups.setdefault((re.sub(r"\d+", "*", name_of(item)), key(item)), []).append(item)
    return [(pattern if len(group) > 1 else name_of(group[0]), group) for (pattern, _), group in groups.items()]


def listed(
    listing: Listing, groups: Sequence[tuple[str, Sequence[T]]], cells: Callable[[Sequence[T]], Iterable[object]]
) -> str:
    """Add a row for each of the first groups, and return a line that counts the others, or nothing."""
    for label, members in groups[:_MOST]:
        listing.add(shortened(label, _LONGEST), *cells(members))
    return f"and {counted(len(groups) - _MOST, 'group')} more (--all shows all)" if len(groups) > _MOST else ""


def first_lines(lines: Sequence[str], every: bool) -> Iterator[Text]:
    """Iterate over the first lines, and one that says how many more there are, or over all."""
    most = len(lines) if every else _MOST
    yield from map(marked, lines[:most])
    if len(lines) > most:
        yield marked(f"and {counted(len(lines) - most, 'line')} more (--all shows all)")


def shape_of(shapes: Iterable[Sequence[int]]) -> str:
    """Return the shape of some tensors in words, or that they differ."""
    distinct = {tuple(shape) for shape in shapes}
    return "various" if len(distinct) > 1 else "x".join(map(str, distinct.pop())) or "scalar"


def generated_lines(plan: Plan, every: bool) -> Iterator[Listing | str]:
    """Iterate over lines on the generated tensors of a plan, by groups or one by one."""
    if every:
        listing = Listing("generated", "shape", "weights", "scale", "modifiers", "view")
        for tensor in plan.tensors:
            scale = tensor.scale if isinstance(tensor.scale, str) else f"{tensor.scale:.4g}"
            fixed = "" if tensor.learn_scale else " (fixed)"
            view = shortened(str(tensor.view), _LONGEST) if tensor.view else ""
            name = shortened(tensor.name, _LONGEST)
            cells = (name, shape_of([tensor.shape]), tensor.size, scale + fixed, " ".join(tensor.modifiers), view)
            listing.add(*cells)
        yield listing
    else:
        listing = Listing("generated", "tensors", "shape", "weights")
        groups = grouped(plan.tensors, lambda tensor: tensor.name)
        more = listed(listing, groups, lambda x: (len(x), shape_of(t.shape for t in x), sum(t.size for t in x)))
        yield listing
        yield from [more] if more else []
    yield ""


def plan_lines(plan: Plan) -> Iterator[str]:
    """Iterate over lines on a plan as a whole."""
    count = counted(len(plan.tensors), "tensor")
    variables = f"{plan.num_variables:,} variables (pool ratio {plan.ratio:.4g})"
    yield f"{plan.num_weights:,} weights in {count}, from {variables}"
    yield f"pool {shortened(repr(plan.pool), _LONGEST)}, layout {plan.layout}, seed {plan.seed}"


def kept_lines(tensors: Sequence[ModelTensor], kept: Mapping[str, str], every: bool) -> Iterator[Listing | str]:
    """Iterate over the kept tensors, of which ``kept`` has the reasons: by reason, or tensor by tensor."""
    if not kept:
        return
    rows = [tensor for tensor in tensors if tensor.name in kept]
    if every:
        listing = Listing("kept", "shape", "bytes", "why")
        for tensor in rows:
            name = shortened(tensor.name, _LONGEST)
            listing.add(name, shape_of([tensor.shape]), tensor.nbytes, kept[tensor.name])
        yield listing
    else:
        reasons: dict[str, list[ModelTensor]] = {}
        for tensor in rows:
            reasons.setdefault(kept[tensor.name], []).append(tensor)
        listing = Listing("kept", "tensors", "numbers", "bytes")
        labels = [(f"{why}, such as {x[0].name}", x) for why, x in reasons.items()]
        more = listed(listing, labels, lambda x: (len(x), sum(math.prod(t.shape) for t in x), sum(t.nbytes for t in x)))
        yield listing
        yield from [more] if more else []
    yield ""


def entry_lines(title: str, entries: Sequence[dict[str, Any]], every: bool) -> Iterator[Listing | str]:
    """Iterate over the tensors in a file, given as ``smh inspect --json`` prints them."""
    if not entries:
        return
    listing = Listing(title, *[] if every else ["tensors"], "dtype", "shape", "numbers", "bytes")

    def cells(x: Sequence[dict[str, Any]]) -> Iterator[object]:
        yield from [] if every else [len(x)]
        yield from (x[0]["dtype"], shape_of(entry["shape"] for entry in x))
        yield from (sum(entry[key] for entry in x) for key in ("numbers", "bytes"))

    if every:
        for entry in entries:
            listing.add(shortened(entry["name"], _LONGEST), *cells([entry]))
    groups = [] if every else grouped(entries, lambda entry: entry["name"], lambda entry: entry["dtype"])
    more = listed(listing, groups, cells)
    yield listing
    yield from [more] if more else []
    yield ""


def variable_lines(entries: Sequence[dict[str, Any]], every: bool) -> Iterator[Listing | str]:
    """Iterate over the variables in a checkpoint, given as ``smh inspect --json`` prints them; scales are one group."""
    listing = Listing("variables", "dtype", "shape", "bytes", "bits", "exponent", "rms")
    scales = [entry for entry in entries if "bits" not in entry]
    for entry in entries if every or len(scales) == 1 else (entry for entry in entries if "bits" in entry):
        exponent = entry.get("exponent", "")
        listing.add(
            shortened(entry["name"], _LONGEST),
            entry["dtype"],
            shape_of([entry["shape"]]),
            entry["bytes"],
            str(entry.get("bits", "")),
            "all 0" if exponent is None else str(exponent),
            "not finite" if entry["rms"] is None else f"{entry['rms']:.4g}",
        )
    if len(scales) > 1 and not every:
        listing.add(counted(len(scales), "scale"), "F32", "scalar", sum(x["bytes"] for x in scales), "", "", "")
    yield listing
    yield ""
