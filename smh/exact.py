"""Exact arithmetic: products and sums whose bits do not depend on order (specification, section 3).

Every operand is rounded to a grid, so coarse that all the sums that follow are integers up to 2**53 times one power of
two. Such sums are exact in float64, whatever their order, blocking, threads, fused multiply-adds or device; what is
left to agree on is one rounding at the end. The functions here and those of :mod:`smh.fast` have the same names and
arguments: pools call one module or the other, as the plan says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smh.grid import (
    CHUNK,
    ceil_log2,
    floor_power,
    flush,
    flush_fresh,
    grid_bits,
    largest_magnitude,
    line_shifters,
    rounded,
    to_grid,
)
from smh.ops import Array, Finish, Ops, Part


def wide(xp: Any, x: Array) -> Array:
    """Return ``x`` in the type in which terms are added: float64."""
    return xp.astype(x, xp.float64)


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


def multiply(ops: Ops, a: Array, b: Right, first: int, stop: int, finish: Finish | None = None) -> Array:
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

    Returns
    -------
    array, shape (p, stop - first), float32
    """
    if b.grid is not None:
        return _times_grid(ops, a, b.grid[:, first:stop], b.shifter[:, first:stop], finish)
    count = -(-2 * b.values.shape[0] * (stop - first) // ops.strip_elements)
    width = -(-(stop - first) // count)

    def strip(columns: slice, place: Array | None) -> Array:
        shifter = b.shifter[:, columns]
        return _times_grid(ops, a, to_grid(ops, b.values[:, columns], shifter), shifter, finish, place)

    strips = [slice(start, min(start + width, stop)) for start in range(first, stop, width)]
    return ops.join_columns([(s.stop - s.start, functools.partial(strip, s)) for s in strips], a)


def _times_grid(
    ops: Ops, a: Array, grid: Array, shifter: Array, finish: Finish | None, place: Array | None = None
) -> Array:
    """Return the product of float32 rows, in blocks, with columns that their shifters have brought to their grids."""
    xp = ops.xp
    terms, columns = grid.shape
    bits = grid_bits(terms)
    first, *others = _chunks(terms)
    fine = _has_fine_line(xp, shifter)

    def rows_times_grid(rows: Array) -> Array:
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
        return flush_fresh(ops, sums)
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
    xp = ops.xp
    terms, columns = b.shape
    bits = grid_bits(terms)
    own = line_shifters(xp, a, 0, bits)
    shifter = line_shifters(xp, b, 0, bits)
    grid = to_grid(ops, a, own)

    def rows_times_rows(left: Array, rows: Array) -> Array:
        return ops.transposed_matmul(left, to_grid(ops, rows, shifter))

    # Blocks with at least as many rows as the result has: adding to it then costs no more than making the block.
    width = min(columns, max(1, ops.product_elements // a.shape[1]))

    def sum_of(chunk: slice) -> Array:
        return ops.sum_rows(rows_times_rows, (grid, b), width, chunk.start, chunk.stop, ops.product_elements)

    first, *others = _chunks(terms)
    total = sum_of(first)
    for chunk in others:
        total += sum_of(chunk)
    fine = _has_fine_line(xp, own) | _has_fine_line(xp, shifter)
    return xp.astype(_flush_sums(ops, total, fine), xp.float32)


class SumGrid(NamedTuple):
    """The grid of an exact sum: terms times ``up`` are rounded to integers, and their sum times ``down`` is the result.

    ``down`` is NaN where a term is not finite.
    """

    up: Array
    down: Array


def sum_grid(xp: Any, magnitude: Array, terms: int) -> SumGrid:
    """Return the grid on which ``terms`` float64 values up to ``magnitude`` add without rounding.

    Parameters
    ----------
    xp : module
        The array-API namespace.
    magnitude : array, shape (), float64
        The largest absolute value: 0, or in ``[2**-240, 2**256)``, as products of two flushed float32 numbers are; NaN
        or infinite where a term is.
    terms : int
        K.

    Returns
    -------
    SumGrid
    """
    bits = 53 - ceil_log2(terms)
    power = floor_power(xp, magnitude)
    return SumGrid(2.0 ** (bits - 1) / power, xp.where(magnitude < xp.inf, power * 2.0 ** (1 - bits), xp.nan))


def to_integers(xp: Any, x: Array, grid: SumGrid) -> Array:
    """Round float64 terms, half to even, to the integers that their grid counts."""
    return xp.round(x * grid.up)


def exact_sum(ops: Ops, x: Array) -> Array:
    """Return the sum of float64 values, rounded to float32 (specification, section 3.2).

    Parameters
    ----------
    ops : Ops
        The namespace of ``x``.
    x : array, shape (K,), float64
        Each 0 or of magnitude in ``[2**-240, 2**256)``.

    Returns
    -------
    array, shape (), float32
        NaN if any value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.ops import Ops
    >>> float(exact_sum(Ops(np), np.asarray([1e16, 1.0, -1e16])))
    0.0
    """
    xp = ops.xp
    grid = sum_grid(xp, largest_magnitude(xp, x, 0), x.shape[0])
    return rounded(xp, xp.sum(to_integers(xp, x, grid)) * grid.down)


def dot(ops: Ops, a: Array, c: Array) -> Array:
    """Return the exact dot product of two float32 vectors (specification, section 3.2).

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    a, c : array, shape (K,), float32
        The vectors; they are flushed first.

    Returns
    -------
    array, shape (), float32
        NaN if any product is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.ops import Ops
    >>> a = np.asarray([3.0, 4.0], dtype=np.float32)
    >>> float(dot(Ops(np), a, a))
    25.0
    """
    return dot_of_flushed(ops, flush(ops.xp, a), flush(ops.xp, c))


def dot_of_flushed(ops: Ops, a: Array, c: Array) -> Array:
    """Return the exact dot product of two vectors that are flushed already; see :func:`dot`.

    In blocks, and twice: once for the exponent, once for the sum. Nothing of the size of the vectors is made.
    """
    xp = ops.xp

    def largest(a: Array, c: Array) -> Array:
        return largest_magnitude(xp, wide(xp, a) * wide(xp, c), 0)

    grid = sum_grid(xp, ops.fold(largest, xp.maximum, (a, c)), a.shape[0])

    def total(a: Array, c: Array) -> Array:
        return xp.sum(to_integers(xp, wide(xp, a) * wide(xp, c), grid))

    return rounded(xp, ops.fold(total, lambda x, y: x + y, (a, c)) * grid.down)


def segment_sum(ops: Ops, x: Array, segments: Array, size: int) -> Array:
    """Return the sums of the float32 values that share a segment number (specification, section 3.2).

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    x : array, shape (K,), float32
        Values; they are flushed first.
    segments : array, shape (K,), int64
        Segment numbers in ``[0, size)``.
    size : int
        How many segments.

    Returns
    -------
    array, shape (size,), float32
        All NaN if any value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.ops import Ops
    >>> x = np.asarray([1.0, 2.0, 4.0], dtype=np.float32)
    >>> segment_sum(Ops(np), x, np.asarray([1, 0, 1]), 3)
    array([2., 5., 0.], dtype=float32)
    """

    def pairs(values: Array, numbers: Array) -> tuple[Array, Array]:
        return values, numbers

    return segment_sums(ops, (flush(ops.xp, x), segments), pairs, size, x.shape[0])


def segment_sums(
    ops: Ops, xs: tuple[Array, ...], terms: Callable[..., tuple[Array, Array]], size: int, count: int
) -> Array:
    """Return exact segment sums of terms that are made block by block.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    xs : tuple of arrays, shape (rows, ...)
        The first holds the values, flushed float32, whose largest magnitude sets the grid.
    terms : callable
        From a block of rows of ``xs`` to its values and their segment numbers, both flat. It may change signs only.
    size : int
        How many segments.
    count : int
        K, the number of terms for the grid; ``xs[0]`` may hold zeros besides.

    Returns
    -------
    array, shape (size,), float32
    """
    xp = ops.xp
    values = xp.reshape(xs[0], (-1,))
    grid = sum_grid(xp, wide(xp, largest_magnitude(xp, values, 0)), count)
    width = values.shape[0] // xs[0].shape[0]

    def integers(*blocks: Array) -> tuple[Array, Array]:
        x, segments = terms(*blocks)
        return to_integers(xp, wide(xp, x), grid), segments

    return rounded(xp, ops.segment_sums(integers, xs, width, size) * grid.down)
