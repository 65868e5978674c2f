"""Fast arithmetic: the framework's own float32 products and sums, with no promise about bits (section 3.4).

The functions are those of :mod:`smh.exact` that pools and scales call, by the same names. All of them are ordinary
differentiable array code, from which frameworks take second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from smh.ops import Array, Finish, Ops, Part
from smh.stripes import Stripe

__all__ = [
    "dot",
    "dot_with_flushed",
    "factor_gradients",
    "flush",
    "flushed_times",
    "join",
    "map_own",
    "map_rows",
    "multiply",
    "right",
    "rounded",
    "segment_sums",
    "wide",
]


def flush(xp: Any, x: Array) -> Array:
    """Return ``x``: where no bits are promised, tiny numbers do no harm."""
    return x


def flushed_times(ops: Ops, scale: Array | float) -> Finish:
    """Return what multiplies."""
    return lambda x: x * scale


def rounded(xp: Any, x: Array) -> Array:
    """Return ``x``: it is float32 already."""
    return x


def wide(xp: Any, x: Array) -> Array:
    """Return ``x``: terms are added in float32."""
    return x


def map_rows(ops: Ops, fn: Callable[[Array], Array], x: Array, width: int, place: Array | None = None) -> Array:
    """Return ``fn(x)``: in one piece where it may be differentiated again."""
    return ops.map_rows(fn, x, width, place=place) if ops.in_place else fn(x)


def map_own(ops: Ops, fn: Callable[[Array], Array], x: Array) -> Array:
    """Return ``fn(x)``."""
    return ops.map_own(fn, x) if ops.in_place else fn(x)


def join(ops: Ops, parts: Sequence[Part], like: Array) -> Array:
    """Concatenate vectors."""
    return ops.join(parts, like)


def right(ops: Ops, b: Array) -> Array:
    """Return ``b``: there is nothing to prepare."""
    return b


def multiply(ops: Ops, a: Array, b: Array, first: int, stop: int, finish: Finish | None = None) -> Array:
    """Return columns ``first`` to ``stop`` of the float32 product of ``a``, shape (p, K), and ``b``, shape (K, q)."""
    found = ops.xp.matmul(a, b[:, first:stop])
    if finish is None:
        return found
    return ops.xp.reshape(map_own(ops, finish, ops.xp.reshape(found, (-1,))), found.shape)


def factor_gradients(ops: Ops, left: Array, b: Array, stripes: Iterable[Stripe]) -> tuple[Array, Array]:
    """Return the gradients of both factors of ``left @ b``; the arguments are those of the exact form."""
    xp = ops.xp
    transposed = xp.matrix_transpose(b)
    of_left, of_right, first = [], None, 0
    for stripe in stripes:
        g = stripe.of(stripe.rows)
        of_left.append(xp.matmul(g, transposed))
        rows = xp.matrix_transpose(left[first : first + g.shape[0], :])
        of_right = xp.matmul(rows, g) if of_right is None else ops.add_product(of_right, rows, g)
        first += g.shape[0]
        del stripe, g  # before the next ones are made
    return of_left[0] if len(of_left) == 1 else xp.concat(of_left), of_right


def dot(ops: Ops, a: Array, c: Array) -> Array:
    """Return the float32 dot product of two vectors of shape (K,)."""
    return ops.xp.sum(a * c)


dot_with_flushed = dot


def segment_sums(
    ops: Ops, xs: tuple[Array, ...], terms: Callable[..., tuple[Array, Array]], size: int, count: int
) -> Array:
    """Return float32 sums per segment; the arguments are those of :func:`smh.exact.segment_sums`."""
    if ops.in_place:
        return ops.segment_sums(terms, xs, max(1, count // xs[0].shape[0]), size)
    x, segments = terms(*xs)
    return ops.segment_sum(x, segments, size)
