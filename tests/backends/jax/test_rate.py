"""The rate in JAX: value and gradients, under transformations, and training towards small files."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
import jax.numpy as jnp  # noqa: E402

from smh.backends import jax as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.rates import OPTIONS, STEPS, WEIGHT, assert_gradients, data, packed_bits  # noqa: E402


def compressed(**options):
    return smh.compress({"w": jnp.ones((20, 30))}, **(OPTIONS | options))


def in_numpy(params):
    return {name: np.asarray(x) for name, x in params.variables.items()}


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("x64", [False, True])
def test_value_and_gradients(wrap, x64):
    params = compressed()
    with jax.enable_x64(x64):
        rate, gradients = wrap(jax.value_and_grad(smh.rate))(params)
    assert (rate.dtype, rate.shape) == (jnp.float32, ())
    assert float(rate) == pytest.approx(packed_bits(smh.plan_of(params), in_numpy(params)), rel=1e-4)
    assert_gradients(smh.plan_of(params), in_numpy(params), in_numpy(gradients))
    assert float(gradients.variables["scale/w"]) == 0.0


def test_training_with_the_rate_takes_fewer_bits():
    x, y = data()

    def loss(params, weight):
        return jnp.mean((x @ smh.materialize(params)["w"] - y) ** 2) + weight * smh.rate(params)

    @jax.jit
    def step(params, momentum, weight):
        momentum = jax.tree.map(lambda m, g: 0.9 * m + jnp.sign(g), momentum, jax.grad(loss)(params, weight))
        return jax.tree.map(lambda p, m: p - 0.003 * m, params, momentum), momentum

    found = {}
    for weight in (0.0, WEIGHT):
        params = compressed()
        momentum = jax.tree.map(jnp.zeros_like, params)
        for _ in range(STEPS):
            params, momentum = step(params, momentum, weight)
        found[weight] = packed_bits(smh.plan_of(params), in_numpy(params))
    assert found[WEIGHT] < 0.7 * found[0.0]


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate({"w": jnp.ones((20, 30))})
