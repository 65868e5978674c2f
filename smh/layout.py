"""Layouts: how tensors are allotted to virtual weights (specification, section 5.2).

The tensors of a plan, one after another, are cells 0, 1, 2, ... A layout says which virtual weight a cell shows:
``basic`` the one of its own number, ``cyclic`` that number modulo the capacity, ``padding`` the one of its own number
or, past the capacity, a constant.
"""

from __future__ import annotations

from smh.grid import rounded
from smh.ops import Array, Finish, Ops
from smh.pools import BoundPool

LAYOUTS = ("basic", "cyclic", "padding")
PADDING = 0.01
"""What cells past the capacity show in the ``padding`` layout, rounded to float32."""


def read(ops: Ops, layout: str, pool: BoundPool, start: int, stop: int, finish: Finish | None = None) -> Array:
    """Return cells ``start`` to ``stop``, reading just the virtual weights that they show.

    Parameters
    ----------
    ops : Ops
        The namespace of the pool's variables.
    layout : str
        One of ``LAYOUTS``.
    pool : BoundPool
        The pool with its values.
    start, stop : int
        The range of cells, not empty.
    finish : callable, optional
        What becomes of them, elementwise; see :meth:`smh.pools.BoundPool.read`.

    Returns
    -------
    array, shape (stop - start,), float32
    """
    capacity = pool.capacity
    if stop <= capacity:
        return pool.read(start, stop, finish)
    if layout == "padding":
        xp = ops.xp
        within = pool.read(min(start, capacity - 1), capacity, finish)  # at least one, which tells the device
        padding = xp.full((stop - max(start, capacity),), PADDING, dtype=xp.float32, device=ops.device(within))
        padding = padding if finish is None else finish(padding)
        return padding if start >= capacity else xp.concat([within, padding])
    return _read_cyclic(ops, pool, start, stop, finish)


def _read_cyclic(ops: Ops, pool: BoundPool, start: int, stop: int, finish: Finish | None) -> Array:
    """Return a head, whole cycles and a tail; nothing is computed twice."""
    capacity = pool.capacity
    head, tail = start % capacity, stop % capacity
    cycles = stop // capacity - -(-start // capacity)  # whole ones within the range; -1: the range lies inside one
    if cycles < 0:
        return pool.read(head, tail, finish)
    if cycles > 0:
        cycle = pool.read(0, capacity, finish)
        parts = [cycle[head:]] if head else []
        parts += [cycle] * cycles
        parts += [cycle[:tail]] if tail else []
    else:
        parts = [pool.read(head, capacity, finish)] if head else []
        parts += [pool.read(0, tail, finish)] if tail else []
    return parts[0] if len(parts) == 1 else ops.xp.concat(parts)


def filled(layout: str, capacity: int, total: int) -> int:
    """Return to how many cells ``total`` are filled up with zeros: each virtual weight is then shown equally often."""
    count = min(total, capacity) if layout == "padding" else total
    return max(total, -(-count // capacity) * capacity)


def scatter(ops: Ops, layout: str, capacity: int, cells: Array) -> Array:
    """Return the cotangent of every virtual weight, given that of all cells: the transpose of reading them all.

    Parameters
    ----------
    ops : Ops
        The namespace of the cotangents.
    layout : str
        One of ``LAYOUTS``.
    capacity : int
        How many virtual weights there are.
    cells : array, shape (filled,), float32
        Flushed cotangents of all cells, as many as :func:`filled` says.

    Returns
    -------
    array, shape (capacity,), float32
        Where several cells show one virtual weight, theirs added in float64, ascending, and rounded once.
    """
    xp = ops.xp
    if layout == "padding" or cells.shape[0] == capacity:
        return cells[:capacity]
    rows = xp.reshape(cells, (cells.shape[0] // capacity, capacity))
    sums = xp.astype(rows[0, :], xp.float64)
    for cycle in range(1, rows.shape[0]):
        sums = sums + xp.astype(rows[cycle, :], xp.float64)
    return rounded(xp, sums)
