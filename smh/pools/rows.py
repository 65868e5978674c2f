"""Rows of a matrix product that parts of its entries have for themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

from smh.ops import Array, Ops
from smh.stripes import Stripe

_JOINED = 1 << 20
"""About how many cotangents are joined for one product, where large ones are not: the cache still holds them."""


class OwnRows:
    """The rows of v that show each part: one that several parts share is there once for each.

    Parameters
    ----------
    ops : Ops
        The namespace of the indices.
    like : array, shape (n, ...)
        One on the device on which they are needed.
    parts : sequence of (int, int)
        First and last + 1 virtual weight of each, one part behind the other from 0 on.
    side : int
        Virtual weights in a row.

    Attributes
    ----------
    count : int
        How many rows.
    part, source : array, shape (count,), int64
        For each the number of its part, and of the row of v that it shows.
    """

    def __init__(self, ops: Ops, like: Array, parts: Sequence[tuple[int, int]], side: int) -> None:
        self._ops, self._like, self._parts, self._side = ops, like, parts, side
        starts, ahead = [], []
        self._copies, self._sources = [], []  # rows that were there before, and what they show
        self.count = last = 0
        for start, stop in parts:
            first = start // side
            if self.count and first == last:
                self._copies.append(self.count)
                self._sources.append(first)
            starts.append(self.count)
            ahead.append(self.count - first)
            last = (stop - 1) // side
            self.count += last + 1 - first
        self._shown = last + 1
        xp = ops.xp
        row = xp.arange(self.count, dtype=xp.int64, device=ops.device(like))
        self.part = xp.searchsorted(self._integers(starts), row, side="right") - 1
        self.source = row - xp.take(self._integers(ahead), self.part, axis=0)

    def stripes(self, cotangents: Sequence[Array], terms: int) -> Iterator[Stripe]:
        """Iterate over rows of cotangents, with zeros for the weights of other parts.

        Where that saves a copy, the rows that a large part fills are read where they are; all others are joined.

        Parameters
        ----------
        cotangents : sequence of array, float32
            For each part the vector of those of its weights.
        terms : int
            Rows that a stripe needs at least so that reading it takes longer than adding up what comes of it.

        Yields
        ------
        Stripe, rows of shape (k, side)
        """
        ops, xp, n = self._ops, self._ops.xp, self._side
        zeros = xp.zeros((n,), dtype=xp.float32, device=ops.device(self._like))
        joined: list[Array] = []
        elements = 0

        def close() -> Iterator[Stripe]:
            pieces = [piece for piece in joined if piece.shape[0]]
            joined.clear()
            if pieces:
                rows = pieces[0] if len(pieces) == 1 else xp.concat(pieces)
                yield Stripe(xp.reshape(rows, (-1, n)))

        for (start, stop), g in zip(self._parts, cotangents, strict=True):
            head, end = -start % n, stop - start - stop % n  # where the rows begin and end that the part fills
            if ops.views and end - head > max(terms, ops.product_rows) * n:
                joined += [zeros[: start % n], g[:head]]
                yield from close()
                yield Stripe(xp.reshape(g[head:end], (-1, n)))
                joined += [g[end:], zeros[: -stop % n]]
                elements = 0
            else:
                joined += [zeros[: start % n], g, zeros[: -stop % n]]
                elements += stop - start
            if ops.views and elements > _JOINED:
                yield from close()
                elements = 0
        yield from close()

    def add_up(self, arithmetic: ModuleType, x: Array) -> Array:
        """Return for each row of v the sum of what shows it.

        Parameters
        ----------
        arithmetic : module
            :mod:`smh.fast`.
        x : array, shape (count, m), float32
            A value for each row.

        Returns
        -------
        array, shape (n, m), float32
        """
        ops, xp, size = self._ops, self._ops.xp, x.shape[1]
        device, total = ops.device(self._like), x
        if self._copies:
            sources = self._integers(self._sources)
            row = xp.arange(self._shown, dtype=xp.int64, device=device)
            first = xp.take(x, row + xp.searchsorted(sources, row), axis=0)
            again = xp.take(x, self._integers(self._copies), axis=0)
            place = sources[:, None] * size + xp.arange(size, dtype=xp.int64, device=device)[None, :]
            flat = xp.reshape(again, (-1,)), xp.reshape(place, (-1,))
            added = arithmetic.segment_sums(ops, flat, lambda *xs: xs, self._shown * size, again.shape[0] * size)
            total = first + xp.reshape(added, (self._shown, size))
        missing = self._like.shape[0] - self._shown
        if not missing:
            return total
        return xp.concat([total, xp.zeros((missing, size), dtype=xp.float32, device=device)])

    def _integers(self, values: Sequence[int]) -> Array:
        xp = self._ops.xp
        return xp.asarray(values, dtype=xp.int64, device=self._ops.device(self._like))
