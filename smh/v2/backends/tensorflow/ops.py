"""What the core needs of TensorFlow beyond its namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from smh.v2.backends.tensorflow import namespace as xp
from smh.v2.core.kernels import Array, Finish, Ops


class TensorFlowOps(Ops):
    """Tensors, with hash words in int64: unsigned tensors have no operators.

    Blocks follow one another also in a graph, as a loop of it: so the graph stays small and its temporaries too.
    """

    def __init__(self) -> None:
        super().__init__(xp)

    @property
    def word_dtype(self) -> Any:
        """int64."""
        return tf.int64

    def device(self, x: Array) -> None:
        """Return None: TensorFlow places what it makes."""
        return None

    def is_false(self, flag: Array) -> bool:
        """Look at the flag where that costs nothing: at an eager tensor on the host."""
        return isinstance(flag, tf.__internal__.EagerTensor) and "CPU" in flag.device and not flag

    def settled(self, x: Array) -> Array:
        """Return ``x``, in a graph from a loop: of all things, XLA makes only its result just once."""
        return x if tf.executing_eagerly() else _loop(0, 2, lambda i, y: tf.maximum(x, y), x)

    def map_rows(
        self,
        fn: Callable[[Array], Array],
        x: Array,
        width: int,
        elements: int | None = None,
        place: Array | None = None,
        finish: Finish | None = None,
    ) -> Array:
        """Put blocks of one size behind one another; the last is filled up, and the result cut."""
        rows = x.shape[0]
        count = -(-rows // self.block_rows(rows, width, elements))
        step = -(-rows // count)
        count = -(-rows // step)
        last = self._result(fn, x[(count - 1) * step :, ...], finish)
        if count == 1:
            return last
        rest = last.shape[1:]
        last = tf.pad(last, [(0, count * step - rows)] + [(0, 0)] * len(rest))

        def block(i: Array | int) -> Array:
            return self._result(fn, _rows(x, i * step, step), finish)

        blocks = (_stack_eagerly if tf.executing_eagerly() else _stack_in_loop)(block, last, count)
        return tf.reshape(blocks, (count * step, *rest))[:rows, ...]

    def fold_rows(
        self,
        fn: Callable[..., Array],
        combine: Callable[[Array, Array], Array],
        xs: tuple[Array, ...],
        width: int = 1,
        elements: int | None = None,
    ) -> Array:
        """Combine block after block with the first; in a graph in a loop of it."""
        rows = xs[0].shape[0]
        step = self.block_rows(rows, width, elements)
        count = rows // step
        if tf.executing_eagerly() or count == 1:
            return super().fold_rows(fn, combine, xs, width, elements)

        def add(i: Array, total: Array) -> Array:
            return combine(total, fn(*(_rows(x, i * step, step) for x in xs)))

        total = _loop(1, count, add, fn(*(x[:step, ...] for x in xs)))
        rest = count * step
        return combine(total, fn(*(x[rest:, ...] for x in xs))) if rest < rows else total

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in the type of ``x``: whatever the order, sums of such float64 integers are exact."""
        return tf.math.unsorted_segment_sum(x, segments, size)


def _stack_eagerly(block: Callable[[int], Array], last: Array, count: int) -> Array:
    """Return blocks 0 to count - 2 and the last one, written into the place where they stay."""
    out = tf.raw_ops.Empty(shape=(count, *last.shape), dtype=last.dtype)
    for i in range(count):
        part = last if i == count - 1 else block(i)
        out = tf.raw_ops.InplaceUpdate(x=out, i=[i], v=part[None])
    return out


def _stack_in_loop(block: Callable[[Array], Array], last: Array, count: int) -> Array:
    """Return blocks 0 to count - 2 and the last one, from a loop of the graph."""
    parts = tf.TensorArray(last.dtype, count, element_shape=last.shape).write(count - 1, last)
    return _loop(0, count - 1, lambda i, parts: parts.write(i, block(i)), parts).stack()


def _loop(start: int, stop: int, step: Callable[[Array, Any], Any], state: Any) -> Any:
    """Apply ``step`` to each integer and the state, one after another."""
    _, state = tf.while_loop(
        lambda i, _: i < stop,
        lambda i, state: (i + 1, step(i, state)),
        (tf.constant(start), state),
        parallel_iterations=1,
    )
    return state


def _rows(x: Array, start: Array | int, step: int) -> Array:
    """Return ``step`` rows."""
    rest = x.shape[1:]
    return tf.slice(x, tf.stack([start, *(0 for _ in rest)]), (step, *rest))
