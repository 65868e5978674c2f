"""Kernels without float64, for devices where it is missing or slow: float32 and int32, with the bits of the defaults.

Products of integers are products of slices of 8 bits, which float32 adds exactly. Integers wider than 24 bits are pairs
of int32, rounded once. A compiler may contract floating-point operations, because only sums of exact products determine
bits. It must not flush normal results to zero, and must not reassociate.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smh.core import pairs
from smh.core.kernels import Array, Kernels, add_up, floor
from smh.core.pairs import Pair

_TERMS = 512
"""The number of products of a slice of 8 bits and an integer of 8 bits that float32 adds exactly."""
_TILE = 2**19
"""The number of slices of 11 bits that int32 adds."""


class Wide(NamedTuple):
    """Float64 numbers: sign, 1 or -1; magnitude, 0 or from 2**55 to 2**56; exponent. All int32."""

    sign: Array
    magnitude: Pair
    exponent: Array


class NarrowKernels(Kernels):
    """A mixin that replaces the float64 operations of kernels. It comes before the kernels of a backend.

    Sums are pairs. Elements of poisoned arrays may be any numbers: their units are NaN.
    """

    def bits(self, x: Array) -> Array:
        """Return the bits of float32 numbers, int32."""
        return x.view(self.xp.int32)

    def of_bits(self, x: Array) -> Array:
        """Return the float32 numbers that have these bits."""
        return x.view(self.xp.float32)

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Multiply slices if float32 does not hold the sums."""
        if self.smooth or left.shape[1] <= exact_terms:
            return super().product(left, right, unit, exact_terms)
        slices = 1 if exact_terms else 2
        return self._float(self._matmul(left, right, (slices, slices), exact_terms or _TERMS)) * unit

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Use the kernel of the backend if float32 holds the sums."""
        if self.smooth or left.shape[1] <= exact_terms:
            return super().scaled_products(left, right, unit, exact_terms, parts)
        return Kernels.scaled_products(self, left, right, unit, exact_terms, parts)

    def times(self, a: Array, b: Array, k: int = -120) -> Array:
        """Multiply in float32, where a product below ``2**k`` may round to ``2**k``.

        In that case the product of the significands, integers of 24 bits, is just below ``2**47`` or ``2**48``;
        otherwise it is just above these or ``2**46``. The sign of its last 32 bits decides.
        """
        if self.smooth:
            return a * b
        a, b = floor(self, a), floor(self, b)
        found, below = a * b, self._significand(a) * self._significand(b) < 0
        size = self.xp.abs(found)
        return self.xp.where((size < 2.0**k) | (size == 2.0**k) & below, 0.0, found)

    def add(self, parts: Sequence[Array], k: int = -120) -> Array:
        """Add like float64, in integers. Parts that are not finite follow IEEE 754."""
        if self.smooth:
            return add_up(parts)
        xp = self.xp
        sums, *others = (self._wide(floor(self, part)) for part in parts)
        for other in others:
            sums = self._sum(sums, other)
        magnitude = pairs.right(xp, sums.magnitude, sums.exponent * 0 + 3)  # whose last three bits are 0
        total = self._float(pairs.signed(xp, magnitude, sums.sign), sums.exponent + 3, k)
        special = add_up([xp.where(xp.isfinite(part), 0.0, part) for part in parts])
        return xp.where(xp.isfinite(special), total, special)

    def rounded_dot(self, g: Array, v: Array, exponent: Array, kappa: int) -> Array:
        """Multiply significands, and round and add the products of 48 bits as integers."""
        xp, exponent = self.xp, self.xp.astype(exponent, self.xp.int32)
        g, v = floor(self, g), floor(self, v)
        terms = pairs.left(xp, pairs.product(xp, self._significand(g), self._significand(v)), self._exponent(g) * 0 + 9)
        # No term is above 2**53, so at most 7 places have to be shifted to the left; 2 more are for rounding.
        shift = exponent - self._exponent(g) - self._exponent(v) + 7
        terms = pairs.to_even(xp, pairs.right(xp, terms, xp.clip(shift, 0, 59)), 2)
        terms = pairs.signed(xp, pairs.right(xp, terms, shift * 0 + 2), self._sign(g) * self._sign(v))
        return self._float(pairs.total(xp, terms), exponent - kappa, -120)

    def factor_sums(self, q: Array, left: Array, right: Array, exact_terms: int) -> tuple[Any, Any]:
        """Multiply slices."""
        xp = self.xp
        if self.smooth:
            return xp.matmul(q, xp.matrix_transpose(right)), xp.matmul(xp.matrix_transpose(left), q)
        slices = 1 if exact_terms else 2
        of_left = self._matmul(q, xp.matrix_transpose(right), (3, slices), _TERMS)
        return of_left, self._matmul(xp.matrix_transpose(left), q, (slices, 3), _TERMS)

    def rounded_sum(self, sums: Any, *units: Array | float) -> Array:
        """Add up the exponents of units."""
        if self.smooth:
            return functools.reduce(operator.mul, units, sums)
        exponent, finite = 0, True
        for unit in units:
            if isinstance(unit, float):
                exponent = exponent + math.frexp(unit)[1] - 1
            else:
                exponent = exponent + self._exponent(unit) + 23
                finite = self.xp.isfinite(unit) & finite
        return self.xp.where(finite, self._float(sums, exponent, -120), math.nan)

    def matmul_gradients(self, *args: Any) -> Any:
        """Leave exact gradients to the core."""
        return super().matmul_gradients(*args) if self.smooth else None

    def bucket_sums(self, x: Array, segments: Array, size: int) -> Any:
        """Add slices of 11 bits, of at most ``2**19`` elements."""
        if self.smooth:
            return self.segment_sum(x, segments, size)
        xp = self.xp
        sums = [self.segment_sum(xp.astype(part, xp.int32), segments, size) for part in self._slices(x, 2, 11)]
        low, high = (xp.astype(one, xp.int32) for one in sums)
        return pairs.plus(xp, pairs.placed(xp, low, 0), pairs.placed(xp, high, 11))

    def sum_tiles(self, fn: Callable[[int, int], Any], start: int, stop: int) -> Any:
        """Add ranges of at most ``2**19``."""
        sums = fn(start, min(start + _TILE, stop))
        for first in range(start + _TILE, stop, _TILE):
            one = fn(first, min(first + _TILE, stop))
            sums = sums + one if self.smooth else pairs.plus(self.xp, sums, one)
        return sums

    def _matmul(self, x: Array, y: Array, slices: tuple[int, int], terms: int) -> Any:
        """Return a product of integers of several slices of 8 bits, from the backend's products of ``terms`` terms."""
        xp = self.xp
        sums: Any = None
        one = xp.ones((), dtype=xp.float32, device=self.device(x))
        for k in range(0, x.shape[1], terms):
            of_y = self._slices(y[k : k + terms, :], slices[1], 8)
            for i, left_slice in enumerate(self._slices(x[:, k : k + terms], slices[0], 8)):
                for j, right_slice in enumerate(of_y):
                    part = xp.astype(super().product(left_slice, right_slice, one, terms), xp.int32)
                    part = pairs.placed(xp, part, 8 * (i + j))
                    sums = part if sums is None else pairs.plus(xp, sums, part)
        return sums

    def _slices(self, x: Array, count: int, bits: int) -> list[Array]:
        """Return float32 integers whose sum, with weights 1, ``2**bits``, ``2**(2 * bits)`` ..., is ``x``.

        All magnitudes except the last are at most ``2**(bits - 1)``.
        """
        x, slices = self.xp.astype(x, self.xp.float32), []
        for k in range(count - 1, 0, -1):
            slices.append(self.xp.round(x * 2.0 ** -(bits * k)))
            x = x - slices[-1] * 2.0 ** (bits * k)
        return [x, *reversed(slices)]

    def _significand(self, x: Array) -> Array:
        """Return the significands of numbers that are 0 or normal, integers of 24 bits."""
        return self.xp.where(x == 0.0, 0, self.xp.bitwise_and(self.bits(x), 2**23 - 1) + 2**23)

    def _exponent(self, x: Array) -> Array:
        """Return the exponent of the last bit of the significand."""
        return self.xp.bitwise_and(self.xp.bitwise_right_shift(self.bits(x), 23), 255) - 150

    def _sign(self, x: Array) -> Array:
        return 1 - 2 * self.xp.astype(x < 0, self.xp.int32)

    def _wide(self, x: Array) -> Wide:
        """Return numbers that are 0 or normal as :class:`Wide`."""
        zero = self._exponent(x) * 0
        return Wide(
            self._sign(x), pairs.left(self.xp, Pair(zero, self._significand(x)), zero + 32), self._exponent(x) - 32
        )

    def _sum(self, x: Wide, y: Wide) -> Wide:
        """Return the sum, rounded to 53 bits. Three more bits suffice, the last of which is sticky."""
        xp = self.xp
        exponent = xp.where(x.exponent < y.exponent, y.exponent, x.exponent)
        terms = (pairs.right(xp, one.magnitude, xp.clip(exponent - one.exponent, 0, 59)) for one in (x, y))
        total = pairs.plus(xp, *(pairs.signed(xp, term, one.sign) for term, one in zip(terms, (x, y), strict=True)))
        sign = self._sign(total.high)
        total = pairs.signed(xp, total, sign)
        zero = (total.high == 0) & (total.low == 0)
        top = xp.where(total.high > 0, 30 + self._log2(total.high), self._log2(total.low))
        # At most one place to the right, after up to 57 bits were shifted to the left as far as possible.
        total = pairs.right(xp, pairs.left(xp, total, xp.clip(57 - top, 0, 59)), exponent * 0 + 2)
        return Wide(sign, pairs.to_even(xp, total, 3), xp.where(zero, -1000, exponent + top - 55))

    def _log2(self, x: Array) -> Array:
        """Return the position of the leading 1 of positive integers. Clears the next bit, or float32 might round up."""
        one = self.xp.astype(x - self.xp.bitwise_and(x, self.xp.bitwise_right_shift(x, 1)), self.xp.float32)
        return self._exponent(one) + 23

    def _float(self, x: Pair, exponent: Array | int = 0, k: int | None = None) -> Array:
        """Return ``float32(floor(x * 2**exponent, k))`` of integers of at most 53 bits and a sign: rounded once.

        The result is the sum of two float32 numbers. Bits far below the last significant bit are merged into one.
        """
        xp, sign = self.xp, self._sign(x.high)
        x = pairs.signed(xp, x, sign)
        few = x.high < 2
        all_bits = x.low + xp.bitwise_left_shift(xp.bitwise_and(x.high, 1), 30)
        rest = xp.astype(xp.bitwise_and(x.low, 63) != 0, xp.int32)
        high = xp.where(few, xp.bitwise_right_shift(all_bits, 16), x.high)
        low = xp.where(few, xp.bitwise_and(all_bits, 2**16 - 1), xp.bitwise_or(xp.bitwise_right_shift(x.low, 6), rest))
        high, low = xp.astype(high, xp.float32), xp.astype(low, xp.float32)
        value = xp.where(few, high * 2.0**16 + low, high * 2.0**30 + low * 2.0**6) * xp.astype(sign, xp.float32)
        if k is None:
            return value
        # The product of both powers may not be a float32 number, and one may be too small where the result is small.
        first = xp.bitwise_right_shift(exponent, 1)
        for power in (first, exponent - first):
            value = value * self.of_bits(xp.bitwise_left_shift(xp.clip(power, -126, 127) + 127, 23))
        limit = pairs.left(xp, Pair(power * 0, power * 0 + 1), xp.clip(k - exponent, 0, 59))
        below = (x.high < limit.high) | (x.high == limit.high) & (x.low < limit.low)
        return xp.where(below, 0.0, value)
