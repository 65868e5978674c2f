"""What golden files hold: a plan of every kind, and tensors of every dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import smh
from smh.porting import Entry, Mapping, Source

SHAPES = {"conv.weight": (3, 3, 2, 4), "fc.weight": (6, 5), "fc.bias": (5,)}
KEPT = {"fc.bias": np.arange(5, dtype=np.float32) / 3}
ROUNDED = {
    "fc.bias": (np.arange(-100, 100) ** 3 / 2**20).astype(np.float32).reshape(10, 20),
    "fc.half": np.arange(-3, 3).astype(np.float16) / 3,
    "norm.var": 1 / np.arange(1.0, 131.0),
    "norm.wide": np.array([1e-7, 1.0], dtype=np.float32),
    "norm.zeros": np.zeros(3, dtype=ml_dtypes.bfloat16),
    "steps": np.array(7),
}
_SPECIAL = [0.0, -0.0, 1.5, -np.inf, np.nan, 2.0**-14]


def _plan(**options: Any) -> smh.Plan:
    return smh.Plan.build(SHAPES, **{"ratio": 1.5, "seed": 11, **options})


def _packed(**options: Any) -> smh.Plan:
    """Return a plan of arrays that are large enough to be coded."""
    return smh.Plan.build({"w": (80, 90)}, ratio=0.5, seed=11, **options)


def plans() -> dict[str, smh.Plan]:
    """Return plans by the names of their files."""
    pools = smh.pools
    views: dict[str, Any] = {
        "conv.weight": ("h w i (g o) -> (o g) i h w", {"g": 2}, {"h": [2, 1, 0], "g": [1, 0]}),
        "fc.weight": "i o -> o i",
    }
    return {
        "matmul": _plan(),
        "matmul-adam": _plan(optimizer="adam", scale="he", seed=2**32 - 1),
        "kronecker": _plan(pool="kronecker", ratio=3),
        "hash": _plan(pool=pools.Hash(hashes=3)),
        "hash-unsigned": _plan(pool=pools.Hash(signed=False)),
        "sum": _plan(pool=pools.Sum("matmul", "hash", "kronecker"), ratio=9),
        "product": _plan(pool=pools.Product("matmul", pools.Sum("hash", "hash")), ratio=4),
        "cyclic": _plan(layout="cyclic", pool=pools.Matmul(n=5, m=2)),
        "padding": _plan(layout="padding", pool=pools.Matmul(n=5, m=2)),
        "modifiers": _plan(modifiers={"conv.weight": ["relu"], "fc.weight": ["sign", "relu"]}),
        "views": _plan(views=views),
        "axes": _plan(axes={"conv.weight": "o i h w", "fc.weight": "o i"}, scale="glorot"),
        "fixed": _plan(learn_scale=False, scale={"conv.weight": 0.25, "fc.weight": "fan_out"}),
        "bits-2": _plan(bits=2),
        "bits-4": _plan(bits=4, pool=pools.Hash(hashes=3)),
        "bits-5": _plan(bits=5),
        "bits-9": _plan(bits=9, pool="kronecker", ratio=3),
        "bits-16": _plan(bits=16),
        "exponents": _plan(pool=pools.Matmul(exponents=(1, -2))),
        "training": _plan(seed=12),
        "packed": _packed(),
        "packed-4": _packed(bits=4),
        "packed-16": _packed(bits=16),
        "rounded": _plan(seed=13),
        "packed-rounded": _packed(),
        "names": smh.Plan.build({"a/b c.\u00e9\u4e2d\U0001f600": (4, 3), "\u0000\x1b[31m": (3, 4)}, ratio=1.5),
    }


def dense() -> dict[str, np.ndarray]:
    """Return tensors of every dtype that checkpoints keep."""
    found = {
        dtype: np.arange(-3, 3).astype(dtype).reshape(2, 3)
        for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    }
    found |= {dtype: np.array(_SPECIAL, dtype=dtype) for dtype in ("float16", "float32", "float64")}
    found["bfloat16"] = np.array(_SPECIAL, dtype=ml_dtypes.bfloat16)
    found |= {"bool": np.array([[True, False]]), "scalar": np.array(2.5), "empty": np.zeros((0, 3), dtype=np.int16)}
    return found | {"carried/states": np.array([1, 2**63], dtype=np.uint64)}


def mapping() -> Mapping:
    """Return a mapping of every kind of entry."""
    parts = tuple(Source("lstm.weight", (8, 3), None, (k, 2)) for k in range(2))
    both = Source("lstm.b1", (8,)), Source("lstm.b2", (8,))
    shapes = {"fc.weight": (5, 6), "lstm.weight": (8, 3), "lstm.b1": (8,), "lstm.b2": (8,)}
    entries = {
        "fc/kernel": ("fc.weight", "(o g) i -> i (g o)", {"g": 5}, {"g": [4, 3, 2, 1, 0]}),
        "lstm/kernel": Entry(parts, "concat"),
        "lstm/bias": Entry(both, "sum"),
        "norm/mean": Entry((Source("norm.mean", (4,), default=(0.5, "float32")),)),
    }
    return Mapping.build(entries, shapes, {"norm": {"epsilon": 0.001, "momentum": 0.99}})
