"""Views: einops-style patterns that permute, merge, split and reorder axes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformance.v2.oracle.bits import F32


def groups(side: str) -> list[list[str]]:
    """Axes of one side of a pattern, each a list of names; `1` and `()` have none (section 9)."""
    found: list[list[str]] = []
    open_group: list[str] | None = None
    for token in re.findall(r"[()]|[^\s()]+", side):
        if token == "(":
            open_group = []
        elif token == ")":
            assert open_group is not None
            found.append(open_group)
            open_group = None
        else:
            names = [] if token == "1" else [token]
            if open_group is None:
                found.append(names)
            else:
                open_group += names
    return found


def resolve(view: Mapping[str, Any], shape: Sequence[int]) -> tuple[dict[str, int], list[list[str]]]:
    """Sizes of the names on the left, in order, and the groups on the right (section 9).

    Raises
    ------
    ValueError
        If the pattern does not fit the shape.
    """
    left, right = (groups(side) for side in view["pattern"].split("->"))
    if len(left) != len(shape):
        raise ValueError(f"{view['pattern']!r} has {len(left)} axes for the shape {tuple(shape)}")
    known: dict[str, int] = {}
    for names, size in zip(left, shape, strict=True):
        given = {name: int(view["sizes"][name]) for name in names if name in view["sizes"]}
        unknown = [name for name in names if name not in given]
        rest = size // math.prod(given.values())
        known |= {name: given.get(name, rest) for name in names}
        if len(unknown) > 1 or math.prod(known[name] for name in names) != size:
            raise ValueError(f"{view['pattern']!r} does not split {size} into {names}")
    if sorted(known) != sorted(name for group in right for name in group):
        raise ValueError(f"{view['pattern']!r} has different names on its two sides")
    return known, right


def viewed_shape(view: Mapping[str, Any] | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape after the view (section 9)."""
    if view is None:
        return tuple(shape)
    known, right = resolve(view, shape)
    return tuple(math.prod(known[name] for name in group) for group in right)


def apply(view: Mapping[str, Any] | None, x: F32) -> F32:
    """View of an array of canonical shape (section 9)."""
    if view is None:
        return x
    known, right = resolve(view, x.shape)
    names = list(known)
    split = x.reshape(list(known.values()))
    for name, places in view.get("order", {}).items():
        split = np.take(split, places, axis=names.index(name))
    axes = [names.index(name) for group in right for name in group]
    return split.transpose(axes).reshape(viewed_shape(view, x.shape))


def undo(view: Mapping[str, Any] | None, x: F32, shape: Sequence[int]) -> F32:
    """Array of canonical shape from one of viewed shape: the gradient of `apply` (section 9)."""
    if view is None:
        return x.reshape(tuple(shape))
    known, right = resolve(view, shape)
    names = [name for group in right for name in group]
    axes = [names.index(name) for name in known]
    split = x.reshape([known[name] for name in names])
    for name, places in view.get("order", {}).items():
        split = np.take(split, [places.index(k) for k in range(known[name])], axis=names.index(name))
    return split.transpose(axes).reshape(tuple(shape))
