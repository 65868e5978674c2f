"""The golden vectors: what the oracle makes of them today, and the core."""

import json

import numpy as np
import pytest

from conformance.bits import assert_same_bits
from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from tests.core import golden

VECTORS = golden.stored()


def test_the_oracle_gives_what_is_stored():
    assert json.loads(json.dumps(golden.made())) == VECTORS


@pytest.mark.parametrize("kernels", [Kernels(np), NumpyKernels()], ids=["default", "numpy"])
def test_the_core_gives_what_is_stored(kernels):
    for vector in VECTORS:
        plan = Plan.from_dict(vector["plan"])
        variables = golden.arrays(vector["variables"])
        with np.errstate(all="ignore"):
            weights = generate.materialize(kernels, plan, variables)
            gradients = generate.vjp(kernels, plan, variables, golden.arrays(vector["cotangents"]))
        for found, expected in ((weights, vector["weights"]), (gradients, vector["gradients"])):
            for name, x in golden.arrays(expected).items():
                assert_same_bits(found[name], x, f"{name!r} of {vector['digest'][:8]}")
