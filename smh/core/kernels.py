"""Kernels: the performance-critical primitives of the core, with the plain formulas as defaults.

The core calls a namespace of the Python array API, ``kernels.xp``, and the methods below. The defaults are pure array
API, so ``Kernels(xp)`` serves every conforming namespace. A backend overrides the primitives for which its framework
has a faster way, under a single law: **no override changes a bit**. This is possible because order and blocking have no
effect on the results of kernels (specification, section 3.7).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np

if TYPE_CHECKING:
    from smh.core.grid import Grid

Array = Any
"""An array of the backend."""
Sums = Any
"""Signed integers of up to 53 bits: float64, or another type that the kernels use instead."""
_LEAST = -210
_UNITS = np.ldexp(1.0, np.arange(_LEAST, 241))
"""The units of scale gradients (specification, section 13.1)."""


class Kernels:
    """A namespace and the primitives.

    Parameters
    ----------
    xp : module
        An array-API namespace.
    smooth : bool
        Whether to omit the grids: the same formulas in float32, which a framework can differentiate. For second
        derivatives and fast gradients, whose bits are not guaranteed (specification, section 7).

    Examples
    --------
    >>> import numpy as np
    >>> kernels = Kernels(np)
    >>> kernels.product(np.asarray([[3.0, 1.0]]), np.asarray([[2.0], [5.0]]), 0.5, exact_terms=1024)
    array([[5.5]])
    """

    array_types: tuple[type, ...] = ()
    """The exact types of arrays that these kernels accept, if subclasses do not qualify; by default any type."""

    def __init__(self, xp: Any, smooth: bool = False) -> None:
        self.xp = xp
        self.smooth = smooth

    @property
    def word_dtype(self) -> Any:
        """The type of hash words: uint32 if its arithmetic wraps, else int64."""
        return self.xp.uint32

    @property
    def index_dtype(self) -> Any:
        """The type of indices into arrays."""
        return self.xp.int64

    def device(self, x: Array) -> Any:
        """Return the device for new arrays combined with ``x``, or None if the framework places arrays."""
        return array_api_compat.device(x)

    def largest(self, x: Array) -> Array:
        """Return the largest magnitude, shape (); NaN or an infinity if any element is NaN or infinite."""
        xp = self.xp
        return xp.where(xp.all(xp.isfinite(x)), xp.max(xp.abs(x)), math.nan)

    def rounded(self, x: Array, factor: Array, bits: int, clip: bool = False) -> Array:
        """Return ``rint(x * factor)`` in a type for magnitudes below ``2**bits``, clipped to this range.

        All elements are NaN if the factor is NaN.
        """
        q = self.xp.round(x * factor)
        return self.xp.clip(q, 1.0 - 2.0**bits, 2.0**bits - 1.0) if clip else q

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Return ``unit * (left @ right)``, rounded once.

        Parameters
        ----------
        left, right : array, shapes (r, m) and (m, c)
            Integers, or NaN.
        unit : array, shape (), float32
            A power of two.
        exact_terms : int
            The number of terms of which float32 holds every sum, with factors that bfloat16 holds; 0 if none.

        Returns
        -------
        array, shape (r, c), float32
        """
        xp = self.xp
        if left.shape[1] > exact_terms and not self.smooth:
            sums = xp.matmul(xp.astype(left, xp.float64), xp.astype(right, xp.float64))
            return xp.astype(sums, xp.float32) * unit
        return xp.matmul(left, right) * unit

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Return :meth:`scale` of parts of :meth:`product`.

        A part is a scale and the range of its elements, counted row by row: ``(scale, start, stop)``. Results have the
        shapes (stop - start,), float32. There is at least one part; parts are not empty and do not overlap.
        """
        columns, results = right.shape[1], []
        for scale, start, stop in parts:
            first = start // columns
            rows = self.product(left[first : -(-stop // columns), :], right, unit, exact_terms)
            v = self.xp.reshape(rows, (-1,))[start - first * columns : stop - first * columns]
            results.append(self.scale(v, scale))
        return results

    def scale(self, v: Array, scale: Array | float) -> Array:
        """Return ``float32(scale * v)``, with -0 replaced by +0 (specification, section 3.4)."""
        w = v * scale
        if self.smooth:
            return w
        return self.xp.where(self.xp.abs(w) < 2.0**-120, 0.0, w)  # no other weight is that small

    def times(self, a: Array, b: Array, k: int = -120) -> Array:
        """Return ``float32(floor(a * b, k))`` of float32 values, compared before the rounding."""
        return round7(self, wide(self, a) * wide(self, b), k)

    def add(self, parts: Sequence[Array], k: int = -120) -> Array:
        """Return ``float32(floor(x, k))`` of the ascending sum x of float32 arrays in float64."""
        return round7(self, add_up([wide(self, part) for part in parts]), k)

    def dot(self, g: Array, v: Array, inverse: Array) -> Array:
        """Return the sum of ``rint(g * v * inverse)``, an integer that float64 holds for every order.

        All are float64. ``g`` and ``v``, shape (k,), have float32 values, so their products are exact. ``inverse``,
        shape (), is a power of two.
        """
        return self.xp.sum(self.xp.round(g * v * inverse))

    def rounded_dot(self, g: Array, v: Array, exponent: Array, kappa: int) -> Array:
        """Return ``round7(2**(exponent - kappa) * sum(rint(g * v / 2**exponent)))``, shape ().

        All are float32: ``g`` and ``v``, shape (k,), and ``exponent``, a whole number from -210 to 240.
        """
        xp = self.xp
        at = xp.reshape(xp.astype(exponent - _LEAST, xp.int32), (1,))
        unit = xp.reshape(xp.take(xp.asarray(_UNITS, device=self.device(g)), at), ())
        return round7(self, self.dot(wide(self, g), wide(self, v), 1.0 / unit) * (unit * 2.0**-kappa))

    def factor_sums(self, q: Array, left: Array, right: Array, exact_terms: int) -> tuple[Sums, Sums]:
        """Return ``q @ right.T`` and ``left.T @ q``, exactly.

        Parameters
        ----------
        q : array, shape (n, n), float32
            Integers of 22 bits, or NaN.
        left, right : array, shapes (n, m) and (m, n)
            Integers of a pool, or NaN.
        exact_terms : int
            As for :meth:`product`.

        Returns
        -------
        tuple of sums, shapes (n, m) and (m, n), or float32 arrays if smooth
        """
        xp = self.xp
        if not self.smooth:
            q, left, right = (xp.astype(x, xp.float64) for x in (q, left, right))
        return xp.matmul(q, xp.matrix_transpose(right)), xp.matmul(xp.matrix_transpose(left), q)

    def rounded_sum(self, sums: Sums, *units: Array | float) -> Array:
        """Return ``round7`` of sums times powers of two: float32 arrays of shape (), at least one, and numbers."""
        xp, unit = self.xp, 1.0
        for x in units:
            unit = unit * (x if isinstance(x, float) else xp.astype(x, xp.float64))
        return round7(self, xp.astype(sums, xp.float64) * unit)

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Return all gradients of a matmul pool in one pass over cotangents, or None without such a kernel.

        An override must give the bits of :func:`smh.core.generate.pull`.
        """
        return None

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add the elements of ``x`` that share a segment number.

        The values, shape (k,), float64, are integers with an absolute sum of at most 2**53, so every order gives the
        same result, shape (size,), float64; or all are NaN. Segment numbers, int64, are in ``[0, size)``. The default
        sorts by segment and subtracts running sums, which are integers below the same bound.
        """
        xp = self.xp
        order = xp.argsort(segments)
        running = xp.cumulative_sum(xp.take(x, order), include_initial=True)
        bounds = xp.arange(size + 1, dtype=segments.dtype, device=self.device(x))
        at = xp.take(running, xp.searchsorted(xp.take(segments, order), bounds, side="left"))
        return at[1:] - at[:-1]

    def bucket_sums(self, x: Array, segments: Array, size: int) -> Sums:
        """Return :meth:`segment_sum` of float32 integers of 22 bits, as sums for :meth:`rounded_sum`."""
        return self.segment_sum(self.xp.astype(x, self.xp.float64), segments, size)

    def counts(self, x: Array, size: int) -> Array:
        """Return how often each of the integers from 0 to ``size - 1`` occurs, shape (size,), float32.

        The integers, shape (k,), are float32. The default sorts them.
        """
        xp = self.xp
        bounds = xp.arange(size + 1, dtype=xp.float32, device=self.device(x)) - 0.5
        at = xp.searchsorted(xp.sort(x), bounds)
        return xp.astype(at[1:] - at[:-1], xp.float32)

    def tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Return the concatenation of ``fn`` over ranges that partition ``start`` to ``stop``; by default one range.

        Law: equal to ``fn(start, stop)``, for functions whose elements do not depend on the range.
        """
        return fn(start, stop)

    def sum_tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Return the sum of ``fn`` over such ranges. The sums are exact.

        Law: equal to ``fn(start, stop)``.
        """
        return fn(start, stop)


def floor(kernels: Kernels, x: Array, k: int = -120) -> Array:
    """Return +0 where ``|x| < 2**k``, else ``x``."""
    if kernels.smooth:
        return x
    return kernels.xp.where(kernels.xp.abs(x) < 2.0**k, 0.0, x)


def round7(kernels: Kernels, x: Array, k: int = -120) -> Array:
    """Return ``float32(floor(x, k))`` of float64 values."""
    return kernels.xp.astype(floor(kernels, x, k), kernels.xp.float32)


def wide(kernels: Kernels, x: Array) -> Array:
    """Return ``floor(x, -120)`` of float32 values in float64.

    Cotangents need the floor (specification, section 7.1). All other values are 0 or larger. For them, the floor
    separates two conversions, which a compiler might otherwise merge, dropping a rounding.
    """
    return kernels.xp.astype(floor(kernels, x), kernels.xp.float64)


def add_up(parts: Sequence[Array]) -> Array:
    """Return the ascending sum of arrays: starting from the first, one at a time."""
    total = parts[0]
    for part in parts[1:]:
        total = operator.add(total, part)
    return total
