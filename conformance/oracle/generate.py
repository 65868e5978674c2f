"""Weights, gradients and the digest of a plan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from conformance.oracle import pools, views
from conformance.oracle.bits import F32, I64, NAN, ROUND_7, bits_of, floor, from_bits, multiply, rounded, split
from conformance.oracle.grid import Grid, scale_gradient
from conformance.oracle.plans import Plan, Tensor, initial_scale, num_weights, parse, tensor_size

PADDING = 0x3C23D70A  # float32(0.01)


def virtual(plan: Plan | str, variables: Mapping[str, F32]) -> F32:
    """Virtual weights of the whole capacity (section 4)."""
    plan = parse(plan)
    return pools.virtual(plan["pool"], "pool", plan["seed"], variables)


def indices(plan: Plan | str, cells: npt.ArrayLike) -> dict[str, I64]:
    """Flat indices (cells, terms) into each pool variable that virtual weights read (section 4)."""
    plan = parse(plan)
    return pools.indices(plan["pool"], "pool", plan["seed"], cells)


def signs(plan: Plan | str, cells: npt.ArrayLike) -> dict[str, I64]:
    """Signs (cells, terms) of every hash table's terms (section 4)."""
    plan = parse(plan)
    return pools.signs(plan["pool"], "pool", plan["seed"], cells)


def grids(plan: Plan | str, variables: Mapping[str, F32]) -> dict[str, Grid]:
    """The arrays of the pool on their grids, in order (section 3.2)."""
    return pools.grids(parse(plan)["pool"], "pool", variables)


def cell_values(plan: Plan, variables: Mapping[str, F32]) -> F32:
    """What the cells of all tensors show, by the layout (section 5.2).

    Raises
    ------
    ValueError
        If the layout is `basic` and the tensors overflow the capacity.
    """
    v, N = virtual(plan, variables), num_weights(plan)
    if plan["layout"] == "cyclic":
        return np.asarray(v[np.arange(N) % v.size])
    if N > v.size and plan["layout"] == "basic":
        raise ValueError(f"{N} weights do not fit a capacity of {v.size}")
    return np.concatenate([v[:N], from_bits(np.full(max(0, N - v.size), PADDING))])


def tensor_cells(tensor: Tensor, cells: F32) -> F32:
    """The part of the concatenation that belongs to a tensor, a view into it (section 5.2)."""
    return cells[tensor["offset"] : tensor["offset"] + tensor_size(tensor)]


def cell_gradients(plan: Plan, dv: F32) -> F32:
    """Cotangent of the virtual weights from that of the tensors' cells (section 7.2)."""
    size = pools.capacity(plan["pool"])
    turns = [dv[start : start + size] for start in range(0, dv.size, size)]
    found = pools.add_ascending(turns, ROUND_7) if plan["layout"] == "cyclic" else turns[0]
    return np.concatenate([found, np.zeros(size - found.size, dtype=np.float32)])


def tensor_scale(tensor: Tensor, variables: Mapping[str, F32]) -> F32:
    """s, cleaned: the learned scale rho * 2**-kappa, or the fixed one of the rule (sections 3.4 and 6.1)."""
    rho = np.asarray(variables[f"scale/{tensor['name']}"] if tensor["learn_scale"] else initial_scale(tensor))
    if not np.isfinite(rho):
        return from_bits(NAN)
    m, k = split(rho)
    s = rounded(m, k - tensor["kappa"], -30)
    return s if np.abs(s) < 2.0**30 else from_bits(NAN)


def _modify(modifier: str, w: F32) -> F32:
    """Relu or sign; NaN stays (section 6.3)."""
    nan = np.isnan(w)
    if modifier == "relu":
        return np.where(nan | (w > 0), w, np.float32(0))
    return np.where(nan, w, np.where(w >= 0, np.float32(1), np.float32(-1)))


def _stages(tensor: Tensor, scale: F32, v: F32) -> list[F32]:
    """The scaled weight and what each modifier makes of it, in order (sections 3.4 and 6.3)."""
    stages = [multiply(scale, v)]
    for modifier in tensor["modifiers"]:
        stages.append(_modify(modifier, stages[-1]))
    return stages


def bounds(plan: Plan | str, variables: Mapping[str, F32]) -> dict[str, float]:
    """E of every tensor, -inf included; NaN where an array of the pool is poisoned or v not finite (section 4.6)."""
    plan = parse(plan)
    cells, capacity = cell_values(plan, variables), pools.capacity(plan["pool"])
    poisoned, found = any(one.unit is None for one in grids(plan, variables).values()), {}
    for tensor in plan["tensors"]:
        v = tensor_cells(tensor, cells)
        E = math.nan
        if not poisoned and np.isfinite(v).all():
            E = pools.bound(plan["pool"], "pool", variables, v)
            if plan["layout"] == "padding" and tensor["offset"] + v.size > capacity:
                E = max(E, -6)
        found[tensor["name"]] = E
    return found


def weights(plan: Plan | str, variables: Mapping[str, F32], view: bool = True) -> dict[str, F32]:
    """Weights of every tensor, viewed or in canonical shape (sections 3.4, 6 and 9)."""
    plan = parse(plan)
    cells, found = cell_values(plan, variables), {}
    for tensor in plan["tensors"]:
        w = _stages(tensor, tensor_scale(tensor, variables), tensor_cells(tensor, cells))[-1].reshape(tensor["shape"])
        found[tensor["name"]] = views.apply(tensor["view"], w) if view else w
    return found


def gradients(plan: Plan | str, variables: Mapping[str, F32], cotangents: Mapping[str, F32]) -> dict[str, F32]:
    """Gradients of all variables for cotangents of viewed shape (section 7).

    A tensor without a cotangent sends zeros to its cells and has a zero scale gradient, whatever its values.
    """
    plan = parse(plan)
    cells, E = cell_values(plan, variables), bounds(plan, variables)
    dcells = np.zeros(num_weights(plan), dtype=np.float32)
    dscales: dict[str, F32] = {}
    for tensor in plan["tensors"]:
        name, drho = tensor["name"], from_bits(0)
        if name in cotangents:
            G = floor(views.undo(tensor["view"], np.asarray(cotangents[name]), tensor["shape"]), ROUND_7).reshape(-1)
            s, v = tensor_scale(tensor, variables), tensor_cells(tensor, cells)
            for modifier, w in reversed(list(zip(tensor["modifiers"], _stages(tensor, s, v), strict=False))):
                if modifier == "relu":
                    G = np.where(w > 0, G, np.float32(0))
            tensor_cells(tensor, dcells)[:] = multiply(s, G, ROUND_7)
            drho = scale_gradient(G, v, E[name], tensor["kappa"])
        if tensor["learn_scale"]:
            dscales[f"scale/{name}"] = drho
    return pools.gradient(plan["pool"], "pool", plan["seed"], variables, cell_gradients(plan, dcells)) | dscales


def digest(plan: Plan | str, variables: Mapping[str, F32]) -> str:
    """SHA-256 over canonical shapes and weights before the view (section 11)."""
    plan = parse(plan)
    sha = hashlib.sha256()
    for tensor, w in zip(plan["tensors"], weights(plan, variables, view=False).values(), strict=True):
        sha.update((",".join(map(str, tensor["shape"])) + "\n").encode("ascii"))
        bits = np.where(np.isnan(w), NAN, bits_of(w))
        sha.update(bits.astype("<u4").tobytes())
    return sha.hexdigest()
