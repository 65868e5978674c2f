"""The integers of a pool in few bytes: of frozen models, and of others between layers that are built one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from smh.backends.torch.kernels import TorchKernels
from smh.backends.torch.narrow import kernels_for
from smh.backends.torch.operators import no_autocast
from smh.core import generate, integers
from smh.core.grid import Grid
from smh.core.integers import Exponents
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.core.pools import Matmul

Packed = dict[str, Grid]


def pack(plan: Plan, variables: Mapping[str, Array]) -> Packed:
    """Return all arrays of the pool on their grids; the unit of a poisoned one is NaN, whatever its integers are."""
    grids = generate.put_on_grids(kernels_for(next(iter(variables.values()))), plan, variables)
    for leaf in plan.pool.leaves(plan.seed):
        dtype = torch.int8 if leaf.pool.grid_bits <= 7 else torch.int16
        for name in (leaf.path + local for local in leaf.pool.local_shapes()):
            grids[name] = grids[name]._replace(integers=grids[name].integers.to(dtype))
    return grids


def of_integers(plan: Plan, stored: Mapping[str, Array], exponents: Exponents) -> Packed:
    """Return the same from stored integers."""
    kernels = kernels_for(next(iter(stored.values())))
    return generate.grids_of(kernels, plan, integers.unpacked(kernels, plan, stored), exponents, cast=False)


def values(plan: Plan, stored: Mapping[str, Array], exponents: Exponents) -> dict[str, Array]:
    """Return the values of stored integers, float32, by the names of variables."""
    return integers.values(kernels_for(next(iter(stored.values()))), plan, stored, exponents)


def materialize(
    plan: Plan, packed: Packed, scales: Mapping[str, Array], names: Sequence[str], kernels: TorchKernels | None = None
) -> tuple[Array, ...]:
    """Return the named weights, with the bits of :func:`smh.core.generate.materialize`."""
    like = next(iter(packed.values())).integers
    if like.is_meta:  # shapes only
        return tuple(like.new_empty(t.viewed_shape, dtype=torch.float32) for t in plan.select(names))
    if kernels is None and not (isinstance(plan.pool, Matmul) and plan.pool.grid_bits <= 7):  # whose take integers
        packed = {name: one._replace(integers=one.integers.to(torch.float32)) for name, one in packed.items()}
    with no_autocast(like) if torch.is_autocast_enabled(like.device.type) else nullcontext():
        return tuple(generate.build(kernels or kernels_for(like), plan, packed, scales, plan.select(names)).values())
