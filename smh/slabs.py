"""Views of tensors too large for memory: read from a file in canonical order, in slabs of the viewed one.

A view permutes axes, so what comes first in the viewed tensor may lie anywhere in the canonical one. A slab of the
viewed tensor is a box: some places along each axis. Boxes are read through windows of a bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from smh.views import View

Places = Sequence[int]
"""Places along an axis: a range of step 1, or a list where a view gives them another order."""


def viewed_slabs(view: View, shape: tuple[int, ...], file: IO[bytes], most: int) -> Iterator[np.ndarray]:
    """Iterate over a viewed tensor in its order.

    Parameters
    ----------
    view : View
        From the canonical shape.
    shape : tuple of int
        The canonical shape.
    file : file object
        Holds the canonical tensor, little-endian float32, and nothing else; flushed.
    most : int
        How many elements a slab, and a window of the file, has.

    Yields
    ------
    numpy.ndarray
        The next elements of the viewed tensor, one after another, with as many axes as its view names.
    """
    before, groups = view.sides()
    sizes = view.axis_sizes(shape)
    order = dict(view.order)
    after = [axis for group in groups for axis in group]
    for box in _boxes([sizes[axis] for axis in after], most):
        places: dict[str, Places] = {
            axis: [order[axis][k] for k in chosen] if axis in order else chosen
            for axis, chosen in zip(after, box, strict=True)
        }
        slab = np.empty([len(places[axis]) for axis in before], dtype="<f4")
        _fill(slab, file, 0, [sizes[axis] for axis in before], [places[axis] for axis in before], most)
        yield np.ascontiguousarray(np.permute_dims(slab, [before.index(axis) for axis in after]))


def _boxes(sizes: Sequence[int], most: int) -> Iterator[list[range]]:
    """Cut an array into boxes of at most ``most`` elements that follow one another in its row-major order."""
    inner = math.prod(sizes[1:])
    if inner <= most:
        step = most // inner
        for start in range(0, sizes[0], step):
            yield [range(start, min(start + step, sizes[0])), *map(range, sizes[1:])]
        return
    for k in range(sizes[0]):
        for rest in _boxes(sizes[1:], most):
            yield [range(k, k + 1), *rest]


def _fill(
    out: np.ndarray, file: IO[bytes], origin: int, sizes: Sequence[int], places: Sequence[Places], most: int
) -> None:
    """Fill ``out`` with the elements at some places along each axis of an array that begins at ``origin``."""
    first, *others = places
    inner = math.prod(sizes[1:])
    low, high = min(first), max(first) + 1
    if (high - low) * inner <= most:
        # A mapping reads the pages that are touched, and gives them back when it is closed.
        window = np.memmap(file, "<f4", "r", 4 * (origin + low * inner), (high - low, *sizes[1:]))
        out[...] = window[
            _index([range(high - low) if isinstance(first, range) else [p - low for p in first], *others])
        ]
    elif inner <= most:
        step = most // inner if isinstance(first, range) else 1
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            _fill(out[part], file, origin, sizes, [first[part], *others], most)
    else:
        for k, place in enumerate(first):
            _fill(out[k], file, origin + place * inner, sizes[1:], others, most)


def _index(places: Sequence[Places]) -> Any:
    """Return what NumPy indexes an array with for some places along each axis."""
    if all(isinstance(axis, range) for axis in places):
        return tuple(slice(axis[0], axis[-1] + 1) for axis in places)
    return np.ix_(*places)
