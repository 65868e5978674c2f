"""Kernels for compiling frameworks: long products in float32, and all gradients of a matmul pool by blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from smh.core.grid import Grid, ceil_log2, grid
from smh.core.kernels import Array, Kernels, add_up, floor, round7

if TYPE_CHECKING:
    from smh.core.generate import Part
    from smh.core.tensors import TensorSpec

_FEW = 5  # below this number of elements, the floor of cotangents affects a scale gradient (section 13.7)
_POWERS = [2.0**e for e in range(-69, 91)]


class BlockKernels(Kernels):
    """Kernels with static shapes and small temporaries.

    Apart from products, allocating memory takes most of the time.
    """

    block_elements = 1 << 20
    """The minimum number of virtual weights of a matmul pool per block of gradients."""
    smooth_elements = block_elements
    """The same for smooth gradients."""
    most_blocks = 16
    """The maximum number of these blocks, which keeps programs small."""

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Add exact float32 products in int32, which holds sums of 127 of them."""
        xp, terms = self.xp, left.shape[1]
        if self.smooth or not exact_terms < terms <= 127 * exact_terms:
            return super().product(left, right, unit, exact_terms)
        step = -(-terms // -(-terms // exact_terms))
        sums = [xp.matmul(left[:, k : k + step], right[k : k + step, :]) for k in range(0, terms, step)]
        total = xp.astype(add_up([xp.astype(x, xp.int32) for x in sums]), xp.float32)
        return xp.where(xp.isfinite(sums[0]), total, sums[0]) * unit  # either all integers are NaN or none

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Part]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Compute all gradients in one pass over the rows. The largest cotangents determine all units beforehand."""
        xp, (side, terms) = self.xp, left.integers.shape
        given = [part for part in parts if part.g is not None]
        if not given:
            return None
        scale = xp.stack([s if t.learn_scale else xp.asarray(s, dtype=xp.float32) for t, s, _ in given])
        kappas = [2.0**-part.tensor.kappa for part in given]
        blocks = functools.partial(self._by_blocks, given, side, terms, exact_terms)
        arrays: tuple[Array, ...]
        if self.smooth:
            arrays = left.unit, scale, left.integers, right.integers
            of_left, of_right, dots = blocks(xp.float32, _Block.smooth_gradients, *arrays)
            of_left, of_right = of_left * gain, of_right * gain
            of_scales = dots * xp.asarray([kappa * gain for kappa in kappas], dtype=xp.float32)
        else:
            largest = xp.stack([self.largest(g) for _, _, g in given])
            q = grid(self, self.times(scale, largest), 22, 70, 90)  # with the unit of all cotangents
            left_unit, right_unit, q_unit = (xp.astype(x.unit, xp.float64) for x in (left, right, q))

            bound = xp.astype(left.power, xp.float64) * xp.astype(right.power, xp.float64)
            bound = bound * gain * 2.0 ** ceil_log2(terms)
            zero = (largest < 2.0**-70) | (bound == 0.0)
            shares = xp.asarray([2.0 ** (ceil_log2(part.tensor.size) - 53) for part in given], dtype=xp.float64)
            unit = xp.where(zero, 1.0, self._powers_above(largest) * bound * shares)

            inverse = xp.where(q.power == 0.0, 0.0, 1.0 / q.unit)
            of_v = xp.astype(left_unit * right_unit * gain / unit, xp.float32)
            arrays = inverse, scale, of_v, left.integers, right.integers, xp.astype(right.integers, xp.float64)
            of_left, of_right, dots = blocks(xp.float64, _Block.gradients, *arrays)
            of_left = round7(self, of_left * (q_unit * right_unit * gain))
            of_right = round7(self, of_right * (q_unit * left_unit * gain))
            of_scales = round7(self, dots * (unit * xp.asarray(kappas, dtype=xp.float64)))
            sound = xp.isfinite(left.unit + right.unit) & (largest < 2.0**90)
            of_scales = xp.where(sound, xp.where(zero, 0.0, of_scales), math.nan)
        named = {part.tensor.name: of_scales[k] for k, part in enumerate(given)}
        nothing = xp.zeros((), dtype=xp.float32)
        return of_left, of_right, [named.get(part.tensor.name, nothing) for part in parts]

    def _by_blocks(
        self,
        given: Sequence[Part],
        side: int,
        terms: int,
        exact_terms: int,
        dtype: Any,
        gradients: Callable[..., tuple[Array, Array, list[Array]]],
        *arrays: Array,
    ) -> tuple[Array, Array, Array]:
        """Return the sums of all blocks: of the left factor, of the right factor, and of the scales of tensors."""
        xp, of_left, of_right = self.xp, [], self.xp.zeros((terms, side), dtype=dtype)
        dots: list[list[Array]] = [[] for _ in given]
        elements = self.smooth_elements if self.smooth else self.block_elements
        step = min(side, max(-(-elements // side), -(-side // self.most_blocks)))
        for first in range(0, -(-given[-1].tensor.stop // side), step):
            block = _Block(self, given, first, min(first + step, side), side, exact_terms)
            run = functools.partial(gradients, block)
            rows, of_right, here = self.alone(run, *arrays, of_right, block.cotangents)
            of_left.append(rows)
            for (k, *_), dot in zip(block.pieces, here, strict=True):
                dots[k].append(dot)
        computed = sum(rows.shape[0] for rows in of_left)
        if computed < side:
            of_left.append(xp.zeros((side - computed, terms), dtype=dtype))
        return xp.concat(of_left), of_right, xp.stack([add_up(some) for some in dots])

    def alone(self, fn: Callable[..., Any], *arrays: Any) -> Any:
        """Return ``fn(*arrays)``, whose temporaries need not coexist with those of other calls.

        The first array has one element, NaN or nonnegative.
        """
        return fn(*arrays)

    def transposed(self, x: Array) -> Array:
        """Return the transpose of a matrix, in the memory order that is fastest in products."""
        return self.xp.matrix_transpose(x)

    def dot_of_integers(self, g: Array, v: Array) -> Array:
        """Return the sum of ``rint(g * v)`` of float32 values, float64, as :meth:`dot`."""
        xp = self.xp
        return xp.sum(xp.round(xp.astype(g, xp.float64) * xp.astype(v, xp.float64)))

    def _powers_above(self, x: Array) -> Array:
        """Return ``2**e`` with ``2**(e-1) <= x < 2**e``, float64, for elements from 2**-70 to 2**90; else any value."""
        xp = self.xp
        below = xp.reshape(x, (-1, 1)) >= xp.reshape(xp.asarray(_POWERS, dtype=xp.float32), (1, -1))
        count = xp.sum(xp.astype(below, xp.int64), axis=1)
        return xp.take(xp.asarray([*_POWERS, math.nan], dtype=xp.float64), count)


def _rows_of(start: int, stop: int, side: int) -> Iterator[tuple[int, int]]:
    """Cut a range of cells into the end of a row, whole rows, and the beginning of a row."""
    for end in (min(-(-start // side) * side, stop), max(stop // side * side, start), stop):
        if start < end:
            yield start, end
            start = end


class _Block:
    """Rows of a pool, and the pieces of tensors in their cells."""

    def __init__(
        self, kernels: BlockKernels, given: Sequence[Part], first: int, last: int, side: int, exact_terms: int
    ) -> None:
        self.kernels, self.rows, self.side, self.exact_terms = kernels, slice(first, last), side, exact_terms
        self.start, self.stop = first * side, last * side
        self.pieces = []
        self.cotangents = []
        for k, (tensor, _, g) in enumerate(given):
            at, end = max(tensor.offset, self.start), min(tensor.stop, self.stop)
            if at < end:
                self.pieces.append((k, tensor, at, end))
                self.cotangents.append(g)

    def gradients(
        self,
        inverse: Array,
        scale: Array,
        of_v: Array,
        left: Array,
        right: Array,
        wide_right: Array,
        of_right: Array,
        cotangents: list[Array],
    ) -> tuple[Array, Array, list[Array]]:
        """Return sums for rows of the left factor, for the right factor including previous sums, and for scales."""
        kernels, xp = self.kernels, self.kernels.xp
        rows, dots, joined, done = left[self.rows, :], [], [], 0
        v = xp.reshape(kernels.product(rows, right, 1.0, self.exact_terms), (-1,))
        for k, tensor, cells, g in self._cut(cotangents):
            if tensor.learn_scale:
                floored = floor(kernels, g) if tensor.size < _FEW else g
                dots.append(kernels.dot_of_integers(floored, v[cells] * of_v[k]))
            else:
                dots.append(xp.zeros((), dtype=xp.float64))
            if done < cells.start:
                joined.append(xp.zeros((cells.start - done,), dtype=xp.float32))
            # Scale and unit are one factor: a power of two does not change the rounding of values that do not become 0.
            joined.append(xp.round(floor(kernels, g) * (scale[k] * inverse)))
            done = cells.stop
        if done < self.stop - self.start:
            joined.append(xp.zeros((self.stop - self.start - done,), dtype=xp.float32))
        q = xp.astype(xp.reshape(xp.concat(joined), (-1, self.side)), xp.float64)
        of_left = xp.matmul(q, xp.matrix_transpose(wide_right))
        return of_left, of_right + xp.matmul(kernels.transposed(xp.astype(rows, xp.float64)), q), dots

    def smooth_gradients(
        self, _: Array, scale: Array, left: Array, right: Array, of_right: Array, cotangents: list[Array]
    ) -> tuple[Array, Array, list[Array]]:
        """Return the same in float32 and without units, by two products.

        A row of the pool that lies in one tensor is scaled after the products. So its share of the scale gradient is
        what the product gives for the left factor times that factor. Rows that tensors share are scaled before.
        """
        xp, side, rows = self.kernels.xp, self.side, left[self.rows, :]
        joined, factors, done = [], [], 0
        inside: list[slice] = []  # the rows that lie in one tensor alone
        shared: list[tuple[int, int, slice, Array]] = []  # piece, row, columns and cotangents of the other ones

        def join(x: Array, factor: Array, stop: int) -> None:
            nonlocal done
            starts = -(-stop // side) - -(-done // side)  # of rows
            joined.append(x)
            factors.append(factor * xp.ones((starts,), dtype=xp.float32))
            done = stop

        def pad(stop: int) -> None:
            if done < stop:
                join(xp.zeros((stop - done,), dtype=xp.float32), 1.0, stop)

        for piece, (k, _, cells, g) in enumerate(self._cut(cotangents)):
            pad(cells.start)
            first = -(-cells.start // side)
            inside.append(slice(first, max(first, cells.stop // side)))
            for start, stop in _rows_of(cells.start, cells.stop, side):
                some, row = g[start - cells.start : stop - cells.start], start // side
                if start % side == stop % side == 0:
                    join(some, scale[k], stop)
                else:
                    join(scale[k] * some, 1.0, stop)
                    shared.append((piece, row, slice(start - row * side, stop - row * side), some))
        pad(rows.shape[0] * side)

        q, factor = xp.reshape(xp.concat(joined), (-1, side)), xp.reshape(xp.concat(factors), (-1, 1))
        pulled = xp.matmul(q, xp.matrix_transpose(right))
        by_row = xp.sum(pulled * rows, axis=1)
        dots = [xp.sum(by_row[some]) for some in inside]
        if shared:
            numbers = sorted({row for _, row, _, _ in shared})
            v = xp.matmul(xp.take(rows, xp.asarray(numbers), axis=0), right)
            for piece, row, columns, g in shared:
                dots[piece] = dots[piece] + xp.sum(g * v[numbers.index(row), columns])
        return pulled * factor, of_right + xp.matmul(xp.matrix_transpose(rows * factor), q), dots

    def _cut(self, cotangents: list[Array]) -> Iterator[tuple[int, TensorSpec, slice, Array]]:
        """Iterate over the pieces: number and tensor of a part, its cells in the block, and their cotangents."""
        for (k, tensor, at, end), g in zip(self.pieces, cotangents, strict=True):
            yield k, tensor, slice(at - self.start, end - self.start), g[at - tensor.offset : end - tensor.offset]
