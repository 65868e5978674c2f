"""The integers of a pool in few bytes: what a model whose weights are built layer by layer keeps between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from smh.backends.torch.autograd import no_autocast
from smh.backends.torch.narrow import kernels_for
from smh.core import generate
from smh.core.grid import Grid
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


def materialize(plan: Plan, packed: Packed, variables: Mapping[str, Array], names: Sequence[str]) -> tuple[Array, ...]:
    """Return the named weights, with the bits of :func:`smh.core.generate.materialize`."""
    like = next(iter(variables.values()))
    if not (isinstance(plan.pool, Matmul) and plan.pool.grid_bits <= 7):  # whose kernels take these integers
        packed = {name: one._replace(integers=one.integers.to(torch.float32)) for name, one in packed.items()}
    with no_autocast(like):
        return tuple(generate.build(kernels_for(like), plan, packed, variables, plan.select(names)).values())
