"""Exact arithmetic: products, and the sums of :mod:`smh.sums`, whose bits do not depend on order (specification, 3).

Every operand is rounded to a grid, so coarse that all the sums that follow are integers up to 2**53 times one power of
two. Such sums are exact in float64, whatever their order, blocking, threads, fused multiply-adds or device; what is
left to agree on is one rounding at the end. The functions here and those of :mod:`smh.fast` have the same names and
arguments: pools call one module or the other, as the plan says.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from smh import stripes
from smh.grid import (
    CHUNK,
    flush,
    flush_if_needed,
    flushed_times,
    grid_bits,
    largest_magnitude,
    line_shifters,
    rounded,
    shifter_of,
    to_grid,
)
from smh.ops import Array, Finish, Ops, Part
from smh.stripes import Stripe
from smh.sums import dot, dot_with_flushed, segment_sums, wide

__all__ = [
    "dot",
    "dot_with_flushed",
    "factor_gradients",
    "flush",
    "flush_if_needed",
    "flushed_times",
    "join",
    "map_own",
    "map_rows",
    "multiply",
    "product",
    "right",
    "rounded",
    "segment_sums",
    "transposed_product",
    "wide",
]


def map_rows(ops: Ops, fn: Callable[[Array], Array], x: Array, width: int, place: Array | None = None) -> Array:
    """Apply a row-wise function in blocks, as :meth:`smh.ops.Ops.map_rows` does."""
    return ops.map_rows(fn, x, width, place=place)


def map_own(ops: Ops, fn: Callable[[Array], Array], x: Array) -> Array:
    """Apply an elementwise function in blocks, as :meth:`smh.ops.Ops.map_own` does."""
    return ops.map_own(fn, x)


def join(ops: Ops, parts: Sequence[Part], like: Array) -> Array:
    """Concatenate vectors, as :meth:`smh.ops.Ops.join` does."""
    return ops.join(parts, like)


class Right(NamedTuple):
    """A right operand, and what of its work does not depend on the left one."""

    values: Array
    """The operand, shape (K, q), float32."""
    shifter: Array
    """What rounds each column to its grid, shape (1, q), float64."""
    grid: Array | None
    """All columns on their grids, float64, unless that would be large; then strips of them are made when needed."""


def right(ops: Ops, b: Array) -> Right:
    """Prepare the right operand of products.

    Parameters
    ----------
    ops : Ops
        The namespace of ``b``.
    b : array, shape (K, q), float32
        The right operand.

    Returns
    -------
    Right
        For :func:`multiply`.
    """
    shifter = line_shifters(ops.xp, b, 0, grid_bits(b.shape[0]))
    whole = b.shape[0] * b.shape[1] <= ops.strip_elements
    return Right(b, shifter, to_grid(ops, b, shifter) if whole else None)


def multiply(
    ops: Ops,
    a: Array,
    b: Right,
    first: int,
    stop: int,
    finish: Finish | None = None,
    made: Finish | None = None,
) -> Array:
    """Return columns of the exact product of ``a`` and a right operand made by :func:`right`.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    a : array, shape (p, K), float32
        The left operand: rows are independent of one another, so any of them may be left out.
    b : Right
        The prepared right operand.
    first, stop : int
        Which columns.
    finish : callable, optional
        What becomes of the entries, elementwise. It gets zeros of either sign, and has to return the same for both.
    made : callable, optional
        What becomes of ``a`` first, elementwise; see :class:`smh.stripes.Stripe`.

    Returns
    -------
    array, shape (p, stop - first), float32
    """
    if b.grid is not None:
        return _times_grid(ops, a, made, b.grid[:, first:stop], b.shifter[:, first:stop], finish)
    count = -(-2 * b.values.shape[0] * (stop - first) // ops.strip_elements)
    width = -(-(stop - first) // count)

    def strip(columns: slice, place: Array | None) -> Array:
        shifter = b.shifter[:, columns]
        return _times_grid(ops, a, made, to_grid(ops, b.values[:, columns], shifter), shifter, finish, place)

    strips = [slice(start, min(start + width, stop)) for start in range(first, stop, width)]
    return ops.join_columns([(s.stop - s.start, functools.partial(strip, s)) for s in strips], a)


def _times_grid(
    ops: Ops,
    a: Array,
    made: Finish | None,
    grid: Array,
    shifter: Array,
    finish: Finish | None,
    place: Array | None = None,
) -> Array:
    """Return the product of float32 rows, in blocks, with columns that their shifters have brought to their grids."""
    xp = ops.xp
    terms, columns = grid.shape
    bits = grid_bits(terms)
    first, *others = _chunks(terms)
    fine = _has_fine_line(xp, shifter)

    def rows_times_grid(rows: Array) -> Array:
        rows = rows if made is None else made(rows)
        own = line_shifters(xp, rows, 1, bits)
        left = to_grid(ops, rows, own)
        total = xp.matmul(left[:, first], grid[first, :])
        for chunk in others:
            total += xp.matmul(left[:, chunk], grid[chunk, :])
        return _flush_sums(ops, total, fine | _has_fine_line(xp, own), finish is not None)

    # Every block of rows reads the whole grid, which flat blocks would do too often.
    width = min(max(terms, columns), max(1, ops.product_elements // min(terms, ops.product_rows)))
    return ops.map_rows(rows_times_grid, a, width, ops.product_elements, place, finish)


def _has_fine_line(xp: Any, shifter: Array) -> Array:
    """Say whether the unit of any line is below 2**-60: only then can sums be other than 0 and yet below 2**-120."""
    return xp.any(shifter < 1.5 * 2.0 ** (52 - 60))


def _flush_sums(ops: Ops, sums: Array, fine: Array, any_zero: bool = False) -> Array:
    """Flush a fresh array of sums of products.

    Where neither grid has a fine line, only -0 has to become +0, and ``any_zero`` says that it need not.
    """
    if not ops.is_false(fine):
        return flush_if_needed(ops, sums)
    if not any_zero:
        sums += 0.0
    return sums


def _chunks(terms: int) -> list[slice]:
    """Return the terms whose sums are exact, in the order in which these are added."""
    return [slice(start, min(start + CHUNK, terms)) for start in range(0, terms, CHUNK)]


def product(ops: Ops, a: Array, b: Array) -> Array:
    """Return the exact product of two float32 matrices (specification, section 3.1).

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    a : array, shape (p, K), float32
        Left operand.
    b : array, shape (K, q), float32
        Right operand.

    Returns
    -------
    array, shape (p, q), float32
        The same bits for every order, blocking and device. A row of ``a`` or a column of ``b`` that holds NaN or an
        infinity gives a row or column of NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.ops import Ops
    >>> a = np.asarray([[1.0, 2.0]], dtype=np.float32)
    >>> product(Ops(np), a, a.T)
    array([[5.]], dtype=float32)
    """
    return multiply(ops, a, right(ops, b), 0, b.shape[1])


def transposed_product(ops: Ops, a: Array, b: Array) -> Array:
    """Return the exact product of the transpose of ``a`` with ``b``, in blocks of the rows of both.

    The same bits as ``product(ops, a.T, b)``; this form never holds ``b`` in float64 as a whole, which matters where
    ``b`` is the cotangent of all virtual weights.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    a : array, shape (K, p), float32
        Left operand, transposed.
    b : array, shape (K, q), float32
        Right operand.

    Returns
    -------
    array, shape (p, q), float32

    Examples
    --------
    >>> import numpy as np
    >>> from smh.ops import Ops
    >>> a = np.asarray([[1.0], [2.0]], dtype=np.float32)
    >>> transposed_product(Ops(np), a, a)
    array([[5.]], dtype=float32)
    """
    return _transposed_times(ops, a, [Stripe(b)])


def factor_gradients(ops: Ops, left: Array, b: Array, parts: Sequence[Stripe]) -> tuple[Array, Array]:
    """Return the gradients of both factors of ``left @ b``, given that of the product.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    left : array, shape (p, K), float32
        Left operand.
    b : array, shape (K, q), float32
        Right operand.
    parts : sequence of Stripe
        The cotangent of the product, shape (p, q).

    Returns
    -------
    tuple of array, shapes (p, K) and (K, q), float32
        The cotangent times the transpose of ``b``, and the transpose of ``left`` times the cotangent.
    """
    transposed = right(ops, ops.xp.matrix_transpose(b))

    def times_transposed(stripe: Stripe) -> Array:
        return multiply(ops, stripe.rows, transposed, 0, b.shape[0], made=stripe.made)

    of_left: list[Array] = []
    if ops.in_place:
        of_right = _transposed_times(ops, left, parts, lambda rows: of_left.append(times_transposed(Stripe(rows))))
    else:
        of_left += map(times_transposed, parts)
        of_right = _transposed_times(ops, left, parts)
    return of_left[0] if len(of_left) == 1 else ops.xp.concat(of_left, axis=0), of_right


def _transposed_times(ops: Ops, a: Array, parts: Sequence[Stripe], see: Callable[[Array], None] | None = None) -> Array:
    """Return the exact product of the transpose of ``a`` with the matrix of the parts, in blocks of rows.

    Where arrays are written into, blocks go over the bounds of parts, and ``see`` gets each of them in turn.
    """
    xp = ops.xp
    terms, columns = a.shape[0], parts[0].rows.shape[1]
    bits = grid_bits(terms)
    own = line_shifters(xp, a, 0, bits)
    magnitudes = [xp.abs(part.of(largest_magnitude(xp, part.rows, 0))) for part in parts]
    shifter = ops.settled(shifter_of(xp, functools.reduce(xp.maximum, magnitudes), bits))
    grid = to_grid(ops, a, own)
    # Blocks with at least as many rows as the result has: adding to it then costs no more than making the block.
    width = min(columns, max(1, ops.product_elements // a.shape[1]))

    def sum_of_parts(chunk: slice) -> Iterator[Array]:
        start = chunk.start
        for part in stripes.between(parts, chunk.start, chunk.stop):

            def rows_times_rows(left: Array, rows: Array, part: Stripe = part) -> Array:
                return ops.transposed_matmul(left, to_grid(ops, part.of(rows), shifter))

            stop = start + part.rows.shape[0]
            xs = grid[start:stop, :], part.rows
            yield ops.fold_rows(rows_times_rows, operator.iadd, xs, width, elements=ops.product_elements)
            start = stop

    def sum_of_blocks(chunk: slice) -> Iterator[Array]:
        start = chunk.start
        for left in ops.row_blocks(grid[chunk, :], width, ops.product_elements):
            stop = start + left.shape[0]
            flat = [Stripe(xp.reshape(x, (-1,)), made) for x, made in stripes.between(parts, start, stop)]
            rows = xp.reshape(stripes.join(ops, map_rows, flat, a), (-1, columns))
            if see is not None:
                see(rows)
            yield ops.transposed_matmul(left, to_grid(ops, rows, shifter))
            start = stop

    sums = sum_of_blocks if ops.in_place else sum_of_parts
    first, *others = (functools.reduce(operator.iadd, sums(chunk)) for chunk in _chunks(terms))
    total = functools.reduce(operator.iadd, others, first)
    fine = _has_fine_line(xp, own) | _has_fine_line(xp, shifter)
    return xp.astype(_flush_sums(ops, total, fine), xp.float32)
