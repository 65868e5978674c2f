"""One number for all that a backend computes of a few large plans, also from another process.

    python -m conformance.fingerprint BACKEND MODE DEVICE [FRAMEWORK ...]

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

import conformance as suite
import smh
from conformance import oracle
from conformance.bits import canonical_bits
from conformance.cases import Case, cotangents_for
from smh.backends.protocol import Backend
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan

ROOT = Path(str(suite.__file__)).parents[suite.__name__.count(".") + 1]
"""Where a process finds the suite under the name that it has in this one."""
FRAMEWORKS = ("torch", "jax", "tensorflow")  # TensorFlow after PyTorch, as these two need it
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

ROWS, TERMS = 520, 1100  # more virtual weights than a block holds, more terms than float32 adds exactly


@lru_cache(maxsize=1)
def large_cases() -> tuple[Case, ...]:
    """Return cases larger than blocks: one pass over a matmul pool, and kinds of pools whose virtual weights repeat."""
    shapes = {"a": (13, 40), "b": (100, 700), "c": (450, 450), "d": (33,)}
    wanted = {
        "matmul": pools.Matmul(n=523, m=TERMS),
        "cyclic matmul": pools.Matmul(n=ROWS, m=40, bits=12),
        "kronecker": pools.Kronecker(d=22, t=40),
        "hash": pools.Hash(size=9000, hashes=3, capacity=271_000),
        "sum": pools.Sum(pools.Matmul(n=521, m=9), pools.Product(pools.Hash(size=800, capacity=270_500), "matmul")),
    }
    found = []
    for name, pool in wanted.items():
        plan = Plan.build(
            shapes,
            ratio=10**9 if name != "sum" else 0.9,
            pool=pool,
            layout="basic" if name == "matmul" else "cyclic",
            scale=1.0,
            seed=11,
            include="*",
        )
        found.append(Case(f"large {name}", plan, initial_variables(plan), cotangents_for(plan, 5, "normal"), seed=5))
    return tuple(found)


@lru_cache(maxsize=8)
def by_default_kernels(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return weights and gradients by NumPy and the default kernels, which no backend overrides."""
    with np.errstate(all="ignore"):
        weights = generate.materialize(Kernels(np), case.plan, case.variables)
        gradients = generate.vjp(Kernels(np), case.plan, case.variables, case.cotangents)
    return weights, {name: np.asarray(g) for name, g in gradients.items()}


def sample(case: Case) -> np.ndarray:
    """Return, by the oracle, the last five weights of the first tensor of a matmul pool, in its first row."""
    left, right = (oracle.grids(case.plan.to_dict(), case.variables)[f"pool/{name}"] for name in ("left", "right"))
    stop = case.plan.tensors[0].stop
    a = left._replace(integers=left.integers[:1])
    b = right._replace(integers=right.integers[:, stop - 5 : stop])
    return oracle.product(a, b, 2 * case.plan.pool.gain)


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


def by_default() -> str:
    """Return the SHA-256 that :func:`of` has to give for the large cases."""
    sha = hashlib.sha256()
    for case in large_cases():
        for results in by_default_kernels(case):
            for x in results.values():
                sha.update(canonical_bits(np.asarray(x)).tobytes())
    return sha.hexdigest()


def find(source: str) -> Backend:
    """Return a backend by its registered name, or as ``module:attribute``, where the attribute may be its class."""
    if ":" not in source:
        return smh.get_backend(source)
    backend = EntryPoint("", source, "").load()
    return backend() if isinstance(backend, type) else backend


def main() -> None:
    """Print the fingerprint that is asked for on the command line."""
    source, mode, device, *load = sys.argv[1:]
    for framework in load:
        with contextlib.suppress(ImportError):
            importlib.import_module(framework)
    print(of(find(source).in_mode(mode), device))


if __name__ == "__main__":
    main()
