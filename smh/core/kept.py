"""Which kept tensors become integers on a grid, and with how many bits: the rule for files and for the rate.

It is the choice of a writer: the specification (section 12.2) lets a file round any tensor of these dtypes. Tensors are
rows here, so that many are rounded at once.
"""

from __future__ import annotations

import math

from smh.core.grid import LARGEST, LEAST
from smh.core.kernels import Array, Kernels

BITS = (8, 16)
"""The bits to which kept tensors can be rounded."""

WIDTHS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
"""The dtypes of tensors that can be rounded, and their bits."""

FEWEST_ROUNDED = 2
"""The fewest values of a tensor that is rounded."""

SMALLEST = 16
"""The smallest integer of a positive value in a tensor without negative ones: its relative error is at most 1/31."""


def tried_bits(dtype: str, size: int, bits: int) -> list[int]:
    """Return the numbers of bits to try for a tensor, fewest first: if ``bits`` take too much from it, 16.

    Only integers smaller than the dtype are tried. Without any, the tensor stays as it is.
    """
    tried = {each for each in (bits, max(BITS)) if each < WIDTHS.get(dtype, 0)}
    return sorted(tried) if size >= FEWEST_ROUNDED else []


def kept_grid(kernels: Kernels, x: Array, bits: int) -> tuple[Array, Array]:
    """Return the integers of tensors and their units, float32 (specification, section 3.1).

    Parameters
    ----------
    kernels : Kernels
        The namespace of ``x``.
    x : array, shape (rows, k)
        Values, one tensor in each row.
    bits : int
        8 or 16: integers have magnitudes below ``2**(bits - 1)``.

    Returns
    -------
    integers : array, shape (rows, k)
        NaN where a tensor has no grid.
    units : array, shape (rows, 1)
        Powers of two; NaN for a tensor that is not finite or too large.

    Examples
    --------
    >>> import numpy as np
    >>> q, unit = kept_grid(Kernels(np), np.array([[0.5, -3.0, 0.1]]), 8)
    >>> q.tolist(), unit.tolist()
    ([[16.0, -96.0, 3.0]], [[0.03125]])
    """
    xp, device = kernels.xp, kernels.device(x)
    x = xp.astype(x, xp.float32)
    largest = xp.max(xp.abs(x), axis=1, keepdims=True)
    powers = [2.0**e for e in range(LEAST, LARGEST + 1)]
    bounds = xp.asarray([power * (1.0 - 2.0 ** (1 - bits)) for power in powers], dtype=xp.float32, device=device)
    units = xp.asarray([*(power * 2.0 ** (1 - bits) for power in powers), math.nan], dtype=xp.float32, device=device)
    count = xp.sum(xp.astype(largest > bounds, xp.float32), axis=1)
    unit = xp.reshape(xp.take(units, xp.astype(count, xp.int32)), (-1, 1))
    unit = xp.where(xp.all(xp.isfinite(x), axis=1, keepdims=True), unit, math.nan)
    return xp.round(x / unit) * xp.astype(largest >= 2.0 ** (LEAST - 1), xp.float32), unit


def keeps(kernels: Kernels, x: Array, dtype: str, q: Array, unit: Array) -> Array:
    """Return whether each tensor can be stored as its integers, bool, shape (rows, 1).

    It can if it is on the grid already, so that rounding a second time changes nothing. Otherwise the dtype must hold
    all values on the grid, and

    - in a tensor without negative values, each one becomes an integer of 16 or more, unless it is 0: variances must not
      become 0, and errors of them count relative to each;
    - in other tensors, not all values become 0.
    """
    xp, y = kernels.xp, q * unit

    def every(condition: Array) -> Array:
        return xp.all(condition, axis=1, keepdims=True)

    positive = every(x >= 0.0)
    close = (positive & every((q >= SMALLEST) | (x == 0.0))) | ~(positive | every(q == 0.0))
    if dtype == "float16":  # the other dtypes hold every grid with fewer bits than they have
        close = close & every((xp.abs(y) < 2.0**16) & (xp.round(y * 2.0**24) == y * 2.0**24))
    return xp.isfinite(unit) & (close | every(xp.astype(y, x.dtype) == x))
