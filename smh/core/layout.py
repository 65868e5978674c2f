"""Layouts: the map from cells to virtual weights, and cotangents back (specification, sections 5.2 and 7.2)."""

from __future__ import annotations

from collections.abc import Callable

from smh.core.kernels import Array, Kernels

LAYOUTS = ("basic", "cyclic", "padding")
PADDING = 0.01
"""The value of cells beyond the capacity, in float32."""
PADDING_EXPONENT = -6
"""The exponent of a power of two above it."""


def cells(
    kernels: Kernels, layout: str, capacity: int, read: Callable[[int, int], Array], start: int, stop: int
) -> Array:
    """Return the values of cells ``start`` to ``stop``, at least one. ``read`` returns ranges of virtual weights."""
    xp = kernels.xp
    if stop <= capacity:
        return read(start, stop)
    if layout == "cyclic":
        first, last = start // capacity, -(-stop // capacity)
        if last - first == 1:
            return read(start - first * capacity, stop - first * capacity)
        return xp.concat([read(0, capacity)] * (last - first))[start - first * capacity : stop - first * capacity]
    like = read(min(start, capacity - 1), capacity)
    padding = xp.full((stop - max(start, capacity),), PADDING, dtype=xp.float32, device=kernels.device(like))
    return padding if start >= capacity else xp.concat([like, padding])


def cotangents(kernels: Kernels, layout: str, capacity: int, dv: Array) -> Array:
    """Return the cotangents of all virtual weights, shape (capacity,), given those of all cells, shape (N,)."""
    xp, count = kernels.xp, dv.shape[0]
    if count >= capacity and (layout == "padding" or count == capacity):
        return dv[:capacity]
    turns = -(-count // capacity)
    missing = turns * capacity - count
    if missing:
        dv = xp.concat([dv, xp.zeros((missing,), dtype=xp.float32, device=kernels.device(dv))])
    if turns == 1:
        return dv
    rows = xp.reshape(dv, (turns, capacity))
    return kernels.add([rows[turn, :] for turn in range(turns)])
