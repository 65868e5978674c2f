"""No state of the process shows: hash seeds, and the frameworks imported in every order, give the same bits.

Golden vectors are built, differentiated and digested in processes of their own, by every backend whose framework is
imported there, and compared with what is stored.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

from conformance.bits import canonical_bits
from conformance.cases import Case, golden_cases
from smh.api import Api
from smh.backends.registry import get_backend
from trust.record import ROOT, Findings

FRAMEWORKS = ("torch", "jax", "tensorflow")
HASH_SEEDS = (0, 1, 2, 3)


def vectors() -> list[str]:
    """Return the names of the golden vectors that are built: those of every kind of pool and layout."""
    wanted = ("bits_8", "kronecker", "hash_signed", "sum", "product", "cyclic", "modifiers", "scales")
    return sorted(case.name for case in golden_cases() if case.name.startswith(wanted) and case.weights)


def stored(names: Iterable[str]) -> str:
    """Return the fingerprint of what is stored with golden vectors."""
    sha = hashlib.sha256()
    for case in _cases(names):
        for x in (*case.weights.values(), *case.gradients.values()):
            sha.update(canonical_bits(x).tobytes())
        sha.update(case.digest.encode())
    return sha.hexdigest()


def fingerprint(name: str, names: Iterable[str]) -> str:
    """Return the SHA-256 of weights, gradients and digests of golden vectors, as a backend builds them."""
    backend = get_backend(name)
    api = Api(lambda: backend)
    sha = hashlib.sha256()
    for case in _cases(names):
        variables = {key: backend.asarray(x, None) for key, x in case.variables.items()}
        cotangents = {key: backend.asarray(x, None) for key, x in case.cotangents.items()}
        weights = api.materialize(case.plan, variables)
        gradients = api.vjp(case.plan, variables, cotangents)
        for x in (*(weights[key] for key in case.weights), *(gradients[key] for key in case.gradients)):
            sha.update(canonical_bits(backend.to_numpy(x)).tobytes())
        sha.update(api.digest(case.plan, variables).encode())
    return sha.hexdigest()


def _cases(names: Iterable[str]) -> list[Case]:
    found = {case.name: case for case in golden_cases()}
    return [found[name] for name in names]


def within(order: Sequence[str], names: Sequence[str], hash_seed: int | str = "random") -> dict[str, str]:
    """Return the fingerprints of NumPy and of frameworks, imported in this order in a process of its own.

    Parameters
    ----------
    order : sequence of str
        The frameworks.
    names : sequence of str
        The golden vectors.
    hash_seed : int or str
        What ``PYTHONHASHSEED`` is.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONHASHSEED": str(hash_seed),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "trust.orders", ",".join(names), *order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a process that imports {', '.join(order)} exits with {done.returncode}: {done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def run() -> Findings:
    """Try all hash seeds, and all orders of the frameworks that are installed."""
    findings = Findings("orders")
    names = vectors()
    expected = stored(names)
    findings.count("golden vectors", len(names))
    there = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    for name in set(FRAMEWORKS) - set(there):
        findings.skipped[f"orders with {name}"] = "it is not installed"
    for seed in HASH_SEEDS:
        found = within((), names, seed)
        findings.count("hash seeds")
        findings.expect(found == {"numpy": expected}, f"with hash seed {seed}: {found}")
    for order in itertools.permutations(there):
        what = ", ".join(order)
        try:
            found = within(order, names)
        except RuntimeError as error:
            findings.expect(False, str(error)[-1500:])
            continue
        findings.count("orders of import")
        findings.count("fingerprints compared", len(found))
        findings.expect(found == dict.fromkeys(("numpy", *order), expected), f"imported as {what}: {found}")
    return findings


def main(names: Sequence[str], order: Sequence[str]) -> None:
    """Import frameworks in an order, and print the fingerprints of NumPy and of them."""
    for name in order:
        importlib.import_module(name)
    print(json.dumps({name: fingerprint(name, names) for name in ("numpy", *order)}))


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
