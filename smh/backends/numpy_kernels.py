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
_FEW = 5  # elements of a tensor below which the floor of cotangents shows in a scale gradient (section 13.7)


class NumpyKernels(Kernels):
    """Kernels for NumPy arrays."""

    block_elements = 1 << 18
    """About how many virtual weights are computed at a time."""
    strip_share = 0.05
    """Terms whose factors are held in float64 at a time, as a share of the rows of a pool."""

    def __init__(self) -> None:
        super().__init__(np)

    def device(self, x: Array) -> str:
        """Return ``"cpu"``: there is no other."""
        return "cpu"

    def scaled_product(
        self, left: Array, right: Array, unit: Array, exact_terms: int, scale: Array | float, start: int, stop: int
    ) -> Array:
        """Fill the result block by block; a unit and a scale are one factor where that is exact."""
        columns, out, at = right.shape[1], np.empty(stop - start, dtype=np.float32), 0
        scale, unit = np.float32(scale), np.float32(unit)
        factor = scale * unit
        if not 2.0**-126 <= abs(factor) < math.inf:
            factor = None
        first, last = start // columns, -(-stop // columns)
        for row in range(first, last, self._rows(columns)):
            sums = _sums(left[row : min(row + self._rows(columns), last)], right, exact_terms)
            sums = sums.reshape(-1)[max(0, start - row * columns) : stop - row * columns]
            here = out[at : at + sums.size]
            at += sums.size
            if factor is None:
                np.multiply(sums, unit, out=here)
                np.multiply(here, scale, out=here)
            else:
                np.multiply(sums, factor, out=here)
            np.add(here, np.float32(0.0), out=here)  # -0 becomes +0
        return out

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Go over blocks of rows: virtual weights for scale gradients, and cotangents on their grid for both factors.

        Returns None, for the plain way, where a value is not finite or a cotangent or scale is out of the ordinary.
        """
        pulled = _Pulled.of(left, right, gain, parts)
        if pulled is None:
            return None
        side, terms = left.integers.shape
        of_left = np.empty((side, terms), dtype=np.float32)
        of_right = np.empty((terms, side), dtype=np.float32)
        strip, step = max(1, int(self.strip_share * side)), self._rows(side)
        for k in range(0, terms, strip):
            span = slice(k, min(k + strip, terms))
            wide_right = right.integers[span].T.astype(np.float64)
            total = np.zeros((span.stop - k, side))
            for row in range(0, -(-pulled.stop // side), step):
                rows = slice(row, min(row + step, side))
                if k == 0:
                    pulled.add_dots(_sums(left.integers[rows], right.integers, exact_terms).reshape(-1), row * side)
                q = pulled.on_grid(row * side, rows.stop * side).reshape(-1, side)
                of_left[rows, span] = round7(np, (q @ wide_right) * pulled.left_unit)
                total += left.integers[rows, span].T.astype(np.float64) @ q
            of_left[-(-pulled.stop // side) :, span] = 0.0
            total *= pulled.right_unit
            of_right[span] = round7(np, total)
            del wide_right, total  # before the next strip is made
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
        self._buffers: tuple[Array, Array] | None = None
        self.stop = given[-1][0].stop

    def on_grid(self, start: int, stop: int) -> Array:
        """Return the cotangents of a range of cells on their grid, float64, in an array that the next call overwrites.

        A scale and the unit are one factor: a power of two changes no rounding of what is not next to nothing, which
        the grid makes 0.
        """
        if self._buffers is None:
            self._buffers = np.empty(stop - start, dtype=np.float32), np.empty(stop - start)
        dv, q = self._buffers[0][: stop - start], self._buffers[1][: stop - start]
        done = 0
        for k, cells, g in self._pieces(start, stop):
            dv[done : cells.start] = 0.0
            np.multiply(g, self._given[k][1] * self._inverse, out=dv[cells])
            done = cells.stop
        dv[done:] = 0.0
        return np.rint(dv, out=q)

    def add_dots(self, sums: Array, start: int) -> None:
        """Add to the scale gradients what a range of cells, whose integers are given, has of them."""
        for k, cells, g in self._pieces(start, start + sums.size):
            unit = self._units[k]
            if unit:
                g = floor(np, g) if self._given[k][0].size < _FEW else g
                terms = np.multiply(g, sums[cells], dtype=np.float64)
                terms *= self._virtual / unit
                np.rint(terms, out=terms)
                self._totals[k] += float(np.sum(terms))

    def of_scales(self) -> list[Array]:
        """Return the gradients of all scale variables."""
        totals = {
            given[0].name: total * unit
            for given, total, unit in zip(self._given, self._totals, self._units, strict=True)
        }
        found = (totals.get(tensor.name, 0.0) * 2.0**-tensor.kappa for tensor, _, _ in self._parts)
        return [np.asarray(round7(np, np.float64(x))) for x in found]

    def _pieces(self, start: int, stop: int) -> Any:
        """Iterate over the tensors that a range of cells meets: number, cells in the range, cotangents."""
        for k in range(max(0, bisect.bisect_right(self._starts, start) - 1), len(self._given)):
            tensor, _, g, _ = self._given[k]
            if tensor.offset >= stop:
                break
            first, last = max(start, tensor.offset), min(stop, tensor.stop)
            if first < last:
                yield k, slice(first - start, last - start), g[first - tensor.offset : last - tensor.offset]


def _sums(left: Array, right: Array, exact_terms: int) -> Array:
    """Return the product of integers, rounded once to float32: of as many terms as that adds exactly, or in float64."""
    terms = left.shape[1]
    if terms <= exact_terms:
        return left @ right
    if exact_terms < _SHORT:
        return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.float32)
    total = (left[:, :exact_terms] @ right[:exact_terms]).astype(np.float64)
    for k in range(exact_terms, terms, exact_terms):
        total += left[:, k : k + exact_terms] @ right[k : k + exact_terms]
    return total.astype(np.float32)
