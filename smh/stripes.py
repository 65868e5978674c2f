"""Arrays that lie in several, and are made where they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smh.ops import Array, Finish, Ops


class Stripe(NamedTuple):
    """Some rows of an array: ``made(rows)``, block by block where they are needed."""

    rows: Array
    """Shape (k, ...), float32."""
    made: Finish | None = None
    """What becomes of them, elementwise, if anything. It changes no argument, and is odd and monotone, up or down: so
    the largest magnitude comes from the largest."""

    def of(self, rows: Array) -> Array:
        """Return what becomes of some of the rows."""
        return rows if self.made is None else self.made(rows)


def between(parts: Sequence[Stripe], start: int, stop: int) -> list[Stripe]:
    """Return the parts of some rows, which are counted through all parts."""
    found, first = [], 0
    for rows, made in parts:
        after = first + rows.shape[0]
        low, high = max(start, first), min(stop, after)
        if low < high:
            found.append(Stripe(rows[low - first : high - first, ...], made))
        first = after
    return found


def join(ops: Ops, map_rows: Callable[..., Array], parts: Sequence[Stripe], like: Array) -> Array:
    """Return the vector whose parts these are, each made in its place.

    Parameters
    ----------
    ops : Ops
        The namespace of the parts.
    map_rows : callable
        That of :mod:`smh.exact` or :mod:`smh.fast`.
    parts : sequence of Stripe, rows of shape (k,)
        At least one.
    like : array
        One on the device of the parts.

    Returns
    -------
    array, shape (k,), float32
    """

    def make(part: Stripe, place: Array | None) -> Array:
        if part.made is None:
            return part.rows
        return map_rows(ops, part.made, part.rows, 1, place)

    return ops.join([(part.rows.shape[0], functools.partial(make, part)) for part in parts], like)
