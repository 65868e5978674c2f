"""PyTorch's kernels: hash words in int64, sums by segment, and matmul pools in cache-sized blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import array_api_compat.torch as xp
import torch

from smh.backends.pulled import Pulled, areas
from smh.backends.torch.compilers import compiles
from smh.backends.torch.int8 import ByteSums, WideSums, available
from smh.core.grid import Grid
from smh.core.kernels import Array, Kernels, round7

_OF_8_BITS = 1024
"""The number of terms of which float32 holds every sum with 8 bits; it is smaller with more bits."""


class TorchKernels(Kernels):
    """Kernels for tensors on any device.

    The factors of float32 products are integers of at most 9 bits, which every unit that PyTorch may select for them
    (TF32, bfloat16 with float32 sums) holds exactly, so no precision setting for products changes a bit. Autocast would
    also round results to float16 or bfloat16, and is disabled while these kernels run.

    Blocks are written in place. When compiling, the default kernels are used, which the compiler fuses itself.
    """

    tile_elements = 1 << 19
    """The maximum number of virtual weights computed at a time on a CPU."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(xp, smooth)

    @property
    def word_dtype(self) -> Any:
        """int64: the unsigned types of PyTorch have no arithmetic."""
        return torch.int64

    def device(self, x: Array) -> torch.device:
        """Return the device of a tensor."""
        return x.device

    def largest(self, x: Array) -> Array:
        """Read the tensor once."""
        if not self._in_place(x):
            return torch.max(torch.abs(x))  # which ONNX has, unlike amax of all axes; a NaN stays
        least, most = torch.aminmax(x)
        return torch.maximum(least.abs(), most.abs())

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Compute rows shared by several parts once, and scale a block while it is in the cache.

        Integers may have small integer types.
        """
        if self.smooth or not self._in_place(left):
            left, right = left.to(torch.float32), right.to(torch.float32)
            return super().scaled_products(left, right, unit, exact_terms, parts)
        columns = right.shape[1]
        unit, *scales = self._numbers([unit, *(scale for scale, _, _ in parts)], left)
        results = [left.new_empty(stop - start, dtype=torch.float32) for _, start, stop in parts]
        dtype, zero = self._dtype(left, right, exact_terms), left.new_zeros(1, dtype=torch.float32)
        for rows, some in _bands(parts, columns):
            for cell, sums in self._rows(left, right, dtype, rows):
                end = cell + len(sums)
                for k in some:
                    _, start, stop = parts[k]
                    a, b = max(start, cell), min(stop, end)
                    if a < b:
                        here = results[k][a - start : b - start]
                        v, factor = sums[a - cell : b - cell], unit * scales[k]
                        if not 2.0**-126 <= abs(factor) < math.inf:
                            v, factor = v.to(torch.float32) * unit, scales[k]
                        torch.add(zero, v, alpha=factor, out=here)  # -0 becomes +0
                    elif start >= end:
                        break
        return results

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Use float32 also if only the present integers allow it. Integers may have small integer types."""
        if not left.dtype.is_floating_point:
            left, right = left.to(torch.float32), right.to(torch.float32)
        if not self.smooth and self._in_place(left) and self._sums_dtype(left, right, exact_terms) == torch.float32:
            exact_terms = left.shape[1]
        return super().product(left, right, unit, exact_terms)

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Read the cotangents once, by blocks of rows."""
        given = [part.g for part in parts if part.g is not None]
        if not given or not all(map(self._in_place, (left.integers, right.integers, *given))):
            return None
        if self.smooth:
            return self._fast_gradients(left.integers, right.integers, gain, parts)
        pulled = Pulled.of(self, left, right, gain, parts, self._chunk(left.integers))
        if pulled is None:
            return None
        side = len(left.integers)
        dtype = self._dtype(left.integers, right.integers, exact_terms)
        sums: Any = (ByteSums if dtype == torch.int8 else WideSums)(left.integers, right.integers)
        of_left = torch.zeros_like(left.integers)
        rows = slice(0, -(-pulled.stop // side))
        step = self._step(left.integers, side) * sums.blocks
        room = left.integers.new_empty((min(step, rows.stop), side), dtype=sums.dtype)
        virtual: Any = (
            self._rows(sums.left, sums.right, dtype, rows, step)
            if pulled.wants_dots
            else ((row * side, None) for row in range(0, rows.stop, step))
        )
        for cell, v in virtual:
            here = slice(cell // side, min(cell // side + step, rows.stop))
            q = room[: here.stop - here.start]
            if v is not None:
                pulled.add_dots(v, cell)
            pulled.on_grid(q.view(-1), cell)
            of_left[here] = round7(self, sums.add(q, here).mul_(pulled.left_unit))
        total = sums.total()
        return of_left, round7(self, total.mul_(pulled.right_unit)), pulled.of_scales()

    def _fast_gradients(
        self, left: Array, right: Array, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]]:
        """Return all gradients in float32.

        The scale gradient of a tensor is the inner product of the left factor and its unscaled gradient from the
        tensor.
        """
        of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
        owners, shares = list[int](), list[Array]()
        factors = self._numbers([part.scale for part in parts], left)
        for k, (tensor, _, g) in enumerate(parts):
            for rows, columns in areas(tensor.offset, tensor.stop, len(left)) if g is not None else ():
                width = columns.stop - columns.start
                size = (rows.stop - rows.start) * width
                some, g, of_rows, here = g[:size].view(-1, width), g[size:], of_left[rows], left[rows]
                pulled = torch.mm(some, right[:, columns].T)
                owners.append(k)
                shares.append(torch.sum(torch.linalg.vecdot(pulled, here)))
                of_rows.add_(pulled, alpha=factors[k])
                of_right[:, columns].addmm_(here.T, some, alpha=factors[k])
        of_scales = left.new_zeros(len(parts)).index_add_(
            0, torch.tensor(owners, device=left.device), torch.stack(shares)
        )
        of_scales *= of_scales.new_tensor([gain * 2.0**-part.tensor.kappa for part in parts])
        return of_left.mul_(gain), of_right.mul_(gain), [x.clone() for x in of_scales]

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in any order: sums of these float64 integers are exact."""
        return torch.zeros((size,), dtype=x.dtype, device=x.device).scatter_add(0, segments, x)

    def counts(self, x: Array, size: int) -> Array:
        """Count by index."""
        ones = x.new_ones((), dtype=torch.int64).expand(x.shape)
        return x.new_zeros(size, dtype=torch.int64).scatter_add(0, x.to(torch.int64), ones).to(torch.float32)

    def _rows(
        self, left: Array, right: Array, dtype: torch.dtype, rows: slice, step: int | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Iterate over blocks of a product of integers: the first cell, and the sums, flat, float32 or int32."""
        columns = right.shape[1]
        step = step or self._step(left, columns)
        right = right.to(dtype)
        is_bytes = dtype == torch.int8
        small = is_bytes and left.shape[1] <= _OF_8_BITS  # larger sums are rounded
        room = right.new_empty((min(step, rows.stop - rows.start), columns), dtype=torch.int32 if is_bytes else dtype)
        product = torch._int_mm if is_bytes else torch.mm
        for row in range(rows.start, rows.stop, step):
            some = left[row : min(row + step, rows.stop)].to(dtype)
            sums = product(some, right, out=room[: len(some)]).view(-1)
            yield row * columns, sums if small else sums.to(torch.float32)

    def _numbers(self, scalars: Sequence[Array | float], like: Array) -> list[float]:
        """Return float32 scalars of a device as Python numbers, in one transfer."""
        one: list[float] = torch.stack(
            [torch.as_tensor(x, dtype=torch.float32, device=like.device) for x in scalars]
        ).tolist()
        return one

    def _step(self, x: Array, columns: int) -> int:
        """Return the number of rows computed at a time."""
        return max(1, (self.tile_elements if x.device.type == "cpu" else 1 << 24) // columns)

    def _chunk(self, x: Array) -> int:
        """Return the number of elements that stay in the cache during several passes."""
        return (1 << 16) * torch.get_num_threads() if x.device.type == "cpu" else 1 << 24

    def _in_place(self, x: Array) -> bool:
        """Return whether a tensor allows in-place computation and reading its values."""
        return not (
            compiles()
            or type(x) not in (torch.Tensor, torch.nn.Parameter)
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
            or x.device.type not in ("cpu", "cuda")
            or (x.requires_grad and torch.is_grad_enabled())
            or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        )

    def bytes_multiply(self) -> bool:
        """Return whether the CPU multiplies bytes exactly and fast."""
        return available()

    def _dtype(self, left: Array, right: Array, exact_terms: int) -> torch.dtype:
        """Return the type of factors to multiply: int8 where the CPU does so, else that of :meth:`_sums_dtype`."""
        if exact_terms >= _OF_8_BITS and left.device.type == "cpu" and ByteSums.holds(left) and self.bytes_multiply():
            return torch.int8
        return self._sums_dtype(left, right, exact_terms)

    def _sums_dtype(self, left: Array, right: Array, exact_terms: int) -> torch.dtype:
        """Return float32 if it holds all sums, of any integers of these bits or of the present ones; else float64."""
        if left.shape[1] <= exact_terms:
            return torch.float32
        if not exact_terms:  # units for float32 products may not hold the integers
            return torch.float64
        most = left.abs().sum(dim=1, dtype=torch.float64).max() * self.largest(right)
        return torch.float32 if most < 2.0**24 else torch.float64


def _bands(parts: Sequence[tuple[Array | float, int, int]], columns: int) -> Iterator[tuple[slice, list[int]]]:
    """Iterate over contiguous rows that contain parts, with the numbers of these parts."""
    rows, some = slice(0, 0), list[int]()
    for k in sorted(range(len(parts)), key=lambda k: parts[k][1]):
        first, stop = parts[k][1] // columns, -(-parts[k][2] // columns)
        if some and first > rows.stop:
            yield rows, some
            some = []
        rows = slice(rows.start if some else first, stop)
        some.append(k)
    yield rows, some
