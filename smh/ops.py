"""The few operations that the core needs and the array API does not have.

The core is written on ``ops``: a namespace ``ops.xp`` of the Python array API, and the methods below. The defaults here
are themselves pure array API, so any conforming namespace gets a working :class:`Ops` for nothing; a backend overrides
those that its framework does better. None of them may change a bit of any result: the core calls them only where the
order and the blocking of the computation cannot be seen (specification, section 3).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat

Array = Any
"""An array of the backend's own type."""
Finish = Callable[[Array], Array]
"""What becomes of results, elementwise, block by block as they are made; it may overwrite what it gets."""
Part = tuple[int, Callable[[Array | None], Array]]
"""The length of a vector, and what makes it, given the place where it may be put."""


class Ops:
    """A namespace, and what the array API lacks.

    Parameters
    ----------
    xp : module
        An array-API namespace.
    """

    block_elements = 1 << 19
    """About how many elements a block of rows holds: temporaries stay in the cache, and memory stays bounded."""

    product_elements = 1 << 19
    """The same for blocks that matrix products read or make, which are slow where they are small."""

    strip_elements = 1 << 21
    """About how many elements of a right operand are held in float64 at a time; half of them where that is not all."""

    together = 1 << 20
    """How many weights of small tensors are built at once."""

    apart = True
    """Whether each small tensor gets memory of its own: most frameworks have other kernels for what begins anywhere."""

    views = False
    """Whether a part of an array is read where it is, or copied before."""

    in_place = False
    """Whether arrays are written into: then a framework cannot differentiate what was done."""

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

    def none_below(self, x: Array, bound: Array | float) -> bool:
        """Say whether it is *known* that no magnitude is below a bound, so that a flush can be left out.

        Law: True only where the values are at hand and none is below; NaN is not.
        """
        return self.is_false(self.xp.any(self.xp.abs(x) < bound))

    def settled(self, x: Array) -> Array:
        """Return ``x``, of few elements that many others meet: a compiler must not compute one for each of these.

        Law: equal to ``x``, which is float64.
        """
        return x

    def map_rows(
        self,
        fn: Callable[[Array], Array],
        x: Array,
        width: int,
        elements: int | None = None,
        place: Array | None = None,
        finish: Finish | None = None,
    ) -> Array:
        """Concatenate ``fn`` over blocks of the rows of ``x``, as float32.

        Law: equal to ``finish(astype(fn(x), float32))`` for every ``fn`` that treats rows independently.

        Parameters
        ----------
        fn : callable
            From ``(k, ...)`` to ``(k, ...)``, any floating dtype.
        x : array, shape (rows, ...)
            The input.
        width : int
            Elements of the result per row, from which the number of rows in a block follows.
        elements : int, optional
            About how many elements a block holds; ``block_elements`` by default.
        place : array, optional
            Where the result may go, from :meth:`join`.
        finish : callable, optional
            What becomes of each block.

        Returns
        -------
        array, shape (rows, ...), float32
        """
        parts = [self._result(fn, block, finish) for block in self.row_blocks(x, width, elements)]
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=0)

    def _result(self, fn: Callable[[Array], Array], block: Array, finish: Finish | None) -> Array:
        """Return what ``fn`` makes of a block, in float32 and finished."""
        found = self.xp.astype(fn(block), self.xp.float32)
        return found if finish is None else finish(found)

    def map_own(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Apply an elementwise function to a float32 array that nothing else holds: it may be overwritten.

        Law: equal to ``fn(x)``.
        """
        return self.map_rows(fn, x, 1)

    def own(self, x: Array) -> Array:
        """Return ``x`` for somebody who may overwrite it while others need it: a copy where arrays are written into."""
        return x

    def fold_rows(
        self,
        fn: Callable[..., Array],
        combine: Callable[[Array, Array], Array],
        xs: tuple[Array, ...],
        width: int = 1,
        elements: int | None = None,
    ) -> Array:
        """Reduce blocks of rows, taken from all of ``xs`` together.

        Law: equal to ``fn(*xs)`` for every ``fn`` whose value for rows is ``combine`` of
        its values for some of them and for the others, whichever these are: for sums that are exact, and for maxima.

        Parameters
        ----------
        fn : callable
            From blocks ``(k, ...)`` to one array whose shape does not depend on k; it may be overwritten.
        combine : callable
            From two such arrays to one. It may overwrite the first, as ``operator.iadd`` does.
        xs : tuple of arrays, shape (rows, ...)
            Inputs with the same number of rows.
        width : int
            Elements that ``fn`` handles per row.
        elements : int, optional
            About how many elements a block holds; ``block_elements`` by default.
        """
        total = None
        for blocks in zip(*(self.row_blocks(x, width, elements) for x in xs), strict=True):
            part = fn(*blocks)
            total = part if total is None else combine(total, part)
        return total

    def transposed_matmul(self, a: Array, b: Array) -> Array:
        """Return the product of the transpose of ``a``, shape (K, p), with ``b``, shape (K, q)."""
        return self.xp.matmul(self.xp.matrix_transpose(a), b)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """Return ``total + a @ b``; the first may be overwritten."""
        return total + self.xp.matmul(a, b)

    def join_columns(self, parts: Sequence[Part], like: Array) -> Array:
        """Concatenate float32 matrices along their columns, each made when it is its turn.

        Parameters
        ----------
        parts : sequence of (int, callable)
            At least one: how many columns a matrix has, and what makes it, as for :meth:`join`.
        like : array, shape (rows, ...)
            One on the device of the matrices, with as many rows.

        Returns
        -------
        array, shape (rows, k), float32
        """
        found = [make(None) for _, make in parts]
        return found[0] if len(found) == 1 else self.xp.concat(found, axis=1)

    def join(self, parts: Sequence[Part], like: Array) -> Array:
        """Concatenate float32 vectors, each made when it is its turn.

        Parameters
        ----------
        parts : sequence of (int, callable)
            At least one: how long a vector is, and what makes it. The callable gets the place where the vector may be
            put, an array of its shape, or None; what it returns may be that or another array.
        like : array
            One on the device of the vectors.

        Returns
        -------
        array, shape (k,), float32
        """
        found = [make(None) for _, make in parts]
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

    def segment_sums(
        self, fn: Callable[..., tuple[Array, Array]], xs: tuple[Array, ...], width: int, size: int
    ) -> Array:
        """Add, over blocks of rows, the values that ``fn`` gives by the segment numbers that it gives with them.

        Law: equal to :meth:`segment_sum` of ``fn(*xs)``.

        Parameters
        ----------
        fn : callable
            From blocks ``(k, ...)`` to the first two arguments of :meth:`segment_sum`.
        xs : tuple of arrays, shape (rows, ...)
            Inputs with the same number of rows.
        width : int
            Elements that ``fn`` handles per row.
        size : int
            How many segments.

        Returns
        -------
        array, shape (size,), of the dtype of the values
        """
        return self.fold_rows(lambda *blocks: self.segment_sum(*fn(*blocks), size), operator.iadd, xs, width)

    def sparing(self) -> Ops:
        """Return what does the same with less memory, for a pool that is read once."""
        return self

    def block_rows(self, rows: int, width: int, elements: int | None = None) -> int:
        """Return how many rows a block has: all have as many, but for what does not divide."""
        most = max(1, (elements or self.block_elements) // max(1, width))
        return -(-rows // -(-rows // most)) if rows else 1

    def row_blocks(self, x: Array, width: int, elements: int | None = None) -> list[Array]:
        """Return an array in blocks of rows, of which all but the last have as many as :meth:`block_rows` says."""
        rows = x.shape[0]
        step = self.block_rows(rows, width, elements)
        return [x[start : min(start + step, rows), ...] for start in range(0, rows, step)]


class InPlaceOps(Ops):
    """What arrays allow that can be written into: blocks go straight to their place."""

    in_place = True
    views = True
    block_elements = 1 << 16
    """So few that all temporaries of a block stay in a core's own cache, and memory is not new for each of them."""

    def sparing(self) -> Ops:
        """Return a copy that holds smaller strips of right operands, and smaller products."""
        other = copy.copy(self)
        other.strip_elements, other.product_elements = self.product_elements // 2, self.product_elements // 4
        return other

    def map_rows(
        self,
        fn: Callable[[Array], Array],
        x: Array,
        width: int,
        elements: int | None = None,
        place: Array | None = None,
        finish: Finish | None = None,
    ) -> Array:
        """Fill one float32 array block by block; what finishes them gets smaller ones, which stay in the cache."""
        xp = self.xp
        out, start = place, 0
        for block in self.row_blocks(x, width, elements):
            part = fn(block)
            if part.shape[0] == x.shape[0]:
                part = xp.astype(part, xp.float32, copy=False)
                return part if finish is None else xp.reshape(self.map_own(finish, xp.reshape(part, (-1,))), part.shape)
            if out is None:
                out = xp.empty((x.shape[0], *part.shape[1:]), dtype=xp.float32, device=self.device(x))
            here = out[start : start + part.shape[0], ...]
            here[...] = part
            if finish is not None:
                for few in self.row_blocks(here, math.prod(here.shape[1:])):
                    few[...] = finish(few)
            start += part.shape[0]
            del part  # before the next one is made
        return out

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """Add in place."""
        if not self.in_place:
            return super().add_product(total, a, b)
        total += self.xp.matmul(a, b)
        return total

    def map_own(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Put every block back to where it was."""
        blocks = self.row_blocks(x, 1)
        if len(blocks) == 1:
            return fn(x)
        for block in blocks:
            block[...] = fn(block)
        return x

    def own(self, x: Array) -> Array:
        """Return a copy, unless nothing is overwritten here."""
        return self.xp.asarray(x, copy=True) if self.in_place else x

    def segment_sums(
        self, fn: Callable[..., tuple[Array, Array]], xs: tuple[Array, ...], width: int, size: int
    ) -> Array:
        """Add block after block to one total."""
        total = None
        for blocks in zip(*(self.row_blocks(x, width) for x in xs), strict=True):
            x, segments = fn(*blocks)
            if total is None:
                total = self.xp.zeros((size,), dtype=x.dtype, device=self.device(x))
            total = self.add_segments(total, x, segments)
        return total

    def add_segments(self, total: Array, x: Array, segments: Array) -> Array:
        """Add to a total, which may be overwritten, the elements of ``x`` by their segment numbers."""
        return total + self.segment_sum(x, segments, total.shape[0])

    def join(self, parts: Sequence[Part], like: Array) -> Array:
        """Make each part in its place, or copy it there."""
        return self._joined(parts, like, ())

    def join_columns(self, parts: Sequence[Part], like: Array) -> Array:
        """Make each part in its place, or copy it there."""
        return self._joined(parts, like, (like.shape[0],))

    def _joined(self, parts: Sequence[Part], like: Array, before: tuple[int, ...]) -> Array:
        """Join along the last axis, of which each part has its own length."""
        if len(parts) == 1:
            return parts[0][1](None)
        shape = (*before, sum(size for size, _ in parts))
        out = self.xp.empty(shape, dtype=self.xp.float32, device=self.device(like))
        at = 0
        for size, make in parts:
            place = out[..., at : at + size]
            made = make(place)
            if made is not place:
                place[...] = made
            del made  # before the next one is made
            at += size
        return out
