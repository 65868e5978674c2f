"""Cotangents and scale gradients for kernels that compute all gradients of a matmul pool in blocks.

For namespaces whose functions accept ``out``: NumPy, and eager PyTorch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smh.core.grid import Grid, ceil_log2
from smh.core.kernels import Array, Kernels, floor, round7

if TYPE_CHECKING:
    from smh.core.generate import Part

_FEW = 5  # below this number of elements, the floor of cotangents affects a scale gradient (section 13.7)
_MAGIC = 1.5 * 2.0**52  # added to a float64 number, it leaves the nearest integer in the last bits


@dataclass(eq=False)
class Pulled:
    """The cotangents of all tensors, and partial sums of their scale gradients.

    The gradient of a factor is a sum of integers times a unit. ``stop`` is the end of the last cell with a cotangent.
    ``wants_dots`` is true if any scale gradient is needed.
    """

    kernels: Kernels
    device: Any
    chunk: int  # cells that stay in the cache during several passes
    parts: Sequence[Part]
    given: list[Any]  # the parts with a cotangent
    left_unit: float
    right_unit: float
    virtual: float  # the unit of virtual weights
    factors: list[float]  # from cotangents to integers, by powers of two, which do not change the rounding
    units: list[float]  # of scale gradients; 0 if nothing is added

    @classmethod
    def of(
        cls, kernels: Kernels, left: Grid, right: Grid, gain: float, parts: Sequence[Part], chunk: int
    ) -> Pulled | None:
        """Return None if a value is not finite, or a cotangent or scale is outside the usual range."""
        xp, given = kernels.xp, [part for part in parts if part.g is not None]
        scalars = [left.unit, right.unit, left.power, right.power]
        scalars += [part.scale for part in given] + [kernels.largest(part.g) for part in given]
        device = kernels.device(left.unit)
        numbers = xp.stack([xp.asarray(x, dtype=xp.float32, device=device) for x in scalars]).tolist()  # all at once
        of_left, of_right, *powers = numbers[:4]
        scales, largest = numbers[4 : 4 + len(given)], numbers[4 + len(given) :]
        sizes, tops = np.float32(np.abs(scales)), np.float32(largest)
        if not (math.isfinite(of_left + of_right) and np.all(tops < 2.0**90) and np.all(sizes <= 2.0**28)):
            return None  # also for NaN
        top = float(np.max(sizes * tops, initial=0.0))
        fraction, exponent = math.frexp(top)
        exponent += fraction > 1.0 - 2.0**-22
        if not (2.0**-70 <= top and exponent <= 90):
            return None
        unit = math.ldexp(1.0, exponent - 22)
        bound = math.prod(powers) * gain * 2.0 ** ceil_log2(left.integers.shape[1])
        units = [
            bound * math.ldexp(1.0, math.frexp(x)[1] - 53 + ceil_log2(part.tensor.size))
            if part.tensor.learn_scale and x >= 2.0**-70
            else 0.0
            for part, x in zip(given, largest, strict=True)
        ]
        return cls(
            kernels,
            device,
            chunk,
            parts,
            given,
            left_unit=unit * of_right * gain,
            right_unit=unit * of_left * gain,
            virtual=of_left * of_right * gain,
            factors=[s / unit for s in scales],
            units=units,
        )

    def __post_init__(self) -> None:
        """Set all sums to 0."""
        xp, device = self.kernels.xp, self.device
        self.wants_dots, self.stop = any(self.units), self.given[-1].tensor.stop
        self.totals = xp.zeros((len(self.given),), dtype=xp.int64, device=device)
        self.room = xp.empty((self.chunk,), dtype=xp.float32, device=device)
        self.starts = [part.tensor.offset for part in self.given]

    def on_grid(self, q: Array, start: int) -> None:
        """Write the cotangents of a range of cells, on their grid."""
        xp, done = self.kernels.xp, 0
        for k, cells, g in self._pieces(start, start + q.shape[0], self.chunk):
            q[done : cells.start] = 0.0
            here, done = self.room[: g.shape[0]], cells.stop
            xp.multiply(g, self.factors[k], out=here)
            q[cells] = xp.round(here, out=here)
        q[done:] = 0.0

    def add_dots(self, sums: Array, start: int) -> None:
        """Add the terms of a range of cells to the scale gradients, given the sums of integers of the cells.

        Rounded products are added as 64-bit integers, which may wrap around on the way (section 13.7). Each integer is
        in the last bits of a float64 number. Not for tensors of few elements.
        """
        xp, size = self.kernels.xp, sums.shape[0]
        wide = xp.empty((2, min(size, self.chunk)), dtype=xp.float64, device=self.device)
        for k, cells, g in self._pieces(start, start + size, self.chunk):
            unit, few = self.units[k] / self.virtual, self.given[k].tensor.size < _FEW
            if not unit:
                continue
            a, b = wide[:, : g.shape[0]]
            a[...] = floor(self.kernels, g) if few else g
            b[...] = sums[cells]
            xp.multiply(a, b, out=a)
            if few:
                self.totals[k] += xp.sum(xp.astype(xp.round(a / unit), xp.int64))
            else:
                xp.add(a, _MAGIC * unit, out=a)
                bits = int(np.float64(_MAGIC * unit).view(np.int64)) * g.shape[0]
                self.totals[k : k + 1] += xp.sum(a.view(xp.int64))
                self.totals[k : k + 1] -= (bits + 2**63) % 2**64 - 2**63

    def of_scales(self) -> list[Array]:
        """Return the gradients of all scale variables."""
        xp, kernels, device = self.kernels.xp, self.kernels, self.device
        units = [unit * 2.0**-part.tensor.kappa for unit, part in zip(self.units, self.given, strict=True)]
        units = xp.asarray(units, dtype=xp.float64, device=device)
        totals = round7(kernels, xp.astype(self.totals, xp.float64) * units)
        named = {part.tensor.name: totals[k] for k, part in enumerate(self.given)}
        zero = xp.zeros((), dtype=xp.float32, device=device)
        # Each in separate memory, because callers may write to a gradient.
        return [xp.asarray(named.get(part.tensor.name, zero), device=device, copy=True) for part in self.parts]

    def _pieces(self, start: int, stop: int, most: int) -> Iterator[tuple[int, slice, Array]]:
        """Iterate over pieces of tensors in a range of cells: number, cells of the range, cotangents."""
        for k in range(max(0, bisect.bisect_right(self.starts, start) - 1), len(self.given)):
            tensor, _, g = self.given[k]
            if tensor.offset >= stop:
                break
            for at in range(max(start, tensor.offset), min(stop, tensor.stop), most):
                end = min(at + most, stop, tensor.stop)
                yield k, slice(at - start, end - start), g[at - tensor.offset : end - tensor.offset]


def areas(start: int, stop: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Split a range of cells, counted row by row, into at most three areas in order, as rows and columns."""
    while start < stop:
        row, column = divmod(start, columns)
        rows = max(1, (stop - start) // columns) if column == 0 else 1
        width = min(columns - column, stop - start)
        yield slice(row, row + rows), slice(column, column + width)
        start += rows * width
