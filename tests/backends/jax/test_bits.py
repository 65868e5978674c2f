"""The bits of the oracle: eager and compiled, in 32 and in 64 bits, at every precision of products."""

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import smh
from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core import generate, pools
from tests.core.cases import values

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends.jax import narrow  # noqa: E402

SHAPES = {"a": (6, 7), "b": (5,), "c": (3, 3, 2, 4)}
OPTIONS = {
    "views": {"a": "i o -> o i", "c": "h w i o -> o i h w"},
    "modifiers": {"a": [], "b": ["relu"], "c": ["relu", "sign"]},
    "include": lambda name: True,
    "ratio": 1000,
}
PLANS = {
    "matmul 2": {"pool": pools.Matmul(bits=2)},
    "matmul 8": {"pool": pools.Matmul(m=40)},
    "matmul 9": {"pool": pools.Matmul(bits=9, exponents=(-2, 3)), "optimizer": "adam"},
    "matmul 10": {"pool": pools.Matmul(bits=10, n=7), "layout": "cyclic"},
    "matmul 16": {"pool": pools.Matmul(bits=16, n=9), "layout": "padding"},
    "long": {"pool": pools.Matmul(m=1300), "learn_scale": False},
    "kronecker": {"pool": pools.Kronecker(t=5), "seed": 3},
    "kronecker 12": {"pool": pools.Kronecker(bits=12, gain=2)},
    "hash": {"pool": pools.Hash(hashes=3, size=50)},
    "hash 16": {"pool": pools.Hash(hashes=2, size=9, bits=16, signed=False, capacity=50), "layout": "cyclic"},
    "sum": {"pool": pools.Sum(pools.Hash(size=9), pools.Kronecker(t=2), pools.Matmul(m=3)), "optimizer": "adam"},
    "product": {"pool": pools.Product(pools.Matmul(m=2), pools.Hash(size=60, bits=4), pools.Sum("matmul", "hash"))},
}
KINDS = ("normal", "wide", "special", "edges", "ties", "tiny")


def same(found, expected):
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert_same_bits(np.asarray(found[name]), np.asarray(x), name)


def everything(plan, variables, cotangents):
    return smh_jax.materialize(plan, variables), smh_jax.vjp(plan, variables, cotangents)


@pytest.mark.parametrize("number", range(len(PLANS)), ids=list(PLANS))
def test_plans_have_the_bits_of_the_oracle(number):
    """By turns eagerly and compiled, in 32 and in 64 bits."""
    plan = smh.Plan.build(SHAPES, **{**OPTIONS, **list(PLANS.values())[number]})
    variables, cotangents = values(plan, 2 * number + 1, KINDS[number % len(KINDS)])
    x64, compiled = number % 2 == 0, number % 4 < 2
    assert jax.config.jax_enable_x64 is False

    def run(v, g):
        weights, gradients = everything(plan, v, g)
        return tuple(weights.values()), tuple(gradients.values())  # of a dict JAX sorts the names

    with jax.enable_x64(x64):
        arrays = jax.tree.map(jnp.asarray, (variables, cotangents))
        weights, gradients = (jax.jit(run) if compiled else run)(*arrays)
        assert jax.config.jax_enable_x64 is x64
    assert all(x.dtype == jnp.float32 for x in (*weights, *gradients))
    described = plan.to_dict()
    same(dict(zip(SHAPES, weights, strict=True)), oracle.weights(described, variables))
    expected = oracle.gradients(described, variables, cotangents)
    same(dict(zip(plan.variable_shapes, gradients, strict=True)), expected)


@pytest.mark.parametrize(
    ("precision", "bits"),
    [("bfloat16", 8), ("tensorfloat32", 9), ("highest", 16), ("F32_F32_F32", 16), ("F16_F16_F16", 8)],
)
def test_no_precision_of_products_changes_a_bit(precision, bits):
    """With the last two, JAX makes float32 and float16 products of all others, those of float64 numbers among them."""
    plan = smh.Plan.build({"a": (12, 16)}, ratio=0.9, bits=bits)
    variables, cotangents = values(plan, 1, "normal")
    with jax.default_matmul_precision(precision):
        found = everything(plan, *jax.tree.map(jnp.asarray, (variables, cotangents)))
    for actual, expected in zip(
        found,
        (oracle.weights(plan.to_dict(), variables), oracle.gradients(plan.to_dict(), variables, cotangents)),
        strict=True,
    ):
        same(actual, expected)


def test_second_derivatives_have_the_precision_that_users_set():
    """They promise no bits, and need not be slower or coarser than other float32 products."""
    plan = smh.Plan.build({"a": (12, 16)}, ratio=0.9)
    variables = jax.tree.map(jnp.asarray, values(plan, 1, "normal")[0])

    def curvature(variables):
        def loss(v):
            return (smh_jax.materialize(plan, v)["a"] ** 3).sum()

        return jax.grad(lambda v: sum((g**2).sum() for g in jax.grad(loss)(v).values()))(variables)

    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in str(jax.make_jaxpr(curvature)(variables))


def test_second_derivatives_are_those_at_the_values_on_the_grid():
    """A pool of products has the weights' exact second derivative in closed form."""
    plan = smh.Plan.build({"a": (4, 4)}, ratio=0.5, pool=pools.Matmul(n=4, m=1, bits=3), learn_scale=False, scale=1.0)
    rng = np.random.default_rng(0)
    host = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in plan.variable_shapes.items()}
    variables = jax.tree.map(jnp.asarray, host)
    with jax.enable_x64(True):
        grid = {k: np.asarray(x) for k, x in generate.on_grid(narrow.KERNELS, plan, variables).items()}
    twice = jax.jacrev(jax.grad(lambda v: (smh_jax.materialize(plan, v)["a"] ** 2).sum() / 2))(variables)
    factor = 2.0 ** (2 * plan.pool.gain)
    # Of half the squares of L R in one row of L: the sum of the squares of R, times the identity.
    expected = factor**2 * float((grid["pool/right"] ** 2).sum()) * np.eye(4)
    np.testing.assert_allclose(np.asarray(twice["pool/left"]["pool/left"]).reshape(4, 4), expected, rtol=1e-5)
    assert not np.allclose(host["pool/right"], grid["pool/right"])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("pool", [pools.Matmul(m=40), pools.Matmul(m=1300), pools.Kronecker(t=5), pools.Hash(size=50)])
def test_building_weights_of_8_bits_needs_no_float64(pool, x64):
    """Not for more terms than float32 adds exactly, and not where 64 bits are on; gradients show that programs tell."""
    plan = smh.Plan.build(SHAPES, **{**OPTIONS, "pool": pool})
    variables, cotangents = jax.tree.map(jnp.asarray, values(plan, 1, "normal"))
    with jax.enable_x64(x64):
        forward = jax.jit(lambda v: smh_jax.materialize(plan, v)).lower(variables)
        backward = jax.jit(lambda v, g: smh_jax.vjp(plan, v, g)).lower(variables, cotangents)
    assert not re.search(r"tensor<\d\S*f64>", forward.as_text())  # numbers of Python are scalars until it is compiled
    assert "f64" not in forward.compile().as_text()
    assert "f64" in backward.as_text()


FLAG = """
    import jax, jax.numpy as jnp
    import smh
    from smh.backends import jax as smh_jax

    plan = smh.Plan.build({"a": (4, 4)}, ratio=0.5)
    variables = smh_jax.initialize(plan)
    try:
        jax.jit(jax.vmap(lambda v: smh_jax.materialize(plan, v)))(jax.tree.map(lambda x: x[None], variables))
        print("built")
    except smh.BackendError as error:
        print(str(error))
"""


@pytest.mark.parametrize(("flag", "message"), [("", "built"), ("=true", "remove the flag --xla_cpu_enable_fast_math")])
def test_a_compiler_that_reorders_sums_is_refused(flag, message):
    """Where the first call is in a transformation."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(FLAG)],
        env={**os.environ, "XLA_FLAGS": flag and "--xla_cpu_enable_fast_math" + flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in result.stdout, result.stderr
