"""What tests of fast gradients share: plans, and how close to exact gradients they have to be."""

import numpy as np

import smh
from smh import pools

SHAPES = {"a": (20, 30), "b": (30, 7), "c": (4, 4, 3, 3)}
PLANS = {
    "matmul": smh.Plan.build(SHAPES, ratio=0.2),
    "kronecker": smh.Plan.build(SHAPES, ratio=0.2, pool="kronecker"),
    "hash": smh.Plan.build(SHAPES, ratio=0.2, pool="hash"),
    "product": smh.Plan.build(SHAPES, ratio=0.4, pool=pools.Product(pools.Matmul(), pools.Matmul())),
    "sum, cyclic, 12 bits": smh.Plan.build(
        SHAPES, ratio=0.4, pool=pools.Sum(pools.Matmul(), pools.Hash()), layout="cyclic", bits=12
    ),
    "padding, relu, no scales": smh.Plan.build(
        SHAPES, ratio=0.2, layout="padding", modifiers=["relu"], learn_scale=False
    ),
}


def example(plan):
    """Return variables of a plan, cotangents, and the exact gradients."""
    variables, random = smh.initialize(plan), np.random.default_rng(0)
    # Of one sign, so that no sum cancels: what is left is the rounding of float32 sums.
    cotangents = {t.name: random.uniform(0.5, 1, t.viewed_shape).astype(np.float32) for t in plan.tensors}
    return variables, cotangents, smh.vjp(plan, variables, cotangents)


def assert_close(found, exact, tolerance=1e-5):
    """Compare gradients, each with the largest of its array: float32 sums of some thousand terms keep 1e-5 of it."""
    assert list(found) == list(exact)
    for name, x in exact.items():
        assert np.asarray(found[name]).dtype == np.float32, name
        error = np.abs(np.asarray(found[name], dtype=np.float64) - x).max()
        assert error <= tolerance * np.abs(x).max(), f"{name}: {error} of {np.abs(x).max()}"
