"""What tests of the core share: plans and values of the conformance suite, and the comparison with what they give."""

import numpy as np

from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import KINDS, any_pools, cotangents_for, floats, golden_cases, plans, seeds, variables_for
from smh.core import generate

__all__ = [
    "KINDS",
    "any_pools",
    "check",
    "check_golden",
    "cotangents_for",
    "floats",
    "plans",
    "seeds",
    "values",
    "variables_for",
]


def values(plan, seed, kind):
    """Return variables and cotangents of a kind; other seeds mix kinds, and leave out a cotangent."""
    rng = np.random.default_rng(seed)

    def one(shape):
        return floats(rng, shape, kind if seed % 2 else rng.choice(KINDS))

    variables = {name: one(shape) for name, shape in plan.variable_shapes.items()}
    cotangents = {tensor.name: one(tensor.viewed_shape) for tensor in plan.tensors}
    if seed % 3 == 0:
        cotangents.popitem()
    return variables, cotangents


def check(kernels, plan, variables, cotangents, put=np.asarray, take=np.asarray):
    """Compare weights and all gradients of the core with the oracle, bit for bit."""
    described = plan.to_dict()
    with np.errstate(all="ignore"):
        expected = oracle.weights(described, variables), oracle.gradients(described, variables, cotangents)
    _check(kernels, plan, variables, cotangents, expected, put, take)


def check_golden(kernels):
    """Compare the core with the golden vectors of the suite, bit for bit."""
    for case in golden_cases():
        _check(kernels, case.plan, case.variables, case.cotangents, (case.weights, case.gradients))


def _check(kernels, plan, variables, cotangents, expected, put=np.asarray, take=np.asarray):
    given = {name: put(x) for name, x in variables.items()}
    with np.errstate(all="ignore"):
        weights = generate.materialize(kernels, plan, given)
        gradients = generate.vjp(kernels, plan, given, {name: put(x) for name, x in cotangents.items()})
    assert list(weights) == [tensor.name for tensor in plan.tensors]
    assert list(gradients) == list(plan.variable_shapes)
    for name, x in expected[0].items():
        assert_same_bits(take(weights[name]), x, f"weights {name!r} of {plan.to_json()}")
    for name, x in expected[1].items():
        assert_same_bits(take(gradients[name]), x, f"gradient of {name!r} of {plan.to_json()}")
