"""Pools: virtual weights, their bounds and gradients, and the explicit hash indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.oracle.bits import F32, F64, I64, ROUND_7, VIRTUAL, multiply, round32
from conformance.oracle.grid import Grid, ceil_log2, check_budget, grid, largest, product, scaled
from conformance.oracle.hashing import key, words

Pool = Mapping[str, Any]
Variables = Mapping[str, F32]


def parts(pool: Pool, prefix: str, seed: int) -> list[tuple[Pool, str, int]]:
    """Parts of a sum or product with their variable prefixes and seeds (section 4.4)."""
    return [(part, f"{prefix}/{p}", key(seed, 65536 + p)) for p, part in enumerate(pool["parts"])]


def capacity(pool: Pool) -> int:
    """Number of virtual weights (section 4); of a sum or product the smallest of its parts'."""
    kind = pool["kind"]
    if kind == "matmul":
        return int(pool["n"]) ** 2
    if kind == "kronecker":
        return int(pool["d"]) ** 4
    if kind == "hash":
        return int(pool["capacity"])
    return min(capacity(part) for part in pool["parts"])


def terms(pool: Pool) -> int:
    """M: inner dimension m, terms t, or hashes (section 4.5)."""
    return int(pool[{"matmul": "m", "kronecker": "t", "hash": "hashes"}[pool["kind"]]])


def pool_shapes(pool: Pool, prefix: str = "pool") -> dict[str, tuple[int, ...]]:
    """Shapes of the variables, in order (section 4)."""
    kind = pool["kind"]
    if kind == "matmul":
        n, m = pool["n"], pool["m"]
        return {f"{prefix}/left": (n, m), f"{prefix}/right": (m, n)}
    if kind == "kronecker":
        d, t = pool["d"], pool["t"]
        return {f"{prefix}/left": (t, d, d), f"{prefix}/right": (t, d, d)}
    if kind == "hash":
        return {f"{prefix}/table": (pool["hashes"], pool["size"])}
    shapes: dict[str, tuple[int, ...]] = {}
    for part, name, _ in parts(pool, prefix, 0):
        shapes |= pool_shapes(part, name)
    return shapes


def grids(pool: Pool, prefix: str, variables: Variables) -> dict[str, Grid]:
    """The arrays of the pool on their grids, in order (section 3.2)."""
    if pool["kind"] in ("sum", "product"):
        found: dict[str, Grid] = {}
        for part, name, _ in parts(pool, prefix, 0):
            found |= grids(part, name, variables)
        return found
    names = list(pool_shapes(pool, prefix))
    exponents = pool["exponents"] or [None] * len(names)
    return {name: grid(variables[name], pool["bits"] - 1, 30, 30, e) for name, e in zip(names, exponents, strict=True)}


def hash_positions(pool: Pool, seed: int, m: int, cells: npt.ArrayLike) -> I64:
    """h_m(i): the table column that hash m reads for cell i (section 4.3)."""
    return np.asarray(words(seed, 2 * m, cells) % pool["size"])


def hash_signs(pool: Pool, seed: int, m: int, cells: npt.ArrayLike) -> I64:
    """sigma_m(i): -1 where the word of stream 2m+1 is odd, else +1; +1 when unsigned (section 4.3)."""
    odd = words(seed, 2 * m + 1, cells) & 1
    return np.asarray(1 - 2 * odd) if pool["signed"] else np.ones_like(odd)


def add_ascending(terms: list[F32], low: int) -> F32:
    """Sum in float64, first term first, floored and rounded once (sections 2, 4.4 and 7.2).

    A term may be shorter than those before it.
    """
    total: F64 = terms[0].astype(np.float64)
    with np.errstate(invalid="ignore"):
        for term in terms[1:]:
            total[: term.size] += term.astype(np.float64)
    return round32(total, low)


def _factors(pool: Pool, prefix: str, variables: Variables) -> tuple[Grid, Grid]:
    """The two matrices whose product a matmul or kronecker pool is (sections 4.1 and 4.2)."""
    left, right = grids(pool, prefix, variables).values()
    if pool["kind"] == "kronecker":
        left = left._replace(integers=left.integers.reshape(pool["t"], -1).T)
        right = right._replace(integers=right.integers.reshape(pool["t"], -1))
    return left, right


def _transposed(x: Grid) -> Grid:
    return x._replace(integers=x.integers.T)


def _swap(x: npt.NDArray[Any], d: int) -> npt.NDArray[Any]:
    """Matrix with axes (i1 j1, i2 j2) to (i1 i2, j1 j2), or back: the exchange is its own inverse (section 4.2)."""
    return x.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(d * d, d * d)


def virtual(pool: Pool, prefix: str, seed: int, variables: Variables) -> F32:
    """Virtual weights of the pool's whole capacity (section 4)."""
    kind = pool["kind"]
    if kind in ("sum", "product"):
        size = capacity(pool)
        vs = [virtual(part, name, s, variables)[:size] for part, name, s in parts(pool, prefix, seed)]
        if kind == "sum":
            return add_ascending(vs, VIRTUAL)
        v = vs[0]
        for other in vs[1:]:
            v = multiply(v, other, VIRTUAL)
        return v
    if kind == "hash":
        (table,) = grids(pool, prefix, variables).values()
        cells = np.arange(pool["capacity"])
        total = np.zeros(cells.size, dtype=np.int64)
        for m in range(pool["hashes"]):
            total += hash_signs(pool, seed, m, cells) * table.integers[m, hash_positions(pool, seed, m, cells)]
        return scaled(total, [table], pool["gain"])
    v = product(*_factors(pool, prefix, variables), 2 * pool["gain"])
    return (_swap(v, pool["d"]) if kind == "kronecker" else v).reshape(-1)


def _multiplies(pool: Pool) -> bool:
    """True of a pool that is or contains a product (section 4.6)."""
    return pool["kind"] == "product" or any(_multiplies(part) for part in pool.get("parts", ()))


def bound(pool: Pool, prefix: str, variables: Variables, v: F32) -> float:
    """E with |v| <= 2**E, or -inf, for the cells of one tensor (section 4.6); no array is poisoned, v is finite.

    Padding is not taken into account.
    """
    kind = pool["kind"]
    if _multiplies(pool):
        m, k = largest(v)
        return ceil_log2(m) + k if m > 0 else -math.inf
    if kind == "sum":
        most = max(bound(part, name, variables, v) for part, name, _ in parts(pool, prefix, 0))
        return most + ceil_log2(len(pool["parts"]))
    exponents = [one.exponent for one in grids(pool, prefix, variables).values()]
    found = ceil_log2(terms(pool)) + len(exponents) * pool["gain"]
    return found + sum(-math.inf if e is None else e for e in exponents)


def gradient(pool: Pool, prefix: str, seed: int, variables: Variables, dv: F32) -> dict[str, F32]:
    """Gradients of the pool's variables for the cotangent dv of its virtual weights (sections 7.3 and 7.4).

    Where dv is shorter than the capacity, the further virtual weights get zeros.
    """
    kind, size = pool["kind"], capacity(pool)
    dv = np.concatenate([dv, np.zeros(size - dv.size, dtype=np.float32)])
    if kind in ("sum", "product"):
        children = parts(pool, prefix, seed)
        vs: list[F32] = []
        if kind == "product":
            vs = [virtual(part, name, s, variables)[:size] for part, name, s in children]
        found: dict[str, F32] = {}
        for p, (part, name, s) in enumerate(children):
            dpart = dv
            for q, other in enumerate(vs):
                if q != p:
                    dpart = multiply(dpart, other, ROUND_7)
            found |= gradient(part, name, s, variables, dpart)
        return found
    Q = grid(dv, 22, 70, 90)
    if kind == "hash":
        check_budget(size, Q.integers)
        cells, total = np.arange(size), np.zeros((pool["hashes"], pool["size"]), dtype=np.int64)
        for m in range(pool["hashes"]):
            np.add.at(total[m], hash_positions(pool, seed, m, cells), hash_signs(pool, seed, m, cells) * Q.integers)
        return {f"{prefix}/table": scaled(total, [Q], pool["gain"], ROUND_7)}
    left, right = _factors(pool, prefix, variables)
    n = math.isqrt(size)
    Q = Q._replace(integers=_swap(Q.integers, pool["d"]) if kind == "kronecker" else Q.integers.reshape(n, n))
    dleft = product(Q, _transposed(right), 2 * pool["gain"], ROUND_7)
    dright = product(_transposed(left), Q, 2 * pool["gain"], ROUND_7)
    shapes = pool_shapes(pool, prefix)
    gradients = dleft.T if kind == "kronecker" else dleft, dright
    return {name: x.reshape(shape) for (name, shape), x in zip(shapes.items(), gradients, strict=True)}


def _leaf_indices(pool: Pool, prefix: str, seed: int, cells: I64) -> dict[str, I64]:
    """Flat variable indices that a leaf pool's cells read, terms along the second axis (section 4.8)."""
    kind, i = pool["kind"], cells[:, None]
    if kind == "hash":
        columns = [m * pool["size"] + hash_positions(pool, seed, m, cells) for m in range(pool["hashes"])]
        return {f"{prefix}/table": np.stack(columns, axis=1)}
    if kind == "matmul":
        n, m = pool["n"], pool["m"]
        k = np.arange(m, dtype=np.int64)[None, :]
        return {f"{prefix}/left": i // n * m + k, f"{prefix}/right": k * n + i % n}
    d = pool["d"]
    t = np.arange(pool["t"], dtype=np.int64)[None, :]
    i1, i2, j1, j2 = i // d**3, i // d**2 % d, i // d % d, i % d
    return {f"{prefix}/left": (t * d + i1) * d + j1, f"{prefix}/right": (t * d + i2) * d + j2}


def _leaf_signs(pool: Pool, prefix: str, seed: int, cells: I64) -> dict[str, I64]:
    """Signs of a hash pool's terms; nothing for other leaves (section 4.8)."""
    if pool["kind"] != "hash":
        return {}
    columns = [hash_signs(pool, seed, m, cells) for m in range(pool["hashes"])]
    return {f"{prefix}/table": np.stack(columns, axis=1)}


def _collect(
    leaf: Callable[[Pool, str, int, I64], dict[str, I64]], pool: Pool, prefix: str, seed: int, cells: I64
) -> dict[str, I64]:
    if pool["kind"] not in ("sum", "product"):
        return leaf(pool, prefix, seed, cells)
    found: dict[str, I64] = {}
    for part, name, s in parts(pool, prefix, seed):
        found |= _collect(leaf, part, name, s, cells)
    return found


def indices(pool: Pool, prefix: str, seed: int, cells: npt.ArrayLike) -> dict[str, I64]:
    """Flat indices into each variable that the cells read, in the order of the terms (section 4.8)."""
    return _collect(_leaf_indices, pool, prefix, seed, np.asarray(cells, dtype=np.int64))


def signs(pool: Pool, prefix: str, seed: int, cells: npt.ArrayLike) -> dict[str, I64]:
    """Signs, one per term, of the hash tables among the variables (section 4.8)."""
    return _collect(_leaf_signs, pool, prefix, seed, np.asarray(cells, dtype=np.int64))
