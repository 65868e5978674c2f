"""NumPy's kernels: blocks of rows that stay in the cache, with the bits of the default kernels."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smh.core.grid import Grid, ceil_log2, floor, round7
from smh.core.kernels import Array, Kernels

if TYPE_CHECKING:
    from smh.core.generate import Part

_SHORT = 256  # terms of a float32 product that is not worth its additions
_CHUNK = 1 << 16  # cotangents that stay in the cache through several passes
_SLICE = 512  # columns of cotangents that both products read while they are in the cache
_FEW = 5  # elements of a tensor below which the floor of cotangents shows in a scale gradient (section 13.7)

_DEFAULT = Kernels(np)


class NumpyKernels(Kernels):
    """Kernels for NumPy arrays."""

    block_elements = 1 << 18
    """About how many virtual weights are computed at a time."""
    product_elements = 1 << 21
    """The same for the products of :meth:`scaled_product`, which need no memory besides their result."""
    strip_share = 0.06
    """The most terms whose factors are held in float64 at a time, as a share of the rows of a pool."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(np, smooth)

    def device(self, x: Array) -> str:
        """Return ``"cpu"``, the only device."""
        return "cpu"

    def scaled_product(
        self, left: Array, right: Array, unit: Array, exact_terms: int, scale: Array | float, start: int, stop: int
    ) -> Array:
        """Fill the result block by block; a unit and a scale are one factor where that is exact."""
        columns, out, at = right.shape[1], np.empty(stop - start, dtype=np.float32), 0
        exact_terms = left.shape[1] if self.smooth else _exact_terms(left, right, exact_terms)
        scale, unit = np.float32(scale), np.float32(unit)
        factor = scale * unit
        if not 2.0**-126 <= abs(factor) < math.inf:
            factor = None
        first, last, step = start // columns, -(-stop // columns), max(1, self.product_elements // columns)
        for row in range(first, last, step):
            rows = slice(row, min(row + step, last))
            here = out[at : min(rows.stop * columns, stop) - start]
            at += here.size
            if here.size == (rows.stop - row) * columns:  # whole rows
                _sums(left[rows], right, exact_terms, here.reshape(-1, columns))
            else:
                sums = _sums(left[rows], right, exact_terms).reshape(-1)
                here[...] = sums[max(0, start - row * columns) : stop - row * columns]
            if factor is None:
                np.multiply(here, unit, out=here)
                np.multiply(here, scale, out=here)
            else:
                np.multiply(here, factor, out=here)
            np.add(here, np.float32(0.0), out=here)  # -0 becomes +0
        return out

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Go over blocks of rows: virtual weights for scale gradients, and cotangents on their grid for both factors.

        Returns None, for the plain way, where a value is not finite or a cotangent or scale is out of the ordinary.
        """
        pulled = None if self.smooth else _Pulled.of(left, right, gain, parts)
        if pulled is None:
            return None
        side, terms = left.integers.shape
        exact_terms = _exact_terms(left.integers, right.integers, exact_terms)
        of_left = np.empty((side, terms), dtype=np.float32)
        of_right = np.empty((terms, side), dtype=np.float32)
        most = max(1, int(self.strip_share * side))
        strip = -(-terms // -(-terms // most))  # as even as possible
        step = min(max(self._rows(side), min(side // 12, 4 * self.block_elements // side)), side)
        pulled.q = np.empty(step * side)
        total, product = np.empty((strip, side)), np.empty((strip, min(_SLICE, side)))
        for k in range(0, terms, strip):
            span = slice(k, min(k + strip, terms))
            count = span.stop - k
            total[:count] = 0.0
            for row in range(0, -(-pulled.stop // side), step):
                rows = slice(row, min(row + step, side))
                block = rows.stop - row
                if k == 0 and pulled.wants_dots:
                    sums = pulled.q.view(np.float32)[: block * side].reshape(block, side)
                    _sums(left.integers[rows], right.integers, exact_terms, sums)
                    pulled.add_dots(sums.reshape(-1), row * side)
                q = pulled.on_grid(row * side, rows.stop * side).reshape(-1, side)
                wide_left, of_rows = left.integers[rows, span].T.astype(np.float64), np.zeros((block, count))
                for c in range(0, side, _SLICE):
                    part = q[:, c : c + _SLICE]
                    of_rows += part @ right.integers[span, c : c + _SLICE].T.astype(np.float64)
                    total[:count, c : c + _SLICE] += np.matmul(wide_left, part, out=product[:count, : part.shape[1]])
                of_rows *= pulled.left_unit
                of_left[rows, span] = round7(_DEFAULT, of_rows)
            of_left[-(-pulled.stop // side) :, span] = 0.0
            total *= pulled.right_unit
            for some in range(0, count, 16):  # at once it would take as much memory again
                of_right[span][some : some + 16] = round7(_DEFAULT, total[some : min(some + 16, count)])
        return of_left, of_right, pulled.of_scales()

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Count with weights."""
        return np.bincount(segments, weights=x, minlength=size)

    def tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Fill one array range by range."""
        out = np.empty(stop - start, dtype=np.float32)
        for first in range(start, stop, self.block_elements):
            last = min(first + self.block_elements, stop)
            out[first - start : last - start] = fn(first, last)
        return out

    def sum_tiles(self, fn: Callable[[int, int], Array], start: int, stop: int) -> Array:
        """Add range by range."""
        total = fn(start, min(start + self.block_elements, stop))
        for first in range(start + self.block_elements, stop, self.block_elements):
            total += fn(first, min(first + self.block_elements, stop))
        return total

    def _rows(self, columns: int) -> int:
        return max(1, self.block_elements // columns)


class _Pulled:
    """The cotangents of all tensors, and what has been added of their scale gradients."""

    @classmethod
    def of(cls, left: Grid, right: Grid, gain: float, parts: Sequence[Part]) -> _Pulled | None:
        """Return None where there is something out of the ordinary."""
        units = float(left.unit), float(right.unit)
        if not all(map(math.isfinite, units)):
            return None
        given, top = [], np.float32(0.0)
        for tensor, scale, g in parts:
            if g is None:
                continue
            largest = max(np.max(g), -np.min(g))
            if not (largest < 2.0**90 and abs(scale) <= 2.0**28):  # NaN is neither
                return None
            top = max(top, np.float32(abs(scale)) * largest)
            given.append((tensor, np.float32(scale), g, float(largest)))
        if not 2.0**-70 <= top < 2.0**90:
            return None
        fraction, exponent = math.frexp(top)
        exponent += fraction > 1.0 - 2.0**-22
        return cls(left, right, gain, list(parts), given, exponent) if exponent <= 90 else None

    def __init__(
        self, left: Grid, right: Grid, gain: float, parts: list[Part], given: list[Any], exponent: int
    ) -> None:
        left_unit, right_unit, unit = float(left.unit), float(right.unit), math.ldexp(1.0, exponent - 22)
        self.left_unit, self.right_unit = unit * right_unit * gain, unit * left_unit * gain
        self._inverse = np.float32(1.0 / unit)
        bound = float(left.power) * float(right.power) * gain * 2.0 ** ceil_log2(left.integers.shape[1])
        self._parts, self._given = parts, given
        self._starts = [tensor.offset for tensor, _, _, _ in given]
        self._totals = [0.0] * len(given)
        self._units: list[float] = []  # of scale gradients; 0 where there is nothing to add
        for tensor, _, _, largest in given:
            wanted = tensor.learn_scale and largest >= 2.0**-70
            self._units.append(
                bound * math.ldexp(1.0, math.frexp(largest)[1] - 53 + ceil_log2(tensor.size)) if wanted else 0.0
            )
        self._virtual = left_unit * right_unit * gain
        self.wants_dots = any(self._units)
        self._small = np.empty(_CHUNK, dtype=np.float32), np.empty(_CHUNK)
        self.q = np.empty(0)  # room for a block, which the caller makes
        self.stop = given[-1][0].stop

    def on_grid(self, start: int, stop: int) -> Array:
        """Return the cotangents of a range of cells on their grid, float64, in an array that the next call overwrites.

        A scale and the unit are one factor: a power of two changes no rounding of what is not next to nothing, which
        the grid makes 0.
        """
        q = self.q[: stop - start]
        done = 0
        for k, cells, g in self._pieces(start, stop):
            q[done : cells.start] = 0.0
            factor, done = self._given[k][1] * self._inverse, cells.stop
            for at in range(0, g.size, _CHUNK):
                part = g[at : at + _CHUNK]
                dv = np.multiply(part, factor, out=self._small[0][: part.size])
                np.rint(dv, out=dv)
                q[cells.start + at : cells.start + at + part.size] = dv
        q[done:] = 0.0
        return q

    def add_dots(self, sums: Array, start: int) -> None:
        """Add to the scale gradients what a range of cells has of them, whose integers are given and overwritten.

        In units of the sum no integer is above 2**122 or, unless it is 0, below 2**-121: float32 holds it.
        """
        for k, cells, g in self._pieces(start, start + sums.size):
            unit = self._units[k]
            if unit:
                g = floor(_DEFAULT, g) if self._given[k][0].size < _FEW else g
                v, factor = sums[cells], np.float32(self._virtual / unit)
                for at in range(0, g.size, _CHUNK):
                    part, scaled = g[at : at + _CHUNK], v[at : at + _CHUNK]
                    np.multiply(scaled, factor, out=scaled)
                    terms = np.multiply(part, scaled, out=self._small[1][: part.size], dtype=np.float64)
                    np.rint(terms, out=terms)
                    self._totals[k] += float(np.sum(terms))

    def of_scales(self) -> list[Array]:
        """Return the gradients of all scale variables."""
        totals = {
            given[0].name: total * unit
            for given, total, unit in zip(self._given, self._totals, self._units, strict=True)
        }
        found = (totals.get(tensor.name, 0.0) * 2.0**-tensor.kappa for tensor, _, _ in self._parts)
        return [np.asarray(round7(_DEFAULT, np.float64(x))) for x in found]

    def _pieces(self, start: int, stop: int) -> Any:
        """Iterate over the tensors that a range of cells meets: number, cells in the range, cotangents."""
        for k in range(max(0, bisect.bisect_right(self._starts, start) - 1), len(self._given)):
            tensor, _, g, _ = self._given[k]
            if tensor.offset >= stop:
                break
            first, last = max(start, tensor.offset), min(stop, tensor.stop)
            if first < last:
                yield k, slice(first - start, last - start), g[first - tensor.offset : last - tensor.offset]


def _exact_terms(left: Array, right: Array, exact_terms: int) -> int:
    """Return how many terms float32 adds exactly: all, if the integers that there are cannot reach 2**24.

    By the inequality of Cauchy and Schwarz no partial sum of a row with a column exceeds the product of their norms.
    """
    if left.shape[1] <= exact_terms:
        return exact_terms
    rows = np.einsum("rk,rk->r", left, left, dtype=np.float64)
    columns = np.einsum("kc,kc->c", right, right, dtype=np.float64)
    return left.shape[1] if np.max(rows) * np.max(columns) < 2.0**48 else exact_terms


def _sums(left: Array, right: Array, exact_terms: int, out: Array | None = None) -> Array:
    """Return the product of integers, rounded once to float32: of as many terms as that adds exactly, or in float64."""
    terms = left.shape[1]
    out = np.empty((left.shape[0], right.shape[1]), dtype=np.float32) if out is None else out
    if terms <= exact_terms:
        return np.matmul(left, right, out=out)
    if exact_terms < _SHORT:
        out[...] = left.astype(np.float64) @ right.astype(np.float64)
        return out
    total = np.matmul(left[:, :exact_terms], right[:exact_terms], out=out).astype(np.float64)
    for k in range(exact_terms, terms, exact_terms):
        total += np.matmul(left[:, k : k + exact_terms], right[k : k + exact_terms], out=out)
    out[...] = total
    return out
