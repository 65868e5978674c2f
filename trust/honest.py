"""Honest inputs, small and of every kind: where hostile ones start from."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from typing import Any

import numpy as np

import smh
from smh.backends import numpy as smh_numpy
from smh.files import checkpoint
from smh.porting import Mapping

SHAPES = {"conv.weight": (3, 3, 1, 2), "fc": (4, 5), "b": (6,)}
VIEWS: dict[str, Any] = {
    "conv.weight": ("h w i (o p) -> (p o) i h w", {"p": 2}, {"h": [2, 0, 1]}),
    "fc": "i o -> o i",
}
DENSE = {
    "bias": np.arange(3, dtype=np.float64),
    "mask": np.array([[True, False]]),
    "steps": np.array(5, dtype=np.int64),
    "half": np.ones((2, 2), np.float16),
    "carried/x": np.zeros((0, 3), np.uint8),
}


@cache
def plans() -> dict[str, smh.Plan]:
    """Return plans that together have every kind of pool, layout, scale, modifier, view and width of integers."""
    pools = smh.pools
    hashed = pools.Hash(hashes=2)
    fixed = pools.Matmul(bits=12, exponents=(2, 3))
    options: dict[str, dict[str, Any]] = {
        "matmul": {"pool": "matmul", "views": VIEWS},
        "kronecker": {"pool": "kronecker", "layout": "cyclic", "modifiers": ["relu", "sign"], "ratio": 3},
        "hash": {"pool": hashed, "layout": "padding", "scale": 0.5, "learn_scale": False, "bits": 3},
        "fixed": {"pool": fixed, "optimizer": "adam", "scale": "he"},
        "sum": {"pool": pools.Sum("matmul", pools.Product("hash", "kronecker")), "scale": "glorot", "ratio": 9},
    }
    common: dict[str, Any] = {"include": lambda name: True, "seed": 7}
    return {name: smh.Plan.build(SHAPES, **{"ratio": 2, **common, **option}) for name, option in options.items()}


def packed_plans() -> dict[str, smh.Plan]:
    """Return plans of arrays that are large enough to be coded, with integers of several widths."""
    sizes: dict[str, dict[str, Any]] = {"packed": {}, "packed wide": {"bits": 12}, "packed narrow": {"bits": 3}}
    return {name: smh.Plan.build({"w": (60, 50)}, ratio=0.5, seed=7, **options) for name, options in sizes.items()}


def rounded() -> dict[str, np.ndarray]:
    """Return kept tensors that are rounded to 8 and to 16 bits, a few and enough to be coded, and one that is not."""
    return {
        "bias": np.linspace(-1, 1, 150, dtype=np.float32) ** 3,
        "half": np.array([[0.5, -1]], np.float16),
        "var": np.geomspace(1e-3, 1, 150),
        "wide": np.array([1e-9, 1], np.float32),
    }


def _checkpoint(
    plan: smh.Plan,
    dense: dict[str, np.ndarray],
    training: bool,
    packed: bool = False,
    kept_bits: int | None = None,
) -> bytes:
    variables = smh_numpy.initialize(plan)
    with tempfile.NamedTemporaryFile() as file:
        digest = smh_numpy.digest(plan, variables)
        checkpoint.write(file.name, plan, variables, dense, digest, training, packed, kept_bits)
        with open(file.name, "rb") as written:
            return written.read()


def _plain(entries: dict[str, tuple[str, list[int], int]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(k % 2 for k in range(position))


def _mappings() -> dict[str, str]:
    shapes = {"a": (4, 6), "b": (6,), "c": (6,), "d": (4, 3), "e": (2,)}
    split = smh.porting.Source("d", (4, 3), None, (0, 2)), smh.porting.Source("d", (4, 3), None, (1, 2))
    whole = {
        "x/kernel": ("a", "i (o p) -> (p o) i", {"p": 2}, {"i": [3, 1, 2, 0]}),
        "x/sum": smh.porting.Entry((smh.porting.Source("b", (6,)), smh.porting.Source("c", (6,))), "sum"),
        "x/d": smh.porting.Entry(split, "concat"),
        "x/e": smh.porting.Entry((smh.porting.Source("e", (2,), None, None, (1.0, "float32")),)),
    }
    return {
        "plain": Mapping.build({"y": "a", "z": "b"}, {"a": (4, 6), "b": (6,)}, {"y": {"epsilon": 0.001}}).to_json(),
        "joined": Mapping.build(whole, shapes).to_json(),
    }


@cache
def honest() -> dict[str, bytes | str]:
    """Return honest inputs by name, which begins with that of their reader: files as bytes, JSON as text."""
    found: dict[str, bytes | str] = {}
    for name, plan in plans().items():
        found[f"checkpoint/{name}"] = _checkpoint(plan, DENSE if name != "hash" else {}, name == "kronecker")
        found[f"plan/{name}"] = plan.to_json()
    for name, plan in packed_plans().items():
        found[f"checkpoint/{name}"] = _checkpoint(plan, DENSE, False, packed=True)
    for name, pack in {"rounded": False, "packed rounded": True}.items():
        plan = packed_plans()["packed"] if pack else plans()["matmul"]
        found[f"checkpoint/{name}"] = _checkpoint(plan, DENSE | rounded(), False, pack, kept_bits=8)
    entries = {"w": ("F32", [2, 3], 24), "h": ("BF16", [4], 8), "m": ("BOOL", [1, 2], 2), "n": ("I64", [0, 5], 0)}
    found["plain/small"] = _plain(entries)
    found["plain/odd"] = _plain({"q": ("F8_E4M3", [3], 3), "f": ("F4", [2, 2], 2), "d": ("F64", [], 8)})
    found |= {f"mapping/{name}": text for name, text in _mappings().items()}
    return found
