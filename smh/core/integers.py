"""The pool as integers: what frozen models hold, and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from smh.core import generate
from smh.core.grid import Grid
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan

Exponents = dict[str, int | None]
"""Exponents of grids by the names of arrays without ``pool/``; None if all integers are 0."""
NIBBLE_BITS, BYTE_BITS = 4, 8


def pool_arrays(plan: Plan) -> Iterator[tuple[str, int, tuple[int, ...], int | None]]:
    """Iterate over the arrays of a pool: variable, bits, shape and fixed exponent or None."""
    for leaf in plan.pool.leaves(plan.seed):
        for number, (name, shape) in enumerate(leaf.pool.local_shapes().items()):
            yield f"pool/{leaf.path}{name}", leaf.pool.grid_bits + 1, shape, leaf.pool.exponent(number)


def stored_arrays(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and the shape in which the integers of every array are stored, by the names of variables.

    Integers of at most 4 bits are two to a byte, the one of even index in the low half.

    Examples
    --------
    >>> stored_arrays(Plan.build({"fc": (20, 5)}, ratio=0.4, bits=4))
    {'pool/left': ('uint8', (10,)), 'pool/right': ('uint8', (10,))}
    """
    return {name: stored_as(bits, shape) for name, bits, shape, _ in pool_arrays(plan)}


def stored_as(bits: int, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and the shape in which the integers of one array are stored."""
    if bits <= NIBBLE_BITS:
        return "uint8", (-(-math.prod(shape) // 2),)
    return ("int8" if bits <= BYTE_BITS else "int16"), shape


def unpacked(kernels: Kernels, plan: Plan, stored: Mapping[str, Array]) -> dict[str, Array]:
    """Return the integers of every array in its shape, int8 or int16, by its name without ``pool/``.

    Parameters
    ----------
    kernels : Kernels
        The namespace of the arrays.
    plan : Plan
        The plan.
    stored : mapping of str to array
        The integers as :func:`stored_arrays` describes them, by the names of variables; other names are not read.
    """
    xp, found = kernels.xp, {}
    for name, bits, shape, _ in pool_arrays(plan):
        q = stored[name]
        if bits <= NIBBLE_BITS:
            q = xp.astype(q, xp.int32)  # divided, because not every runtime shifts bytes
            high = xp.floor_divide(q, 16)
            q = xp.reshape(xp.stack([q - 16 * high, high], axis=1), (-1,))[: math.prod(shape)]
            q = xp.reshape(xp.astype(xp.where(q > 7, q - 16, q), xp.int8), shape)
        found[name.removeprefix("pool/")] = q
    return found


def grids(
    kernels: Kernels, plan: Plan, stored: Mapping[str, Array], exponents: Mapping[str, int | None]
) -> dict[str, Grid]:
    """Return the grids of a pool from its stored integers, for :func:`smh.core.generate.build`."""
    return generate.grids_of(kernels, plan, unpacked(kernels, plan, stored), exponents)


def values(
    kernels: Kernels, plan: Plan, stored: Mapping[str, Array], exponents: Mapping[str, int | None]
) -> dict[str, Array]:
    """Return the values of stored integers, float32, by the names of variables: a grid gives the integers again."""
    found = grids(kernels, plan, stored, exponents)
    return {f"pool/{name}": one.integers * one.unit + 0.0 for name, one in found.items()}
