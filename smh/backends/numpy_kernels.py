"""NumPy's kernels: short integers, and blocks that stay in the cache, with the bits of the default kernels."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smh.core.grid import Grid, ceil_log2
from smh.core.kernels import Array, Kernels, floor, round7

if TYPE_CHECKING:
    from smh.core.generate import Part

_CHUNK = 1 << 16  # elements that stay in the cache through several passes
_FEW = 5  # elements of a tensor below which the floor of cotangents shows in a scale gradient (section 13.7)
_MAGIC = 1.5 * 2.0**52  # added to a float64 number it leaves the nearest integer in the last bits

_UNROLLED = 8  # rows or columns that BLAS computes at a time; others take longer

_DEFAULT = Kernels(np)


class NumpyKernels(Kernels):
    """Kernels for NumPy arrays."""

    block_elements = 1 << 18
    """About how many virtual weights are computed at a time."""
    product_elements = 1 << 20
    """The same for products of whole rows, which are faster the more rows they have."""
    room_share = 0.055
    """The room for float32 copies of integers that is always granted, as a share of the elements of a product."""
    strip_share = 0.066
    """The most terms whose sums are held in float64 at a time, as a share of the rows of a pool."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(np, smooth)

    def device(self, x: Array) -> str:
        """Return ``"cpu"``, the only device."""
        return "cpu"

    def largest(self, x: Array) -> Array:
        """Go over the array once, without a copy of it."""
        return _largest(np.reshape(x, -1))

    def rounded(self, x: Array, factor: Array, bits: int, clip: bool = False) -> Array:
        """Hold integers of up to 7 bits in a byte, of up to 15 in two."""
        held = np.float32 if bits > 15 or np.isnan(factor) else np.int16 if bits > 7 else np.int8
        flat, q, room = np.reshape(x, -1), np.empty(x.size, dtype=held), np.empty(min(x.size, _CHUNK), dtype=np.float32)
        for at in range(0, x.size, _CHUNK):
            part = flat[at : at + _CHUNK]
            here = np.multiply(part, factor, out=room[: part.size])
            np.rint(here, out=here)
            q[at : at + _CHUNK] = np.clip(here, 1.0 - 2.0**bits, 2.0**bits - 1.0, out=here) if clip else here
        return q.reshape(x.shape)

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Fill the result block by block."""
        shape = left.shape[0], right.shape[1]
        return self.scaled_product(left, right, unit, exact_terms, 1.0, 0, math.prod(shape)).reshape(shape)

    def scaled_product(
        self, left: Array, right: Array, unit: Array, exact_terms: int, scale: Array | float, start: int, stop: int
    ) -> Array:
        """Fill whole rows block by block, or a part of one; a unit and a scale are one factor where that is exact."""
        columns = right.shape[1]
        first, last = start // columns, -(-stop // columns)
        left, start, stop = left[first:last], start - first * columns, stop - first * columns
        if last - first == 1:
            right, start, stop = right[:, start:stop], 0, stop - start
        scale, unit = np.float32(scale), np.float32(unit)
        factors = [scale * unit] if 2.0**-126 <= abs(scale * unit) < math.inf else [unit, scale]
        dtype = np.float32 if self.smooth else _sums_dtype(left, right, exact_terms)
        out = np.empty((last - first, right.shape[1]), dtype=np.float32)
        for block in self._products(left, right, dtype, out):
            rows = max(1, _CHUNK // block.shape[1])
            for row in range(0, len(block), rows):
                part = block[row : row + rows]
                for factor in factors:
                    np.multiply(part, factor, out=part)
                np.add(part, np.float32(0.0), out=part)  # -0 becomes +0
        w = out.reshape(-1)[start:stop]
        return w if w.size > 0.97 * out.size else w.copy()

    def _products(self, left: Array, right: Array, dtype: type, out: Array) -> Iterator[Array]:
        """Fill ``out`` with a product of integers, rounded once, and yield its blocks.

        Copies of the integers, in the type for sums, lie in the rows of ``out`` that are not filled yet; for the last
        rows, as many columns at a time are copied as there is room for.
        """
        (rows, columns), terms = out.shape, left.shape[1]
        wanted = terms * (columns + columns // 5 + 1)  # for all of the right factor, and some rows of the left one
        granted = max(2 * terms, self.block_elements, int(self.room_share * columns**2))
        spare = np.empty(wanted if dtype is np.float64 else min(wanted, granted), dtype=dtype)
        done = 0
        while done < rows:
            room, stop = spare, rows
            tail = min(-(-wanted // columns), (rows - done) // 2)
            if spare.size < min(wanted, tail * columns):
                room, stop = out[rows - tail :].reshape(-1), rows - tail
            step = max(1, min(stop - done, room.size // (6 * terms)))
            width = min(columns, room.size // terms - step)
            of_left = room[: step * terms].reshape(step, terms)
            of_right = room[step * terms :][: terms * width].reshape(terms, width)
            for c in range(0, columns, width):
                some = of_right[:, : columns - c]
                some[...] = right[:, c : c + width]
                for row in range(done, stop, step):
                    block, factor = out[row : min(row + step, stop), c : c + width], of_left[: stop - row]
                    factor[...] = left[row : row + len(block)]
                    np.matmul(factor, some, out=block, casting="same_kind")
                    yield block
            done = stop

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Go over rows of virtual weights for scale gradients, and over rows of cotangents for both factors.

        Returns None, for the plain way, where a value is not finite or a cotangent or scale is out of the ordinary.
        """
        pulled = None if self.smooth else _Pulled.of(left, right, gain, parts)
        if pulled is None:
            return None
        if pulled.wants_dots:
            self._dots(pulled, left.integers, right.integers, exact_terms)
        return *self._factors(pulled, left.integers, right.integers), pulled.of_scales()

    def _dots(self, pulled: _Pulled, left: Array, right: Array, exact_terms: int) -> None:
        """Add up the scale gradients."""
        side, dtype = len(left), _sums_dtype(left, right, exact_terms)
        step, whole = max(1, self.product_elements // side), right.astype(dtype)
        room, terms = np.empty((min(step, side), side), dtype=np.float32), np.empty(_CHUNK)
        for row in range(0, -(-pulled.stop // side), step):
            rows = left[row : row + step].astype(dtype)
            sums = np.matmul(rows, whole, out=room[: len(rows)], casting="same_kind")
            pulled.add_dots(sums.reshape(-1), row * side, terms)

    def _factors(self, pulled: _Pulled, left: Array, right: Array) -> tuple[Array, Array]:
        """Return the gradients of both factors, of as many terms at a time as there is room for."""
        side, terms = left.shape
        of_left = np.empty((side, terms), dtype=np.float32)
        of_right = np.empty((terms, side), dtype=np.float32)
        strip = -(-terms // -(-terms // max(1, int(self.strip_share * side))))  # as even as possible
        strip += -strip % _UNROLLED
        pieces = max(6 if strip >= terms else 10, side // 512)
        step, width = (min(side, max(-(-side // n), self.block_elements // side)) for n in (pieces, 6))
        q, part = np.empty((step, side), dtype=np.float32), np.empty(step * width)
        factor, total, room = np.empty((step, strip)), np.empty((strip, side)), np.empty(strip * width)
        end = -(-pulled.stop // side)
        for k in range(0, terms, strip):
            count = min(strip, terms - k)
            span, padded = slice(k, k + count), count + -count % _UNROLLED
            factor[:, count:] = total[...] = 0.0
            for row in range(0, end, step):
                rows = slice(row, min(row + step, end))
                block = rows.stop - row
                pulled.on_grid(q[:block].reshape(-1), row * side)
                factor[:block, :count] = left[rows, span]
                of_rows = np.zeros((block, padded))
                for c in range(0, side, width):
                    columns = slice(c, min(c + width, side))
                    wide = columns.stop - c
                    cotangents = part[: block * wide].reshape(block, wide)
                    cotangents[...] = q[:block, columns]
                    here = room[: padded * wide].reshape(padded, wide)
                    here[:count], here[count:] = right[span, columns], 0.0
                    of_rows += cotangents @ here.T
                    total[:padded, columns] += np.matmul(factor[:block, :padded].T, cotangents, out=here)
                of_left[rows, span] = round7(_DEFAULT, of_rows[:, :count] * pulled.left_unit)
            of_left[end:, span] = 0.0
            for some in range(0, count, 16):  # at once it would take as much memory again
                here = total[some : min(some + 16, count)]
                of_right[k + some : k + some + len(here)] = round7(_DEFAULT, here * pulled.right_unit)
        return of_left, of_right

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
            largest = _largest(g)
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
        self._totals = [0] * len(given)
        self._units: list[float] = []  # of scale gradients; 0 where there is nothing to add
        for tensor, _, _, largest in given:
            wanted = tensor.learn_scale and largest >= 2.0**-70
            self._units.append(
                bound * math.ldexp(1.0, math.frexp(largest)[1] - 53 + ceil_log2(tensor.size)) if wanted else 0.0
            )
        self._virtual = left_unit * right_unit * gain
        self.wants_dots = any(self._units)
        self.stop = given[-1][0].stop

    def on_grid(self, q: Array, start: int) -> None:
        """Write the cotangents of a range of cells, on their grid, float32.

        A scale and the unit are one factor: a power of two changes no rounding of what is not next to nothing, which
        the grid makes 0.
        """
        done = 0
        for k, cells, g in self._pieces(start, start + q.size):
            q[done : cells.start] = 0.0
            factor, done = self._given[k][1] * self._inverse, cells.stop
            for at in range(0, g.size, _CHUNK):
                to = q[cells][at : at + _CHUNK]
                np.multiply(g[at : at + _CHUNK], factor, out=to)
                np.rint(to, out=to)
        q[done:] = 0.0

    def add_dots(self, sums: Array, start: int, room: Array) -> None:
        """Add to the scale gradients what a range of cells has of them, whose integers are given.

        The sum of rounded products is one of 64-bit integers (section 13.7), but for tensors of few elements.
        """
        for k, cells, g in self._pieces(start, start + sums.size):
            unit = self._units[k] / self._virtual
            if not unit:
                continue
            few = self._given[k][0].size < _FEW
            g, v, magic = floor(_DEFAULT, g) if few else g, sums[cells], np.float64(_MAGIC * unit)
            for at in range(0, g.size, _CHUNK):
                part = g[at : at + _CHUNK]
                terms = np.multiply(part, v[at : at + _CHUNK], out=room[: part.size], dtype=np.float64)
                if few:
                    self._totals[k] += int(np.sum(np.rint(terms / unit)))
                else:
                    np.add(terms, magic, out=terms)
                    total = int(np.sum(terms.view(np.int64))) - part.size * int(magic.view(np.int64))
                    self._totals[k] += (total + 2**63) % 2**64 - 2**63  # as the sum wraps around

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


def _largest(x: Array) -> Array:
    """Return the largest magnitude in a flat array, NaN if there is one."""
    room = np.empty(min(x.size, _CHUNK), dtype=np.float32)
    found = np.float32(0.0)
    for at in range(0, x.size, _CHUNK):
        part = x[at : at + _CHUNK]
        found = np.maximum(found, np.max(np.abs(part, out=room[: part.size])))
    return found


def _sums_dtype(left: Array, right: Array, exact_terms: int) -> type:
    """Return float32 if it holds all sums, of the integers at hand if not of as many of any, else float64."""
    if left.shape[1] <= exact_terms:
        return np.float32
    rows = np.max(np.sum(np.abs(left), axis=1, dtype=np.float64))
    most = max(float(np.max(right)), -float(np.min(right)))
    return np.float32 if rows * most < 2.0**24 else np.float64
