"""JAX without 64-bit types: no program has one, and no bit changes."""

import numpy as np
import pytest

from conformance.bits import assert_same_bits
from conformance.cases import Case, cotangents_for, variables_for
from smh.backends.float64 import without_float64
from smh.core import pools
from smh.core.plan import Plan

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.extend.core import ClosedJaxpr, Jaxpr  # noqa: E402

from smh.backends import jax as smh_jax  # noqa: E402
from smh.backends.jax import backend, narrow  # noqa: E402

POOLS = {
    "matmul": pools.Matmul(n=6, m=3),
    "wide matmul": pools.Matmul(n=6, m=600, bits=12),
    "kronecker": pools.Kronecker(d=3, t=2),
    "hash": pools.Hash(size=9, capacity=20),
    "sum": pools.Sum(pools.Matmul(n=6, m=2), pools.Hash(size=5, capacity=36)),
    "product": pools.Product(pools.Matmul(n=6, m=2), pools.Hash(size=5, capacity=36)),
}


def made(pool):
    shapes, layout = {"a": (3, 4), "b": (5, 3)}, "cyclic" if pool.kind == "hash" else "basic"
    plan = Plan.build(shapes, ratio=10**9, pool=pool, layout=layout, include=lambda name: True)
    return plan, variables_for(plan, 1, "normal"), cotangents_for(plan, 1, "normal")


def arrays(named):
    return {name: jnp.asarray(x) for name, x in named.items()}


def wide_types(jaxpr):
    """Return the 64-bit types of all values of a program and of the programs in it."""
    found = set()
    for eqn in jaxpr.eqns:
        found |= {str(x.aval.dtype) for x in (*eqn.invars, *eqn.outvars) if hasattr(x.aval, "dtype")}
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, ClosedJaxpr):
                    found |= wide_types(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    found |= wide_types(inner)
    return {name for name in found if name.endswith("64")}


def programs(plan, variables, cotangents):
    """Return the programs that build weights, and compute first and second derivatives."""

    def first(variables):
        _, pull = jax.vjp(lambda x: smh_jax.materialize(plan, x), variables)
        return pull(arrays(cotangents))[0]

    def second(variables):
        return jax.grad(lambda x: sum(jnp.sum(g**2) for g in jax.tree.leaves(first(x))))(variables)

    calls = (lambda x: smh_jax.materialize(plan, x), first, second)
    return [jax.make_jaxpr(call)(arrays(variables)).jaxpr for call in calls]


@pytest.mark.parametrize("pool", POOLS.values(), ids=list(POOLS))
def test_no_program_has_a_64_bit_type(pool):
    """Whether users switch these types on or not."""
    case = made(pool)
    with without_float64(), jax.enable_x64(pool.kind == "hash"):
        assert [wide_types(program) for program in programs(*case)] == [set()] * 3


def test_the_check_above_can_fail():
    assert "float64" in wide_types(programs(*made(POOLS["matmul"]))[1])


@pytest.mark.parametrize("pool", ["wide matmul", "hash"])
@pytest.mark.parametrize("compiled", [False, True])
def test_bits_are_the_same_op_by_op_and_compiled(pool, compiled):
    """By the mode, for the eager programs of this process may be compiled already."""
    plan, _, _ = made(POOLS[pool])
    for seed, kind in enumerate(("normal", "wide", "special", "ties")):
        case = Case(kind, plan, variables_for(plan, seed, kind), cotangents_for(plan, seed, kind), seed)
        with jax.disable_jit(not compiled):
            narrow_backend = backend.in_mode("no-float64")
            weights = narrow_backend.materialize(plan, arrays(case.variables))
            gradients = narrow_backend.vjp(plan, arrays(case.variables), arrays(case.cotangents))
        for found, expected in ((weights, case.weights), (gradients, case.gradients)):
            for name, x in expected.items():
                assert_same_bits(np.asarray(found[name]), np.asarray(x), f"{kind}: {name}")


@pytest.mark.parametrize("platform", ["tpu", "METAL"])
def test_some_platforms_have_no_float64(monkeypatch, platform):
    assert narrow.kernels() is narrow.KERNELS
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert not narrow.has_float64()
    assert narrow.kernels() is narrow.NARROW
    assert narrow.kernels(smooth=True).smooth
