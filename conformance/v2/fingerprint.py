"""One number for all that a backend computes of a few large plans, also from another process.

    python -m conformance.v2.fingerprint BACKEND MODE DEVICE [FRAMEWORK ...]

loads the frameworks, then prints the SHA-256 of weights and gradients.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np

import smh.v2 as smh
from conformance.v2 import oracle
from conformance.v2.bits import canonical_bits
from conformance.v2.cases import Case, cotangents_for
from smh.v2.core import pools
from smh.v2.backends.protocol import Backend
from smh.v2.core.initial import initial_variables
from smh.v2.core.plan import Plan

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "jax", "tensorflow")  # TensorFlow after PyTorch, as these two need it
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

ROWS, TERMS = 520, 2100  # more virtual weights than a block holds, more terms than a chunk


@lru_cache(maxsize=1)
def large_cases() -> tuple[Case, ...]:
    """Return a case for every kind of pool, larger than blocks and chunks, where some cells share virtual weights."""
    shapes = {"a": (13, 40), "b": (100, 700), "c": (450, 450), "d": (33,)}
    wanted = {
        "matmul": pools.Matmul(n=ROWS, m=TERMS),
        "kronecker": pools.Kronecker(d=23, t=40),
        "hash": pools.Hash(size=9000, hashes=3, capacity=271_000),
        "sum": pools.Sum(pools.Matmul(n=523, m=9), pools.Product(pools.Hash(size=800, capacity=270_500), "matmul")),
    }
    found = []
    for name, pool in wanted.items():
        plan = Plan.build(
            shapes, ratio=10**9 if name != "sum" else 0.9, pool=pool, layout="cyclic", scale=1.0, seed=11, include=r"\w"
        )
        found.append(Case(f"large {name}", plan, initial_variables(plan), cotangents_for(plan, 5, "normal"), seed=5))
    return tuple(found)


def sample(case: Case) -> np.ndarray:
    """Return, by the oracle, the last five weights of the first tensor, with which the pool's first row ends."""
    left, right = case.variables["pool/left"], case.variables["pool/right"]
    gain = np.float32(4.0**case.plan.pool.gain)
    return oracle.multiply(gain, oracle.product(left[:1], right[:, ROWS - 5 :]))


def of(backend: Backend, device: str, cases: Iterable[Case] | None = None) -> str:
    """Return the SHA-256 of weights and gradients of all cases, by default the large ones."""
    sha = hashlib.sha256()
    for case in cases or large_cases():
        variables = {name: backend.asarray(x, device) for name, x in case.variables.items()}
        cotangents = {name: backend.asarray(x, device) for name, x in case.cotangents.items()}
        results = backend.materialize(case.plan, variables) | backend.vjp(case.plan, variables, cotangents)
        for x in results.values():
            sha.update(canonical_bits(backend.to_numpy(x)).tobytes())
    return sha.hexdigest()


def find(source: str) -> Backend:
    """Return a backend by its registered name, or as ``module:attribute``, where the attribute may be its class."""
    if ":" not in source:
        return smh.get_backend(source)
    backend = EntryPoint("", source, "").load()
    return backend() if isinstance(backend, type) else backend


if __name__ == "__main__":
    source, mode, device, *load = sys.argv[1:]
    for framework in load:
        with contextlib.suppress(ImportError):
            importlib.import_module(framework)
    print(of(find(source).in_mode(mode), device))
