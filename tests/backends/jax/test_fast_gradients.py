"""Fast gradients of JAX: close to the exact ones, in float32, below weights whose bits do not change."""

import functools
import re

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
import jax.numpy as jnp  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import jax as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.fast_gradients import PLANS, assert_close, example  # noqa: E402

ARRAY_OF_FLOAT64 = re.compile(r"f64\[\d")


def loss_of(plan, cotangents, fast):
    def loss(variables):
        weights = smh.backend.materialize(plan, variables, fast=fast)
        return sum(jnp.sum(weights[name] * g) for name, g in cotangents.items())

    return loss


def descended(loss, variables):
    def step(variables, _):
        return jax.tree.map(lambda x, g: x - 0.01 * g, variables, jax.grad(loss)(variables)), None

    return jax.lax.scan(step, variables, length=3)[0]


def in_numpy(arrays):
    return {name: np.asarray(x) for name, x in arrays.items()}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_fast_gradients_are_close_to_exact_ones_and_need_no_float64(plan):
    variables, cotangents, exact = example(plan)
    variables = {name: jnp.asarray(x) for name, x in variables.items()}
    pull = jax.vjp(lambda v: smh.backend.materialize(plan, v, fast=True), variables)[1]
    assert_close(in_numpy(pull(cotangents)[0]), exact)
    assert not ARRAY_OF_FLOAT64.search(str(jax.make_jaxpr(pull)(cotangents)))
    exact_pull = jax.vjp(lambda v: smh.backend.materialize(plan, v), variables)[1]
    assert ARRAY_OF_FLOAT64.search(str(jax.make_jaxpr(exact_pull)(cotangents)))  # the check can fail


@pytest.mark.parametrize("name", ["matmul", "hash"])
def test_second_derivatives_batches_and_loops(name):
    plan = PLANS[name]
    variables, cotangents, _ = example(plan)
    variables = {name: jnp.asarray(x) for name, x in variables.items()}
    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), variables)
    found = {}
    for fast in (False, True):
        loss = loss_of(plan, cotangents, fast)
        second = jax.grad(lambda v, loss=loss: sum(jnp.sum(g) for g in jax.tree.leaves(jax.grad(loss)(v))))
        batch = jax.vmap(jax.grad(loss))(twice)
        after = jax.jit(functools.partial(descended, loss))(variables)
        found[fast] = [in_numpy(x) for x in (second(variables), batch, after)]
    for fast, exact in zip(found[True][:2], found[False][:2], strict=True):
        assert_close(fast, exact)
    assert_close(found[True][2], found[False][2], 0.02)  # another integer is half of a percent


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_models(residency):
    exact = smh.compress({"a": jnp.ones((20, 30)), "b": jnp.ones(30)}, ratio=0.3)
    fast = exact.with_gradients("fast").with_residency(residency)

    def loss(params):
        weights = smh.materialize(params)
        return jnp.sum((jnp.linspace(0, 1, 20) @ weights["a"] + weights["b"]) ** 2)

    assert_close(in_numpy(jax.grad(loss)(fast).variables), in_numpy(jax.jit(jax.grad(loss))(exact).variables))
    assert_same_bits(np.asarray(smh.materialize(fast)["a"]), np.asarray(smh.materialize(exact)["a"]))


def test_a_choice_can_be_changed_and_is_reported():
    params = smh.compress({"a": jnp.ones((20, 30))}, ratio=0.3, gradients="fast")
    assert params.gradients == "fast"
    assert "gradients 'fast'" in repr(params)
    assert "gradients 'fast'" in str(smh.report(params))
    assert params.with_gradients("exact").gradients == "exact"
    with pytest.raises(PlanError, match="gradients must be one of 'exact', 'fast'; got 'quick'"):
        params.with_gradients("quick")
