"""Grids: operands rounded so that sums of their products are exact (specification, section 3.1, rules 1 to 4 and 7)."""

from __future__ import annotations

from typing import Any

from smh.ops import Array, Finish, Ops

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


def flush_if_needed(ops: Ops, x: Array) -> Array:
    """Return what :func:`flush` does: ``x`` itself where it is known that nothing has to be flushed."""
    return x if ops.none_below(x, TINY) else flush(ops.xp, x)


def flushed_times(ops: Ops, scale: Array | float) -> Finish:
    """Return what multiplies: ``flush(flush(x) * scale)`` for an array ``x``, which stays as it is.

    The scale is flushed, an array of shape () or a float.
    """
    xp = ops.xp
    below_one = xp.where(xp.abs(scale) < 1.0, xp.abs(scale), 1.0) if hasattr(scale, "shape") else min(abs(scale), 1.0)
    enough = 2.0 * TINY / below_one  # neither x nor the product is tiny from here on

    def times(x: Array) -> Array:
        return x * scale if ops.none_below(x, enough) else flush(xp, flush(xp, x) * scale)

    return times


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
    return min(24, (53 - ceil_log2(min(terms, CHUNK))) // 2)


def ceil_log2(k: int) -> int:
    """Return the smallest c with 2**c >= k."""
    return (k - 1).bit_length()


def largest_magnitude(xp: Any, x: Array, axis: int) -> Array:
    """Return max |x| along an axis, which a matrix keeps with length 1; NaN where there is one."""
    # Two reductions and no temporary as large as x. Both propagate NaN.
    return xp.maximum(xp.max(x, axis=axis, keepdims=x.ndim > 1), -xp.min(x, axis=axis, keepdims=x.ndim > 1))


def floor_power(xp: Any, magnitude: Array) -> Array:
    """Return the largest power of two that is not above a float64 magnitude; 2**-240 where that is smaller.

    A number in ``[2**k, 2**(k + 1))`` times 2**52 has the unit 2**k in its last place, so adding the number rounds it
    to once or twice 2**k. The product is exact, so that fusing it with the additions changes nothing. NaN and
    infinities give NaN.
    """
    magnitude = xp.where(magnitude < 2.0**_LOWEST, 2.0**_LOWEST, magnitude)
    large = magnitude * 2.0**52
    power = (large + magnitude) - large
    return xp.where(power > magnitude, 0.5 * power, power)


def shifter_of(xp: Any, magnitude: Array, bits: int) -> Array:
    """Return 1.5 * 2**(52 + e - bits) for every line: adding and subtracting it rounds to multiples of 2**(e - bits).

    Within a factor 2 above 2**(52 + e - bits) a float64 has just that unit in the last place, and the addition rounds
    half to even; a magnitude below 2**e cannot leave that range. A line without a number above the flush threshold
    gets e = 1, which rounds all of it to +0; one that holds NaN or an infinity gets NaN.
    """
    magnitude = xp.astype(magnitude, xp.float64)
    power = xp.where(magnitude < TINY, 1.0, floor_power(xp, magnitude))
    return xp.where(magnitude <= _LARGEST, power * (1.5 * 2.0 ** (53 - bits)), xp.nan)


def line_shifters(xp: Any, x: Array, axis: int, bits: int) -> Array:
    """Return what rounds lines along ``axis`` to multiples of ``2**(e - b)``, 2**e just above the maximum (rule 3).

    Parameters
    ----------
    xp : module
        The array-API namespace of ``x``.
    x : array, shape (p, q), float32
        An operand of a product.
    axis : int
        The axis of the sum: lines along it share an exponent.
    bits : int
        b.

    Returns
    -------
    array, shape (p, 1) or (1, q), float64
        For :func:`to_grid`; NaN for a line that holds NaN or an infinity.
    """
    return shifter_of(xp, largest_magnitude(xp, x, axis), bits)


def to_grid(ops: Ops, x: Array, shifter: Array) -> Array:
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
