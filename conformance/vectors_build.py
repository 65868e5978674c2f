"""What cases of golden vectors are put together from: plans, pools, tensors and seeded values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance import oracle
from conformance.oracle.hashing import words
from conformance.vectors import F32

NAN, INF, NEG_INF, NEG_ZERO = 0x7FC00000, 0x7F800000, 0xFF800000, 0x80000000
SUBNORMAL = 0x00000001
MAX = 0x7F7FFFFF


@dataclass(frozen=True)
class Case:
    """A case to write; variables that are not given are those of `start`, cotangents are seeded."""

    name: str
    about: str
    plan: dict[str, Any]
    given: Mapping[str, F32] = field(default_factory=dict)
    cotangents: Mapping[str, F32] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    start: str = "normal"


def tensor(name: str, *shape: int, scale: str | float = "fan_in", learn: bool = True, **rest: Any) -> dict[str, Any]:
    """Return a tensor without its offset; `rest` may give modifiers, axes, kappa and view."""
    axes = rest.get("axes", ("", "o", "i o", "w i o", "h w i o", "d h w i o")[len(shape)])
    return {
        "name": name,
        "shape": list(shape),
        "scale": scale,
        "learn_scale": learn,
        "kappa": rest.get("kappa", 0),
        "modifiers": list(rest.get("modifiers", ())),
        "axes": axes,
        "view": rest.get("view"),
    }


def plan(pool: dict[str, Any], *tensors: dict[str, Any], layout: str = "basic", seed: int = 0) -> dict[str, Any]:
    """Return a plan with offsets."""
    offset, placed = 0, []
    for one in tensors:
        placed.append(one | {"offset": offset})
        offset += math.prod(one["shape"])
    return {"layout": layout, "pool": pool, "seed": seed, "tensors": placed, "version": "2.0"}


def matmul(n: int, m: int, bits: int = 8, gain: int = 0, exponents: Any = None) -> dict[str, Any]:
    return {"kind": "matmul", "n": n, "m": m, "bits": bits, "gain": gain, "exponents": exponents}


def kronecker(d: int, t: int, bits: int = 8, gain: int = 0, exponents: Any = None) -> dict[str, Any]:
    return {"kind": "kronecker", "d": d, "t": t, "bits": bits, "gain": gain, "exponents": exponents}


def hashed(capacity: int, size: int, hashes: int = 1, signed: bool = True, **rest: Any) -> dict[str, Any]:
    """Return a hash pool; `rest` may give bits, gain and exponents."""
    return {
        "kind": "hash",
        "capacity": capacity,
        "size": size,
        "hashes": hashes,
        "signed": signed,
        "bits": rest.get("bits", 8),
        "gain": rest.get("gain", 0),
        "exponents": rest.get("exponents"),
    }


def joined(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "parts": list(parts)}


def seeded(stream: int, shape: Sequence[int], low: int = -3, high: int = 0) -> F32:
    """Return seeded values of both signs whose exponents run from low to high."""
    i = np.arange(math.prod(shape))
    exponents = words(7, 3 * stream, i) % (high - low + 1) + low + 127
    fractions = words(7, 3 * stream + 1, i) >> 9
    signs = (words(7, 3 * stream + 2, i) & 1) << 31
    return oracle.from_bits(signs | (exponents << 23) | fractions).reshape(tuple(shape))


def bits(*values: int, shape: Sequence[int] | None = None) -> F32:
    """Return an array of the given bits, of one dimension unless a shape is given."""
    x = oracle.from_bits(values)
    return x if shape is None else x.reshape(tuple(shape))


def floats(values: Any) -> F32:
    """Return an array of values that float32 holds exactly."""
    x = np.asarray(values, dtype=np.float64)
    rounded = x.astype(np.float32)
    assert np.array_equal(rounded.astype(np.float64), x)
    return rounded


def replaced(x: F32, **at: int) -> F32:
    """Return a copy with the bits of some flat positions replaced, as `replaced(x, i3=NAN)`."""
    copy = x.copy()
    for position, value in at.items():
        copy.reshape(-1)[int(position[1:])] = oracle.from_bits(value)
    return copy
