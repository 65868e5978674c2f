"""Plans that threads and processes share, and one hash of all that a backend makes of them."""

import hashlib
import importlib

from conformance.bits import canonical_bits
from smh.core.plan import Plan
from smh.core.pools import Hash, Kronecker, Matmul, Product, Sum
from tests.core.cases import values

SHAPES = {"a": (40, 30), "b": (3, 3, 20, 10), "c": (30, 7)}
POOLS = {
    "matmul": {"pool": "matmul", "views": {"b": "h w i o -> o i h w"}},
    "cyclic": {"pool": Matmul(n=40), "layout": "cyclic", "modifiers": {"a": ["relu"], "b": [], "c": ["sign"]}},
    "kronecker": {"pool": Kronecker(), "learn_scale": False, "bits": 16},
    "hash": {"pool": Hash(hashes=3), "bits": 4},
    "sum": {"pool": Sum(Matmul(), Product(Hash(), "kronecker")), "optimizer": "adam"},
}


def fresh(name):
    """Return a plan that nobody has used yet, so that whatever is computed once is computed now."""
    return Plan.from_json(Plan.build(SHAPES, ratio=0.4, seed=3, **POOLS[name]).to_json())


def fingerprint(backend_name, pools):
    """Return the SHA-256 of weights and gradients of plans, as a backend computes them."""
    backend, sha = importlib.import_module(f"smh.backends.{backend_name}").backend, hashlib.sha256()
    for pool in pools:
        plan = fresh(pool)
        variables, cotangents = (
            {name: backend.asarray(x) for name, x in arrays.items()} for arrays in values(plan, 7, "wide")
        )
        for found in (backend.materialize(plan, variables), backend.vjp(plan, variables, cotangents)):
            for name, x in found.items():
                sha.update(name.encode("ascii") + canonical_bits(backend.to_numpy(x)).astype("<u4").tobytes())
    return sha.hexdigest()
