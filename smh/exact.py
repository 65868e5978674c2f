"""Exact arithmetic: products and sums whose bits do not depend on order (specification, section 3).

Every operand is rounded to a grid, so coarse that all the sums that follow are integers up to 2**53 times one power of
two. Such sums are exact in float64, whatever their order, blocking, threads, fused multiply-adds or device; what is
left to agree on is one rounding at the end. The functions here and those of :mod:`smh.fast` have the same names and
arguments: pools call one module or the other, as the plan says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from smh.ops import Array, Ops

CHUNK = 2048
"""Terms of a product that are added exactly; longer sums add one rounded float64 per chunk, in ascending order."""
TINY = 2.0**-120
"""Magnitudes below this are flushed to +0."""
_LARGEST = float(2**128 - 2**104)  # the largest finite float32
_LOWEST = -240  # the product of two numbers that survive the flush is at least 2**-240


def flush(xp: Any, x: Array) -> Array:
    """Replace every element below 2**-120 in magnitude by +0 (rule 1).

    Parameters
    ----------
    xp : module
        The array-API namespace of ``x``.
    x : array, floating
        Any shape. NaN stays NaN.

    Returns
    -------
    array
        Same shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> flush(np, np.asarray([1.0, -0.0, 1e-40], dtype=np.float32))
    array([1., 0., 0.], dtype=float32)
    """
    return xp.where(xp.abs(x) < TINY, 0.0, x)


def rounded(xp: Any, x: Array) -> Array:
    """Round float64 to float32 once: below 2**-120 to +0, else to nearest even (rule 7).

    Parameters
    ----------
    xp : module
        The array-API namespace of ``x``.
    x : array, float64
        Any shape.

    Returns
    -------
    array, float32
        Magnitudes from the middle between the largest float32 and 2**128 on are infinite; -0 becomes +0.

    Examples
    --------
    >>> import numpy as np
    >>> rounded(np, np.asarray([1.0 + 2.0**-25, -0.0, 2.0**-121]))
    array([1., 0., 0.], dtype=float32)
    """
    return xp.astype(flush(xp, x), xp.float32)


def wide(xp: Any, x: Array) -> Array:
    """Return ``x`` in the type in which terms are added: float64."""
    return xp.astype(x, xp.float64)


def map_rows(ops: Ops, fn: Callable[[Array], Array], x: Array, width: int) -> Array:
    """Apply a row-wise function in blocks, as :meth:`smh.ops.Ops.map_rows` does."""
    return ops.map_rows(fn, x, width)


def grid_bits(terms: int) -> int:
    """Return b, the bits that each operand of a product keeps: ``min(24, (53 - ceil(log2 K')) // 2)`` (rule 2).

    Parameters
    ----------
    terms : int
        K, the length of the sums.

    Returns
    -------
    int
        From 21 to 24.

    Examples
    --------
    >>> [grid_bits(k) for k in (1, 32, 33, 512, 513, 10**6)]
    [24, 24, 23, 22, 21, 21]
    """
    return min(24, (53 - _ceil_log2(min(terms, CHUNK))) // 2)


def on_grid(ops: Ops, x: Array, axis: int, bits: int) -> Array:
    """Round every line along ``axis`` to multiples of ``2**(e - bits)``, 2**e just above its maximum (rules 1-4, 6).

    Parameters
    ----------
    ops : Ops
        The namespace of ``x``.
    x : array, shape (p, q), float32
        The operand.
    axis : int
        The axis of the sum: lines along it share an exponent.
    bits : int
        b.

    Returns
    -------
    array, shape (p, q), float64
        A line that holds NaN or an infinity is all NaN.
    """
    return _to_grid(ops, x, _shifter(ops.xp, _largest_magnitude(ops.xp, x, axis), bits), bits)


def right(ops: Ops, b: Array) -> Array:
    """Prepare the right operand of products: do once what does not depend on the left one.

    Parameters
    ----------
    ops : Ops
        The namespace of ``b``.
    b : array, shape (K, q), float32
        The right operand.

    Returns
    -------
    array, shape (K, q), float64
        Columns on their grids, for :func:`multiply`.
    """
    return on_grid(ops, b, 0, grid_bits(b.shape[0]))


def multiply(ops: Ops, a: Array, b: Array) -> Array:
    """Return the exact product of ``a`` and a right operand made by :func:`right`.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    a : array, shape (p, K), float32
        The left operand: rows are independent of one another, so any of them may be left out.
    b : array, shape (K, q), float64
        The prepared right operand: any of its columns may be left out.

    Returns
    -------
    array, shape (p, q), float32
    """
    xp = ops.xp
    terms, columns = b.shape
    bits = grid_bits(terms)

    def rows_times_b(rows: Array) -> Array:
        grid = on_grid(ops, rows, 1, bits)
        total = None
        for start in range(0, terms, CHUNK):
            stop = min(start + CHUNK, terms)
            part = xp.matmul(grid[:, start:stop], b[start:stop, :])
            total = part if total is None else total + part
        return flush(xp, total)

    return ops.map_rows(rows_times_b, a, max(terms, columns))


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
    return multiply(ops, a, right(ops, b))


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
    grid = on_grid(ops, a, 0, bits)
    shifter = _shifter(xp, _largest_magnitude(xp, b, 0), bits)

    def rows_times_rows(left: Array, rows: Array) -> Array:
        return xp.matmul(xp.matrix_transpose(left), _to_grid(ops, rows, shifter, bits))

    total = None
    for start in range(0, terms, CHUNK):
        stop = min(start + CHUNK, terms)
        part = ops.sum_rows(rows_times_rows, (grid[start:stop, :], b[start:stop, :]), columns)
        total = part if total is None else total + part
    return rounded(xp, total)


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
    bits = 53 - _ceil_log2(terms)
    power = _floor_power(xp, magnitude)
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
    grid = sum_grid(xp, _largest_magnitude(xp, x, 0), x.shape[0])
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
    xp = ops.xp
    return exact_sum(ops, wide(xp, flush(xp, a)) * wide(xp, flush(xp, c)))


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
    grid = sum_grid(xp, wide(xp, _largest_magnitude(xp, values, 0)), count)
    width = values.shape[0] // xs[0].shape[0]

    def block_sums(*blocks: Array) -> Array:
        x, segments = terms(*blocks)
        return ops.segment_sum(to_integers(xp, wide(xp, x), grid), segments, size)

    return rounded(xp, ops.sum_rows(block_sums, xs, width) * grid.down)


def _ceil_log2(k: int) -> int:
    return (k - 1).bit_length()


def _largest_magnitude(xp: Any, x: Array, axis: int) -> Array:
    # Two reductions and no temporary as large as x. Both propagate NaN.
    return xp.maximum(xp.max(x, axis=axis, keepdims=x.ndim > 1), -xp.min(x, axis=axis, keepdims=x.ndim > 1))


def _floor_power(xp: Any, magnitude: Array) -> Array:
    """Return the largest power of two that is not above ``magnitude``; 2**-240 where there is none in range."""
    power = xp.full_like(magnitude, 2.0**_LOWEST)
    for step in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        higher = power * 2.0**step
        power = xp.where(magnitude >= higher, higher, power)
    return power


def _shifter(xp: Any, magnitude: Array, bits: int) -> Array:
    """Return 1.5 * 2**(52 + e - bits) for every line: adding and subtracting it rounds to multiples of 2**(e - bits).

    Within a factor 2 above 2**(52 + e - bits) a float64 has just that unit in the last place, and the addition rounds
    half to even; a magnitude below 2**e cannot leave that range. A line without a number above the flush threshold
    gets e = 1, which rounds all of it to +0; one that holds NaN or an infinity gets NaN.
    """
    magnitude = xp.astype(magnitude, xp.float64)
    power = xp.where(magnitude < TINY, 1.0, _floor_power(xp, magnitude))
    return xp.where(magnitude <= _LARGEST, power * (1.5 * 2.0 ** (53 - bits)), xp.nan)


def _to_grid(ops: Ops, x: Array, shifter: Array, bits: int) -> Array:
    """Round ``x`` to the grid of its lines, flushing first where the grid is finer than the flush threshold."""
    xp = ops.xp
    # Where half a unit is at least 2**-120, rounding alone takes all that the flush would.
    fine = xp.any(shifter < 1.5 * 2.0 ** (52 - 119))
    if not ops.is_false(fine):
        x = flush(xp, x)
    grid = xp.astype(x, xp.float64)
    grid += shifter  # a fresh array: no argument is changed
    grid -= shifter
    return grid
