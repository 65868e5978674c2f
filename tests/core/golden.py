"""Golden vectors of SMH-2, beside this file in ``golden.json``: bits that neither the oracle nor the core may change.

    python -m tests.core.golden

writes the file anew from the oracle; a difference to the stored one is a new major version of the specification.
"""

import json
from pathlib import Path

from conformance import oracle as oracle
from conformance.vectors import decode, encode
from tests.core.test_broken_core import CASES

FILE = Path(__file__).with_suffix(".json")


def made():
    """Return the vectors as the oracle makes them."""
    return [_vector(*case) for case in CASES]


def stored():
    """Return the vectors of the file."""
    return json.loads(FILE.read_text(encoding="ascii"))


def arrays(described):
    """Return arrays from what is stored of them."""
    return {name: decode(x) for name, x in described.items()}


def _vector(plan, variables, cotangents):
    described = plan.to_dict()
    return {
        "plan": described,
        "variables": _encoded(variables),
        "cotangents": _encoded(cotangents),
        "weights": _encoded(oracle.weights(described, variables)),
        "gradients": _encoded(oracle.gradients(described, variables, cotangents)),
        "digest": oracle.digest(described, variables),
    }


def _encoded(given):
    return {name: encode(x) for name, x in given.items()}


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(vector, sort_keys=True, separators=(",", ":")) for vector in made())
    FILE.write_text(f"[\n{lines}\n]\n", encoding="ascii")
