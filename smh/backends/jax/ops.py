"""What the core needs of JAX beyond the array API."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as xp

from smh.ops import Array, Ops


class JaxOps(Ops):
    """Blocks are steps of a loop inside of the compiled program, so that memory is bounded there as well."""

    accelerator_elements = 1 << 24
    """Elements of a block away from the CPU, where every block costs the start of its kernels."""

    def __init__(self) -> None:
        super().__init__(xp)

    def device(self, x: Array) -> None:
        """Return None: JAX places arrays where those are that they meet."""
        return None

    def map_rows(self, fn: Callable[[Array], Array], x: Array, width: int) -> Array:
        """Fill one float32 array block by block; where the function is elementwise, the array of its arguments."""
        first, step, blocks = self._split(x.shape[0], width)
        head = xp.astype(fn(x[:first]), xp.float32)
        if blocks == 0:
            return head
        in_place = width == 1

        def fill(i: Array, out: Array) -> Array:
            start = first + i * step
            rows = jax.lax.dynamic_slice_in_dim(out if in_place else x, start, step)
            return jax.lax.dynamic_update_slice_in_dim(out, xp.astype(fn(rows), xp.float32), start, 0)

        if in_place:
            out = jax.lax.dynamic_update_slice_in_dim(x, head, 0, 0)
        else:
            # Padded, not written into an empty array: what goes round the loop must be placed as the blocks are.
            missing = [(0, x.shape[0] - first, 0)] + [(0, 0, 0)] * (head.ndim - 1)
            out = jax.lax.pad(head, xp.zeros((), dtype=xp.float32), missing)
        return jax.lax.fori_loop(0, blocks, fill, out)

    def sum_rows(
        self, fn: Callable[..., Array], xs: tuple[Array, ...], width: int, start: int = 0, stop: int | None = None
    ) -> Array:
        """Add blocks to the first one."""
        first, step, blocks = self._split((xs[0].shape[0] if stop is None else stop) - start, width)
        after = start + first
        total = fn(*(x[start:after] for x in xs))
        if blocks == 0:
            return total

        def add(i: Array, total: Array) -> Array:
            return total + fn(*(jax.lax.dynamic_slice_in_dim(x, after + i * step, step) for x in xs))

        return jax.lax.fori_loop(0, blocks, add, total)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in the type of ``x``: whatever the order, sums of such float64 integers are exact."""
        return jax.ops.segment_sum(x, segments, num_segments=size)

    def block_rows(self, rows: int, width: int) -> int:
        """Return how many rows a block has, where programs run by default."""
        elements = self.block_elements if jax.default_backend() == "cpu" else self.accelerator_elements
        return max(1, min(rows, elements // max(1, width)))

    def _split(self, rows: int, width: int) -> tuple[int, int, int]:
        """Return the rows of the first block, those of each further block, and how many further blocks there are."""
        blocks = -(-rows // self.block_rows(rows, width))
        step = rows // blocks
        return rows - step * (blocks - 1), step, blocks - 1
