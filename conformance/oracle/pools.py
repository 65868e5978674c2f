"""Pools: virtual weights, their gradients, and the explicit hash indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.oracle.bits import F32, F64, I64, flush, multiply, round32
from conformance.oracle.exact import exact_segment_sum, product
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


def gain_factor(pool: Pool) -> F32:
    """2^(delta * g), delta 2 for matmul and kronecker, 1 for hash (section 4.5)."""
    delta = 1 if pool["kind"] == "hash" else 2
    return np.asarray(2.0 ** (delta * pool["gain"]), dtype=np.float32)  # at most 2^120: exact


def hash_positions(pool: Pool, seed: int, m: int, cells: npt.ArrayLike) -> I64:
    """h_m(i): the table column that hash m reads for cell i (section 4)."""
    return np.asarray(words(seed, 2 * m, cells) % pool["size"])


def hash_signs(pool: Pool, seed: int, m: int, cells: npt.ArrayLike) -> I64:
    """sigma_m(i): -1 where the word of stream 2m+1 is odd, else +1; +1 when unsigned (section 4)."""
    odd = words(seed, 2 * m + 1, cells) & 1
    return np.asarray(1 - 2 * odd) if pool["signed"] else np.ones_like(odd)


def add_ascending(terms: list[F32] | list[F64]) -> F32:
    """Float64 sum, first term first, rounded once (sections 4.3 and 4.4; section 3.1, rule 7)."""
    with np.errstate(invalid="ignore"):
        total = terms[0].astype(np.float64)
        for term in terms[1:]:
            total = total + term.astype(np.float64)
    return round32(total)


def _factors(pool: Pool, prefix: str, variables: Variables) -> tuple[F32, F32]:
    """The two matrices whose exact product a matmul or kronecker pool is (section 4)."""
    left, right = flush(variables[f"{prefix}/left"]), flush(variables[f"{prefix}/right"])
    if pool["kind"] == "kronecker":
        t = pool["t"]
        return left.reshape(t, -1).T, right.reshape(t, -1)
    return left, right


def _swap(x: F32, d: int) -> F32:
    """Axes (i1, j1, i2, j2) to (i1, i2, j1, j2), or back: the exchange is its own inverse (section 4)."""
    return x.reshape(d, d, d, d).transpose(0, 2, 1, 3)


def virtual(pool: Pool, prefix: str, seed: int, variables: Variables) -> F32:
    """Virtual weights of the pool's whole capacity (section 4)."""
    kind = pool["kind"]
    if kind in ("sum", "product"):
        size = capacity(pool)
        vs = [virtual(part, name, s, variables)[:size] for part, name, s in parts(pool, prefix, seed)]
        if kind == "sum":
            return add_ascending(vs)
        v = vs[0]
        for other in vs[1:]:
            v = multiply(v, other)
        return v
    if kind == "hash":
        table, cells = flush(variables[f"{prefix}/table"]), np.arange(pool["capacity"])
        terms = []
        for m in range(pool["hashes"]):
            entries = table[m, hash_positions(pool, seed, m, cells)].astype(np.float64)
            terms.append(entries * hash_signs(pool, seed, m, cells))
        v0 = add_ascending(terms)
    else:
        v0 = product(*_factors(pool, prefix, variables))
        if kind == "kronecker":
            v0 = _swap(v0, pool["d"])
    return multiply(gain_factor(pool), v0.reshape(-1))


def gradient(pool: Pool, prefix: str, seed: int, variables: Variables, dv: F32) -> dict[str, F32]:
    """Gradients of the pool's variables for the cotangent dv of its virtual weights (sections 3, 4 and 5).

    A part of larger capacity gets zeros for the cells that the sum or product does not have.
    """
    kind, size = pool["kind"], capacity(pool)
    dv = np.concatenate([dv, np.zeros(size - dv.size, dtype=np.float32)])
    if kind in ("sum", "product"):
        children = parts(pool, prefix, seed)
        found: dict[str, F32] = {}
        vs: list[F32] = []
        if kind == "product":
            vs = [virtual(part, name, s, variables)[:size] for part, name, s in children]
        for p, (part, name, s) in enumerate(children):
            dpart = dv
            for q, other in enumerate(vs):
                if q != p:
                    dpart = multiply(dpart, other)
            found |= gradient(part, name, s, variables, dpart)
        return found
    dv0 = multiply(gain_factor(pool), dv)
    if kind == "hash":
        cells = np.arange(size)
        rows = [
            exact_segment_sum(
                dv0.astype(np.float64) * hash_signs(pool, seed, m, cells),
                hash_positions(pool, seed, m, cells),
                pool["size"],
            )
            for m in range(pool["hashes"])
        ]
        return {f"{prefix}/table": np.stack(rows)}
    A, B = _factors(pool, prefix, variables)
    if kind == "matmul":
        G = dv0.reshape(pool["n"], pool["n"])
        return {f"{prefix}/left": product(G, B.T), f"{prefix}/right": product(A.T, G)}
    d, t = pool["d"], pool["t"]
    G = _swap(dv0, d).reshape(d * d, d * d)
    return {
        f"{prefix}/left": product(G, B.T).T.reshape(t, d, d),
        f"{prefix}/right": product(A.T, G).reshape(t, d, d),
    }


def _leaf_indices(pool: Pool, prefix: str, seed: int, cells: I64) -> dict[str, I64]:
    """Flat variable indices that a leaf pool's cells read, terms along the second axis (section 4)."""
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
    """Signs of a hash pool's terms; nothing for other leaves (section 4)."""
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
    """Flat indices into each variable that the cells read, in the order of the terms (section 4)."""
    return _collect(_leaf_indices, pool, prefix, seed, np.asarray(cells, dtype=np.int64))


def signs(pool: Pool, prefix: str, seed: int, cells: npt.ArrayLike) -> dict[str, I64]:
    """Signs, one per term, of the hash tables among the variables (section 4)."""
    return _collect(_leaf_signs, pool, prefix, seed, np.asarray(cells, dtype=np.int64))
