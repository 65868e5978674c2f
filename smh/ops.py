"""The few operations that the core needs and the array API does not have.

The core is written on ``ops``: a namespace ``ops.xp`` of the Python array API, and the methods below. The defaults here
are themselves pure array API, so any conforming namespace gets a working :class:`Ops` for nothing; a backend overrides
those that its framework does better. None of them may change a bit of any result: the core calls them only where the
order and the blocking of the computation cannot be seen (specification, section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import array_api_compat

Array = Any
"""An array of the backend's own type."""


class Ops:
    """A namespace, and what the array API lacks.

    Parameters
    ----------
    xp : module
        An array-API namespace.
    """

    block_elements = 1 << 19
    """About how many elements a block of rows holds: temporaries stay in the cache, and memory stays bounded."""

    strip_elements = 1 << 21
    """About how many elements of a right operand are held in float64 at a time."""

    product_rows = 128
    """How many rows of a left operand go into one product, where there are as many terms and rows."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    @property
    def word_dtype(self) -> Any:
        """The type for hash words: uint32 where its arithmetic wraps, int64 where it has none."""
        return self.xp.uint32

    @property
    def fuses(self) -> bool:
        """Whether a compiler may put operations together that the core has written one after another."""
        return True

    def device(self, x: Array) -> Any:
        """Return the device on which arrays that meet ``x`` must be made, or None where the framework places them."""
        return array_api_compat.device(x)

    def is_false(self, flag: Array) -> bool:
        """Say whether a boolean scalar is *known* to be false, so that work that depends on it can be left out.

        Law: True only where the value is at hand and false. While a program is traced the answer is False.
        """
        return False

    def map_rows(self, fn: Callable[[Array], Array], x: Array, width: int) -> Array:
        """Concatenate ``fn`` over blocks of the rows of ``x``, as float32.

        Law: equal to ``astype(fn(x), float32)`` for every ``fn`` that treats rows independently.

        Parameters
        ----------
        fn : callable
            From ``(k, ...)`` to ``(k, ...)``, any floating dtype.
        x : array, shape (rows, ...)
            The input.
        width : int
            Elements of the result per row, from which the number of rows in a block follows.

        Returns
        -------
        array, shape (rows, ...), float32
        """
        xp = self.xp
        parts = [xp.astype(fn(block), xp.float32) for block in self._blocks(x, width)]
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)

    def map_own(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Apply an elementwise function to a float32 array that nothing else holds: it may be overwritten.

        Law: equal to ``fn(x)``.
        """
        return self.map_rows(fn, x, 1)

    def sum_rows(
        self, fn: Callable[..., Array], xs: tuple[Array, ...], width: int, start: int = 0, stop: int | None = None
    ) -> Array:
        """Add ``fn`` over blocks of the rows ``start`` to ``stop``, taken from all of ``xs`` together.

        Law: equal to ``fn(*(x[start:stop, ...] for x in xs))`` for every ``fn`` that is a sum over rows and exact, so
        that no order shows.

        Parameters
        ----------
        fn : callable
            From blocks ``(k, ...)`` to one array whose shape does not depend on k.
        xs : tuple of arrays, shape (rows, ...)
            Inputs with the same number of rows.
        width : int
            Elements that ``fn`` handles per row.
        start, stop : int
            Which rows, by default all; a part need not be cut out first.
        """
        total = None
        xs = tuple(x[start:stop, ...] for x in xs)
        for blocks in zip(*(self._blocks(x, width) for x in xs), strict=True):
            part = fn(*blocks)
            total = part if total is None else total + part
        return total

    def fold(self, fn: Callable[..., Array], combine: Callable[[Array, Array], Array], xs: tuple[Array, ...]) -> Array:
        """Reduce vectors of one length together, in blocks where that saves memory and time.

        Law: equal to ``fn(*xs)`` for every ``fn`` whose value for vectors is ``combine`` of its values for their parts.

        Parameters
        ----------
        fn : callable
            From vectors, or parts of them, to an array of rank 0.
        combine : callable
            From two of its values to one.
        xs : tuple of arrays, shape (k,)
            The vectors.
        """
        return fn(*xs)

    def transposed_matmul(self, a: Array, b: Array) -> Array:
        """Return the product of the transpose of ``a``, shape (K, p), with ``b``, shape (K, q)."""
        return self.xp.matmul(self.xp.matrix_transpose(a), b)

    def join_columns(self, parts: Iterable[Array], columns: int) -> Array:
        """Concatenate matrices along their columns; parts are made as they are asked for.

        Parameters
        ----------
        parts : iterable of arrays, shape (rows, k)
            At least one.
        columns : int
            How many columns they have together.

        Returns
        -------
        array, shape (rows, columns)
        """
        found = list(parts)
        return found[0] if len(found) == 1 else self.xp.concat(found, axis=1)

    def join(self, parts: Iterable[Array], size: int) -> Array:
        """Concatenate vectors; parts are made as they are asked for.

        Parameters
        ----------
        parts : iterable of arrays, shape (k,)
            At least one.
        size : int
            How many elements they have together.

        Returns
        -------
        array, shape (size,)
        """
        found = list(parts)
        return found[0] if len(found) == 1 else self.xp.concat(found)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add the elements of ``x`` that share a segment number.

        The values are integers whose absolute sum is at most 2**53, so every order gives the same float64. This default
        sorts by segment and subtracts running sums, which are integers below the same bound.

        Parameters
        ----------
        x : array, shape (K,), float64 or float32
            Integers; in float32 (fast arithmetic) any values, and the order may show.
        segments : array, shape (K,), int64
            Segment numbers in ``[0, size)``.
        size : int
            How many segments.

        Returns
        -------
        array, shape (size,), of the dtype of ``x``
        """
        xp = self.xp
        device = self.device(x)
        order = xp.argsort(segments)
        running = xp.cumulative_sum(xp.astype(xp.take(x, order), xp.float64), include_initial=True)
        bounds = xp.arange(size + 1, dtype=segments.dtype, device=device)
        ends = xp.searchsorted(xp.take(segments, order), bounds, side="left")
        at = xp.take(running, ends)
        return xp.astype(at[1:] - at[:-1], x.dtype)

    def sparing(self) -> Ops:
        """Return what does the same with less memory, for a pool that is read once."""
        return self

    def block_rows(self, rows: int, width: int) -> int:
        """Return how many rows a block has."""
        return max(1, min(rows, self.block_elements // max(1, width)))

    def _blocks(self, x: Array, width: int) -> list[Array]:
        rows = x.shape[0]
        step = self.block_rows(rows, width)
        return [x[start : min(start + step, rows), ...] for start in range(0, rows, step)]


class InPlaceOps(Ops):
    """What arrays allow that can be written into: blocks go straight to their place."""

    def sparing(self) -> Ops:
        """Return a copy that holds smaller strips of right operands."""
        other = copy.copy(self)
        other.strip_elements = self.block_elements // 2
        return other

    def map_rows(self, fn: Callable[[Array], Array], x: Array, width: int) -> Array:
        """Fill one float32 array block by block."""
        xp = self.xp
        out, start = None, 0
        for block in self._blocks(x, width):
            part = fn(block)
            if part.shape[0] == x.shape[0]:
                return xp.astype(part, xp.float32, copy=False)
            if out is None:
                out = xp.empty((x.shape[0], *part.shape[1:]), dtype=xp.float32, device=self.device(x))
            out[start : start + part.shape[0], ...] = part
            start += part.shape[0]
        return out

    def map_own(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Put every block back to where it was."""
        blocks = self._blocks(x, 1)
        if len(blocks) == 1:
            return fn(x)
        for block in blocks:
            block[...] = fn(block)
        return x

    def fold(self, fn: Callable[..., Array], combine: Callable[[Array, Array], Array], xs: tuple[Array, ...]) -> Array:
        """Reduce block by block."""
        found = None
        for blocks in zip(*(self._blocks(x, 1) for x in xs), strict=True):
            value = fn(*blocks)
            found = value if found is None else combine(found, value)
        return found

    def join(self, parts: Iterable[Array], size: int) -> Array:
        """Write one part after another into its place."""
        out, at = None, 0
        for part in parts:
            if part.shape[0] == size:
                return part
            if out is None:
                out = self.xp.empty((size,), dtype=part.dtype, device=self.device(part))
            out[at : at + part.shape[0]] = part
            at += part.shape[0]
            del part  # before the next one is made
        return out

    def join_columns(self, parts: Iterable[Array], columns: int) -> Array:
        """Write one part after another into its place."""
        out, at = None, 0
        for part in parts:
            if part.shape[1] == columns:
                return part
            if out is None:
                out = self.xp.empty((part.shape[0], columns), dtype=part.dtype, device=self.device(part))
            out[:, at : at + part.shape[1]] = part
            at += part.shape[1]
            del part  # before the next one is made
        return out
