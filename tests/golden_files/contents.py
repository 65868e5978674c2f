"""What golden files hold: a plan of every kind, tensors of every dtype, and a model of every framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import smh
from smh.porting import Entry, Mapping, Source

SHAPES = {"conv.weight": (3, 3, 2, 4), "fc.weight": (6, 5), "fc.bias": (5,)}
KEPT = {"fc.bias": np.arange(5, dtype=np.float32) / 3}
_SPECIAL = [0.0, -0.0, 1.5, -np.inf, np.nan, 2.0**-14]


def _plan(**options: Any) -> smh.Plan:
    return smh.Plan.build(SHAPES, **{"ratio": 1.5, "seed": 11, **options})


def plans() -> dict[str, smh.Plan]:
    """Return plans by the names of their files."""
    pools = smh.pools
    views: dict[str, Any] = {
        "conv.weight": ("h w i (g o) -> (o g) i h w", {"g": 2}, {"h": [2, 1, 0], "g": [1, 0]}),
        "fc.weight": "i o -> o i",
    }
    return {
        "matmul": _plan(),
        "matmul-adam": _plan(gain="adam", scale="he", seed=2**32 - 1),
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
        "fast": _plan(arithmetic="fast"),
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


def torch_model() -> Any:
    """Return the plain model of ``model-torch``."""
    import torch

    layers = (torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for x in model.state_dict().values():
            x.copy_(torch.arange(x.numel()).reshape(x.shape) / 7)
    return model


def jax_params() -> Any:
    """Return the plain parameters of ``model-jax``."""
    import jax.numpy as jnp

    kernel = jnp.arange(30, dtype=jnp.float32).reshape(6, 5) / 7
    half = jnp.ones((3,), dtype=jnp.bfloat16)
    return {"layers": [{"kernel": kernel, "bias": jnp.ones(5)}, {"kernel": kernel.T, "half": half}]}


def keras_model() -> Any:
    """Return the plain model of ``model-keras``."""
    import keras

    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.BatchNormalization(name="norm")]
    layers += [keras.layers.Flatten(name="flat"), keras.layers.Dense(5, name="fc")]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    for x in model.weights:
        x.assign(np.arange(x.numpy().size, dtype=np.float32).reshape(x.shape) / 7)
    return model


MODELS: dict[str, Callable[[], Any]] = {"torch": torch_model, "jax": jax_params, "tensorflow": keras_model}
"""Plain models by backend; their files are ``model-<backend>.smh``."""
