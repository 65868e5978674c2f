"""Plans as dictionaries: sizes, scales, gains, kappas and initial variables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from conformance.oracle.bits import F32, round32
from conformance.oracle.hashing import words
from conformance.oracle.pools import Pool, parts, pool_shapes, terms

Plan = Mapping[str, Any]
Tensor = Mapping[str, Any]


def parse(plan: Plan | str) -> Plan:
    """Plan JSON or the dictionary it parses to, as the dictionary (section 10)."""
    if isinstance(plan, str):
        parsed: Plan = json.loads(plan)
        return parsed
    return plan


def tensor_size(tensor: Tensor) -> int:
    """Number of elements; 1 for rank 0 (section 10)."""
    return math.prod(int(size) for size in tensor["shape"])


def num_weights(plan: Plan) -> int:
    """Number N of generated weights (section 2)."""
    return sum(tensor_size(tensor) for tensor in plan["tensors"])


def variable_shapes(plan: Plan | str) -> dict[str, tuple[int, ...]]:
    """Shapes of all variables in their order: those of the pool, then the learned scales (section 10)."""
    plan = parse(plan)
    shapes = pool_shapes(plan["pool"])
    return shapes | {f"scale/{t['name']}": () for t in plan["tensors"] if t["learn_scale"]}


def _ceil_root(n: int, power: int) -> int:
    """Smallest integer whose power is at least n (section 4.7)."""
    root = math.isqrt(n) if power == 2 else math.isqrt(math.isqrt(n))
    return root + int(math.prod([root] * power) < n)


def _ratio(ratio: float | int | Fraction) -> Fraction:
    """A float as the shortest decimal that names it, else the exact value (section 4.7)."""
    return Fraction(repr(float(ratio))) if isinstance(ratio, float) else Fraction(ratio)


def sizes(pool: Pool, n_weights: int, ratio: float | int | Fraction) -> dict[str, Any]:
    """Pool with the sizes that the ratio gives; keeps what else the pool says (section 4.7).

    Raises
    ------
    ValueError
        If a size would be zero.
    """
    exact, kind = _ratio(ratio), pool["kind"]
    variables = exact * n_weights
    if kind in ("sum", "product"):
        share = exact / len(pool["parts"])
        return {"kind": kind, "parts": [sizes(part, n_weights, share) for part in pool["parts"]]}
    found: dict[str, Any] = {"bits": 8, "exponents": None, "gain": 0} | dict(pool)
    if kind == "matmul":
        n = _ceil_root(n_weights, 2)
        found |= {"n": n, "m": math.floor(variables / (2 * n))}
    elif kind == "kronecker":
        d = _ceil_root(n_weights, 4)
        found |= {"d": d, "t": math.floor(variables / (2 * d * d))}
    else:
        found = {"hashes": 1, "signed": True} | found
        found |= {"capacity": n_weights, "size": math.floor(variables / found["hashes"])}
    if 0 in (found.get("m"), found.get("t"), found.get("size")):
        raise ValueError(f"ratio {ratio} leaves a {kind} pool for {n_weights} weights without variables")
    return found


def initial_scale(tensor: Tensor) -> F32:
    """The scale rule in float64, rounded once to float32 (section 6.2).

    Raises
    ------
    ValueError
        If the scale lies outside [2**-30, 2**30).
    """
    axes = [one for one in zip(tensor["axes"].split(), tensor["shape"], strict=True) if one[0] != "s"]
    fan_in = math.prod(size for letter, size in axes if letter != "o")
    fan_out = math.prod(size for letter, size in axes if letter != "i")
    out = math.prod(size for letter, size in axes if letter == "o")
    rule = tensor["scale"]
    if rule == "fan_in":
        value = 1.0 / math.sqrt(3 * fan_in)
    elif rule == "fan_out":
        value = math.sqrt(2 / fan_out) if len(axes) >= 3 else 1.0 / math.sqrt(out)
    elif rule == "he":
        value = math.sqrt(2 / fan_in)
    elif rule == "glorot":
        value = math.sqrt(2 / (fan_in + fan_out))
    else:
        value = float(rule)
    scale = round32(value)
    if not 2.0**-30 <= scale < 2.0**30:
        raise ValueError(f"{tensor['name']!r} has the initial scale {scale}, outside [2**-30, 2**30)")
    return scale


class Leaf(NamedTuple):
    """A leaf pool with what its surroundings decide: prefix of its variables, seed, tau (section 8)."""

    pool: Pool
    prefix: str
    seed: int
    tau: float


def leaves(pool: Pool, seed: int, prefix: str = "pool", tau: float = 1.0) -> list[Leaf]:
    """Leaf pools in order (section 8).

    A sum of k parts gives each tau/√k; a product gives its first part tau and the others 1.
    """
    if pool["kind"] not in ("sum", "product"):
        return [Leaf(pool, prefix, seed, tau)]
    children = parts(pool, prefix, seed)
    found = []
    for p, (part, name, s) in enumerate(children):
        if pool["kind"] == "sum":
            share = tau / math.sqrt(len(children))
        else:
            share = tau if p == 0 else 1.0
        found += leaves(part, s, name, share)
    return found


def sigma(leaf: Leaf) -> float:
    """Standard deviation of the variables without gain (section 8)."""
    root = math.sqrt(terms(leaf.pool))
    return leaf.tau / root if leaf.pool["kind"] == "hash" else math.sqrt(leaf.tau / root)


def power_within(x: float, most: int) -> int:
    """f - 1 for 2**(f - 1) <= x < 2**f, between 0 and most (sections 4.5 and 6.1)."""
    return min(most, max(0, math.frexp(x)[1] - 1))


def gains(plan: Plan | str, optimizer: str) -> list[int]:
    """Gains of the leaves in order for `sgd` or `adam`, whatever the plan says (section 4.5)."""
    plan = parse(plan)
    N, total = num_weights(plan), 0.0
    for tensor in plan["tensors"]:
        s = float(initial_scale(tensor))
        total += float(tensor_size(tensor)) * (s * s)
    s_bar = math.sqrt(total / N)
    found = []
    for leaf in leaves(plan["pool"], plan["seed"]):
        pool, M = leaf.pool, terms(leaf.pool)
        if pool["kind"] == "hash":
            x = 1.0 / (s_bar * math.sqrt(M * N / pool["size"] if optimizer == "sgd" else M))
        elif optimizer == "sgd":
            n = pool["n"] if pool["kind"] == "matmul" else pool["d"] ** 2
            x = 1.0 / ((s_bar * sigma(leaf)) * math.sqrt(2.0 * n))
        else:
            x = 1.0 / (s_bar * math.sqrt(2.0 * M))
        found.append(power_within(x, 20))
    return found


def kappas(plan: Plan | str, optimizer: str) -> list[int]:
    """kappa of every tensor for `sgd` or `adam`, whatever the plan says; 0 for fixed scales (section 6.1)."""
    found = []
    for tensor in parse(plan)["tensors"]:
        x = 1.0 / float(initial_scale(tensor)) if optimizer == "adam" else math.sqrt(tensor_size(tensor))
        found.append(power_within(x, 30) if tensor["learn_scale"] else 0)
    return found


def initial_variables(plan: Plan | str, distribution: str = "normal") -> dict[str, F32]:
    """Initial variables, learned scales included, in their order (section 8)."""
    plan = parse(plan)
    found: dict[str, F32] = {}
    for leaf in leaves(plan["pool"], plan["seed"]):
        for stream, (name, shape) in enumerate(pool_shapes(leaf.pool, leaf.prefix).items()):
            i = np.arange(math.prod(shape))

            def uniform(j: int, i: np.ndarray = i, stream: int = stream, seed: int = leaf.seed) -> np.ndarray:
                return ((words(seed, 1000 + 16 * stream + j, i) >> 8) + 0.5) * 2.0**-24

            if distribution == "normal":
                z = uniform(0)
                for j in range(1, 12):
                    z = z + uniform(j)
                z = z - 6.0
            elif distribution == "uniform":
                z = (2.0 * uniform(0) - 1.0) * math.sqrt(3.0)
            else:
                raise ValueError(f"unknown distribution {distribution!r}")
            value = round32(z * sigma(leaf)) * np.float32(2.0 ** -leaf.pool["gain"])  # a power of two: exact
            found[name] = value.reshape(shape)
    for tensor in plan["tensors"]:
        if tensor["learn_scale"]:
            found[f"scale/{tensor['name']}"] = initial_scale(tensor) * np.float32(2.0 ** tensor["kappa"])  # exact
    return found
