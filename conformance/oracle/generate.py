"""Weights, gradients and the digest of a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from conformance.oracle import pools, views
from conformance.oracle.bits import F32, F64, I64, NAN, bits_of, flush, from_bits, multiply, round32
from conformance.oracle.exact import exact_dot
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


def cell_values(plan: Plan, variables: Mapping[str, F32]) -> F32:
    """v of the concatenation of all tensors, by the layout (section 5.2).

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


def cell_gradients(plan: Plan, dv: F32) -> F32:
    """Cotangent of the virtual weights from that of the tensors' cells (section 5.2).

    Cyclic: the cells of one virtual weight are added in float64, ascending, and rounded once (rule 7).
    """
    size = pools.capacity(plan["pool"])
    if plan["layout"] != "cyclic" or dv.size <= size:
        used = dv[:size]
        return np.concatenate([used, np.zeros(size - used.size, dtype=np.float32)])
    total: F64 = dv[:size].astype(np.float64)
    with np.errstate(invalid="ignore"):
        for start in range(size, dv.size, size):
            turn = dv[start : start + size]
            total[: turn.size] += turn.astype(np.float64)
    return round32(total)


def tensor_scale(tensor: Tensor, variables: Mapping[str, F32]) -> F32:
    """The learned scale, or the fixed one of the rule, flushed (section 6.1)."""
    return flush(variables[f"scale/{tensor['name']}"] if tensor["learn_scale"] else initial_scale(tensor))


def _modify(modifier: str, w: F32) -> F32:
    """Relu or sign; NaN stays (section 6.3)."""
    nan = np.isnan(w)
    if modifier == "relu":
        return np.where(nan | (w > 0), w, np.float32(0))
    return np.where(nan, w, np.where(w >= 0, np.float32(1), np.float32(-1)))


def _stages(tensor: Tensor, scale: F32, v: F32) -> list[F32]:
    """The scaled weight and what each modifier makes of it, in order (section 6)."""
    stages = [multiply(scale, v)]
    for modifier in tensor["modifiers"]:
        stages.append(_modify(modifier, stages[-1]))
    return stages


def weights(plan: Plan | str, variables: Mapping[str, F32], view: bool = True) -> dict[str, F32]:
    """Weights of every tensor, viewed or in canonical shape (sections 4, 5 and 7)."""
    plan = parse(plan)
    cells, found = cell_values(plan, variables), {}
    for tensor in plan["tensors"]:
        v = cells[tensor["offset"] : tensor["offset"] + tensor_size(tensor)]
        w = _stages(tensor, tensor_scale(tensor, variables), v)[-1].reshape(tensor["shape"])
        found[tensor["name"]] = views.apply(tensor["view"], w) if view else w
    return found


def gradients(plan: Plan | str, variables: Mapping[str, F32], cotangents: Mapping[str, F32]) -> dict[str, F32]:
    """Gradients of all variables for cotangents of viewed shape (sections 3, 4 and 5).

    A tensor without a cotangent sends zeros to its cells and has a zero scale gradient, whatever its scale.
    """
    plan = parse(plan)
    cells = cell_values(plan, variables)
    dv = np.zeros(num_weights(plan), dtype=np.float32)
    scale_gradients: dict[str, F32] = {}
    for tensor in plan["tensors"]:
        name, start, stop = tensor["name"], tensor["offset"], tensor["offset"] + tensor_size(tensor)
        if name not in cotangents:
            if tensor["learn_scale"]:
                scale_gradients[f"scale/{name}"] = from_bits(0)
            continue
        G = flush(views.undo(tensor["view"], np.asarray(cotangents[name]), tensor["shape"])).reshape(-1)
        scale, v = tensor_scale(tensor, variables), cells[start:stop]
        stages = _stages(tensor, scale, v)
        for modifier, w in reversed(list(zip(tensor["modifiers"], stages, strict=False))):
            if modifier == "relu":
                G = np.where(w > 0, G, np.float32(0))
        dv[start:stop] = multiply(scale, G)
        if tensor["learn_scale"]:
            scale_gradients[f"scale/{name}"] = exact_dot(G, v)
    found = pools.gradient(plan["pool"], "pool", plan["seed"], variables, cell_gradients(plan, dv))
    return found | scale_gradients


def digest(plan: Plan | str, variables: Mapping[str, F32]) -> str:
    """SHA-256 over canonical shapes and weights before the view (section 11)."""
    plan = parse(plan)
    sha = hashlib.sha256()
    for tensor, w in zip(plan["tensors"], weights(plan, variables, view=False).values(), strict=True):
        sha.update((",".join(map(str, tensor["shape"])) + "\n").encode("ascii"))
        bits = np.where(np.isnan(w), NAN, bits_of(w))
        sha.update(bits.astype("<u4").tobytes())
    return sha.hexdigest()
