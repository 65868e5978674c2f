"""NumPy's kernels: small integer types and cache-sized blocks, with the bits of the default kernels."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from smh.backends.pulled import Pulled, areas
from smh.core.grid import Grid
from smh.core.kernels import Array, Kernels, round7

_CHUNK = 1 << 16  # elements that stay in the cache during several passes

_UNROLLED = 8  # rows or columns that BLAS computes at a time; other numbers take longer

_DEFAULT = Kernels(np)


class NumpyKernels(Kernels):
    """Kernels for NumPy arrays."""

    array_types = np.ndarray, np.memmap, np.float32  # masks and matrices behave differently
    block_elements = 1 << 18
    """The approximate number of virtual weights computed at a time."""
    product_elements = 1 << 20
    """The same for products of whole rows, which are faster with more rows."""
    room_share = 0.055
    """The memory always available for float32 copies of integers, as a share of the elements of a product."""
    strip_share = 0.066
    """The maximum number of terms with float64 sums at a time, as a share of the rows of a pool."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(np, smooth)

    def device(self, x: Array) -> str:
        """Return ``"cpu"``, the only device."""
        return "cpu"

    def largest(self, x: Array) -> Array:
        """Read the array once, without a copy."""
        return _largest(np.reshape(x, -1))

    def rounded(self, x: Array, factor: Array, bits: int, clip: bool = False) -> Array:
        """Use one byte for integers of up to 7 bits, and two bytes for up to 15 bits."""
        held = np.float32 if bits > 15 or np.isnan(factor) else np.int16 if bits > 7 else np.int8
        flat, q, room = np.reshape(x, -1), np.empty(x.size, dtype=held), np.empty(min(x.size, _CHUNK), dtype=np.float32)
        for at in range(0, x.size, _CHUNK):
            part = flat[at : at + _CHUNK]
            here = np.multiply(part, factor, out=room[: part.size])
            np.rint(here, out=here)
            q[at : at + _CHUNK] = np.clip(here, 1.0 - 2.0**bits, 2.0**bits - 1.0, out=here) if clip else here
        return q.reshape(x.shape)

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Compute the result block by block."""
        shape = left.shape[0], right.shape[1]
        (found,) = self.scaled_products(left, right, unit, exact_terms, [(1.0, 0, math.prod(shape))])
        return found.reshape(shape)

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Compute adjacent parts in one array and return views of it."""
        columns, results = right.shape[1], []
        breaks = [k for k in range(1, len(parts)) if parts[k][1] != parts[k - 1][2]]
        for first, last in itertools.pairwise([0, *breaks, len(parts)]):
            start, stop = parts[first][1], parts[last - 1][2]
            row, end = start // columns, -(-stop // columns)
            some = right[:, start - row * columns : stop - row * columns] if end - row == 1 else right
            origin = start if end - row == 1 else row * columns
            here = [(scale, begin - origin, end - origin) for scale, begin, end in parts[first:last]]
            w = self._scaled(left[row:end], some, np.float32(unit), exact_terms, here).reshape(-1)
            results += [
                w[begin:end] if len(here) > 1 or end - begin > 0.97 * w.size else w[begin:end].copy()
                for _, begin, end in here
            ]
        return results

    def _scaled(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> Array:
        """Return a product with each part scaled. Unit and scale are one factor if that is exact."""
        out = np.empty((left.shape[0], right.shape[1]), dtype=np.float32)
        scaled = []
        for scale, start, stop in parts:
            factor = np.float32(scale) * unit
            factors = [factor] if 2.0**-126 <= abs(factor) < math.inf else [unit, np.float32(scale)]
            scaled += [(factors, *area) for area in areas(start, stop, right.shape[1])]
        ends = [rows.stop for _, rows, _ in scaled]
        dtype = np.float32 if self.smooth else _sums_dtype(left, right, exact_terms)
        for row, column, block in self._products(left, right, dtype, out):
            for factors, rows, columns in scaled[bisect.bisect_right(ends, row) :]:
                if rows.start >= row + len(block):
                    break
                some = block[_within(rows, row), _within(columns, column)]
                step = max(1, _CHUNK // max(1, some.shape[1]))
                for k in range(0, some.shape[0], step):
                    part = some[k : k + step]
                    for factor in factors:
                        np.multiply(part, factor, out=part)
                    np.add(part, np.float32(0.0), out=part)  # -0 becomes +0
        return out

    def _products(self, left: Array, right: Array, dtype: type, out: Array) -> Iterator[tuple[int, int, Array]]:
        """Fill ``out`` with a product of integers, rounded once, and yield its blocks with their positions.

        Copies of the integers, in the type of sums, are in the rows of ``out`` that are not filled yet. For the last
        rows, as many columns at a time are copied as fit.
        """
        (rows, columns), terms = out.shape, left.shape[1]
        wanted = terms * (columns + columns // 5 + 1)  # for the whole right factor and some rows of the left factor
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
                    yield row, c, block
            done = stop

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Compute scale gradients by rows of virtual weights, and gradients of both factors by rows of cotangents.

        Returns None, for the default, if a value is not finite or a cotangent or scale is outside the usual range.
        """
        pulled = None if self.smooth else Pulled.of(self, left, right, gain, parts, _CHUNK)
        if pulled is None:
            return None
        if pulled.wants_dots:
            self._dots(pulled, left.integers, right.integers, exact_terms)
        return *self._factors(pulled, left.integers, right.integers), pulled.of_scales()

    def _dots(self, pulled: Pulled, left: Array, right: Array, exact_terms: int) -> None:
        """Add up the scale gradients."""
        side, dtype = len(left), _sums_dtype(left, right, exact_terms)
        step, whole = max(1, self.product_elements // side), right.astype(dtype)
        room = np.empty((min(step, side), side), dtype=np.float32)
        for row in range(0, -(-pulled.stop // side), step):
            rows = left[row : row + step].astype(dtype)
            sums = np.matmul(rows, whole, out=room[: len(rows)], casting="same_kind")
            pulled.add_dots(sums.reshape(-1), row * side)

    def _factors(self, pulled: Pulled, left: Array, right: Array) -> tuple[Array, Array]:
        """Return the gradients of both factors, for as many terms at a time as memory allows."""
        side, terms = left.shape
        of_left = np.empty((side, terms), dtype=np.float32)
        of_right = np.empty((terms, side), dtype=np.float32)
        strip = -(-terms // -(-terms // max(1, int(self.strip_share * side))))  # of nearly equal size
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
            for some in range(0, count, 16):  # in one step it would take as much memory again
                here = total[some : min(some + 16, count)]
                of_right[k + some : k + some + len(here)] = round7(_DEFAULT, here * pulled.right_unit)
        return of_left, of_right

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Use ``bincount`` with weights."""
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


def _within(some: slice, first: int) -> slice:
    """Return the slice of a range in a block with a given start."""
    return slice(max(0, some.start - first), max(0, some.stop - first))


def _largest(x: Array) -> Array:
    """Return the largest magnitude in a flat array, NaN if any element is NaN."""
    room = np.empty(min(x.size, _CHUNK), dtype=np.float32)
    largest = np.float32(0.0)
    for at in range(0, x.size, _CHUNK):
        part = x[at : at + _CHUNK]
        largest = np.maximum(largest, np.max(np.abs(part, out=room[: part.size])))
    return largest


def _sums_dtype(left: Array, right: Array, exact_terms: int) -> type:
    """Return float32 if it holds all sums, of any integers of these bits or of the present ones; else float64."""
    if left.shape[1] <= exact_terms:
        return np.float32
    rows = np.max(np.sum(np.abs(left), axis=1, dtype=np.float64))
    most = max(float(np.max(right)), -float(np.min(right)))
    return np.float32 if rows * most < 2.0**24 else np.float64
