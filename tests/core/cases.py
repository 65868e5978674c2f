"""What tests of the core share: plans and values of the conformance suite, and the comparison with what they give."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from conformance import oracle
from conformance.bits import assert_same_bits
from conformance.cases import KINDS, any_pools, cotangents_for, floats, golden_cases, plans, seeds, variables_for
from smh.core import generate, pools
from smh.core.plan import Plan

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


@st.composite
def matmul_plans(draw):
    """Draw plans whose gradients may come from one pass: tensors that begin and end within rows."""
    shapes = {f"t{i}": (draw(st.integers(1, 30)),) for i in range(draw(st.integers(1, 6)))}
    total = sum(shape[0] for shape in shapes.values())
    side = int(np.ceil(np.sqrt(total))) + draw(st.integers(0, 3))
    bits, terms = draw(st.sampled_from([2, 4, 8, 9, 10, 16])), draw(st.sampled_from([1, 2, 7, 40, 300, 1100]))
    plan = Plan.build(
        shapes,
        ratio=10**9,
        pool=pools.Matmul(n=side, m=terms, bits=bits, gain=draw(st.sampled_from([0, 1, 6, 20]))),
        optimizer=draw(st.sampled_from(["sgd", "adam"])),
        include=lambda name: True,
    )
    fixed = [draw(st.booleans()) and draw(st.booleans()) for _ in shapes]
    tensors = (
        dataclasses.replace(t, learn_scale=False, kappa=0) if f else t for t, f in zip(plan.tensors, fixed, strict=True)
    )
    return dataclasses.replace(plan, tensors=tuple(tensors))


@st.composite
def matmul_cases(draw):
    """Draw plan, variables and cotangents: sizes of 1, fixed scales and exponents, scales to 2**30, wide cotangents."""
    exponents = draw(st.none() | st.tuples(st.integers(-29, 30), st.integers(-29, 30)))
    kinds = draw(st.tuples(st.sampled_from(["normal", "normal", "ties", "edges", "special"]), st.sampled_from(KINDS)))
    of_cotangents, of_scales = (
        draw(st.just(0) | st.integers(-130, 100)),
        draw(st.sampled_from([-31, -30, 0, 3, 27, 28, 29, 30])),
    )
    plan, spread, rng = draw(matmul_plans()), draw(st.booleans()), np.random.default_rng(draw(seeds))
    plan = dataclasses.replace(plan, pool=dataclasses.replace(plan.pool, exponents=exponents))
    variables = {name: floats(rng, shape, kinds[0]) for name, shape in plan.variable_shapes.items()}
    for tensor in plan.tensors:
        if tensor.learn_scale:
            scale = rng.choice([1.0, rng.uniform(0.5, 1)]) * 2.0 ** (of_scales + tensor.kappa)
            variables[tensor.scale_variable] = np.asarray(scale * rng.choice([-1, 1]), dtype=np.float32)
    cotangents = {t.name: floats(rng, t.viewed_shape, kinds[1]) for t in plan.tensors if rng.random() < 0.8}
    with np.errstate(all="ignore"):
        for name, g in cotangents.items():
            power = of_cotangents - (rng.integers(0, 140, g.shape) if spread else 0)
            cotangents[name] = np.ldexp(g, power).astype(np.float32)
    return plan, variables, cotangents


@np.errstate(all="ignore")
def check_against(kernels, expected, plan, variables, cotangents, put=np.asarray, take=np.asarray):
    """Fail unless weights, those of every selection and order, and gradients have the bits of other kernels'."""
    names = [tensor.name for tensor in plan.tensors]
    there = {name: put(x) for name, x in variables.items()}
    built = generate.materialize(expected, plan, variables)
    for some in (names, names[::-2], []):
        found = generate.materialize(kernels, plan, there, some)
        assert list(found) == list(generate.materialize(expected, plan, variables, some))
        for name, w in found.items():
            assert_same_bits(take(w), built[name], name)
    found = generate.vjp(kernels, plan, there, {name: put(g) for name, g in cotangents.items()})
    for name, g in generate.vjp(expected, plan, variables, cotangents).items():
        assert_same_bits(take(found[name]), g, name)


def long_sums(terms, bits):
    """Return a plan, and variables and cotangents: the largest sums that there are, and ordinary ones."""
    plan = Plan.build({"a": (4, 4)}, ratio=10**9, pool=pools.Matmul(n=4, m=terms, bits=bits), scale=1.0)
    rng = np.random.default_rng(terms)
    ordinary = {name: floats(rng, shape, "normal") for name, shape in plan.variable_shapes.items()}
    largest = {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    return plan, [(variables, {"a": floats(rng, (4, 4), "normal")}) for variables in (largest, ordinary)]
