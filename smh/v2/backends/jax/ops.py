"""What the core needs of JAX beyond the array API."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as xp

from smh.v2.core.kernels import Array, Finish, Ops, Part


class JaxOps(Ops):
    """Blocks are steps of a loop inside of the compiled program, so that memory is bounded there as well.

    Each loop waits for the one before: the compiler would hold the temporaries of all tensors at a time. So an object
    serves one trace, that of one function, and holds its last result.
    """

    strip_elements = 1 << 23
    """More than elsewhere: nothing makes the compiler finish one strip before it starts the next."""
    accelerator_elements = 1 << 24
    """Elements of a block away from the CPU, where every block costs the start of its kernels."""

    def __init__(self) -> None:
        super().__init__(xp)
        self._last: Array = None

    def device(self, x: Array) -> None:
        """Return None: JAX places arrays where those are that they meet."""
        return None

    def settled(self, x: Array) -> Array:
        """Return ``x`` from a loop of two steps, whose result the compiler computes just once."""
        return jax.lax.fori_loop(0, 2, lambda i, y: xp.maximum(x, y), x)

    def map_rows(
        self,
        fn: Callable[[Array], Array],
        x: Array,
        width: int,
        elements: int | None = None,
        place: Array | None = None,
        finish: Finish | None = None,
    ) -> Array:
        """Fill one float32 array block by block: that of the arguments, where results have their shape and type."""
        # To wait for a block is to wait for one element of it, which of a single block the compiler computes alone.
        least = 2 if width > 1 and x.shape[0] * width > self._most(elements) // 2 else 1
        first, step, blocks = self._split(x.shape[0], width, elements, least)
        start = 0 if width == 1 else _zero_after(self._last)  # what is elementwise follows what made its argument
        head = self._result(fn, jax.lax.dynamic_slice_in_dim(x, start, first), finish)
        in_place = x.dtype == head.dtype and x.shape[1:] == head.shape[1:]
        if blocks == 0:
            self._last = head
            return head
        # The compiler unrolls a loop of one step, which then has to be told to wait for the first block.
        second = first if in_place else first + _zero_after(head)

        def fill(i: Array, out: Array) -> Array:
            start = second + i * step
            rows = jax.lax.dynamic_slice_in_dim(out if in_place else x, start, step)
            return jax.lax.dynamic_update_slice_in_dim(out, self._result(fn, rows, finish), start, 0)

        if in_place:
            out = jax.lax.dynamic_update_slice_in_dim(x, head, 0, 0)
        else:
            # Padded, not written into an empty array: what goes round the loop must be placed as the blocks are.
            missing = [(0, x.shape[0] - first, 0)] + [(0, 0, 0)] * (head.ndim - 1)
            out = jax.lax.pad(head, xp.zeros((), dtype=xp.float32), missing)
        self._last = jax.lax.fori_loop(0, blocks, fill, out)
        return self._last

    def fold_rows(
        self,
        fn: Callable[..., Array],
        combine: Callable[[Array, Array], Array],
        xs: tuple[Array, ...],
        width: int = 1,
        elements: int | None = None,
    ) -> Array:
        """Combine the first block with each of the others."""
        first, step, blocks = self._split(xs[0].shape[0], width, elements)
        total = fn(*(x[:first] for x in xs))
        if blocks == 0:
            return total

        def add(i: Array, total: Array) -> Array:
            return combine(total, fn(*(jax.lax.dynamic_slice_in_dim(x, first + i * step, step) for x in xs)))

        return jax.lax.fori_loop(0, blocks, add, total)

    def transposed_matmul(self, a: Array, b: Array) -> Array:
        """Transpose in memory: a float64 product that reads its left operand by columns takes twice as long on CPUs."""
        return jax.lax.optimization_barrier(xp.matrix_transpose(a)) @ b

    def join_columns(self, parts: Sequence[Part], like: Array) -> Array:
        """Write one part after another into its place."""
        columns = sum(size for size, _ in parts)
        out, at = None, 0
        for _, make in parts:
            part = make(None)
            if out is None:
                out = jax.lax.pad(part, xp.zeros((), part.dtype), [(0, 0, 0), (0, columns - part.shape[1], 0)])
            else:
                out = jax.lax.dynamic_update_slice_in_dim(out, part, at, 1)
            at += part.shape[1]
        return out

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in the type of ``x``: whatever the order, sums of such float64 integers are exact."""
        return jax.ops.segment_sum(x, segments, num_segments=size)

    def block_rows(self, rows: int, width: int, elements: int | None = None) -> int:
        """Return how many rows a block has, where programs run by default."""
        return super().block_rows(rows, width, self._most(elements))

    def _most(self, elements: int | None) -> int:
        """Return about how many elements a block holds at most, where programs run by default."""
        on_cpu = jax.default_backend() == "cpu"
        return (elements or self.block_elements) if on_cpu else self.accelerator_elements

    def _split(self, rows: int, width: int, elements: int | None, least: int = 1) -> tuple[int, int, int]:
        """Return the rows of the first block, those of each further block, and how many further blocks there are."""
        blocks = max(min(rows, least), -(-rows // self.block_rows(rows, width, elements)))
        step = rows // blocks
        return rows - step * (blocks - 1), step, blocks - 1


def _zero_after(x: Array | None) -> Array | int:
    """Return a 0 that the compiler cannot know before an array is there: its own barriers order nothing."""
    if x is None:
        return 0
    bits = jax.lax.bitcast_convert_type(xp.reshape(x, (-1,))[0], xp.int32)
    return 1 + (bits >> 31) + (~bits >> 31)
