"""Exact sums: of terms, of products, of segments (specification, section 3.2)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from smh.grid import ceil_log2, floor_power, flush, flush_if_needed, largest_magnitude, rounded
from smh.ops import Array, Ops


def wide(xp: Any, x: Array) -> Array:
    """Return ``x`` in the type in which terms are added: float64."""
    return xp.astype(x, xp.float64)


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
    return dot_with_flushed(ops, a, flush(ops.xp, c))


def dot_with_flushed(ops: Ops, a: Array, c: Array) -> Array:
    """Return the same where ``c`` is flushed already: nothing of the size of the vectors is made."""
    xp = ops.xp

    def products(a: Array, c: Array) -> Array:
        return wide(xp, flush_if_needed(ops, a)) * wide(xp, c)

    def largest(a: Array, c: Array) -> Array:
        return largest_magnitude(xp, products(a, c), 0)

    # In blocks, and twice: once for the exponent, once for the sum. Nothing of the size of the vectors is made.
    grid = sum_grid(xp, ops.fold_rows(largest, xp.maximum, (a, c)), a.shape[0])

    def total(a: Array, c: Array) -> Array:
        return xp.sum(to_integers(xp, products(a, c), grid))

    return rounded(xp, ops.fold_rows(total, operator.iadd, (a, c)) * grid.down)


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
