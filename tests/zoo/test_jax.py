"""Models as JAX users define them, from compression over training and files to plain pytrees, bit for bit."""

import fnmatch
import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
optax = pytest.importorskip("optax", reason="Optax is not installed")
pytest.importorskip("flax", reason="Flax is not installed")
pytest.importorskip("equinox", reason="Equinox is not installed")

from smh import jax as smh  # noqa: E402
from smh.backends.jax.pytrees import flatten  # noqa: E402
from tests.support import xfailing  # noqa: E402
from tests.zoo.jax_models import MODELS, NO_MATRICES, STACKS  # noqa: E402

RESIDENCIES = ("full", "cached", "layer")


@functools.cache
def made(name):
    """Return parameters, a compiled function that gives the loss, the output and gradients of weights, and a batch."""
    params, apply, x = MODELS[name](0)
    target = jax.random.normal(jax.random.key(3), jax.eval_shape(apply, params, x).shape)

    def loss(params):
        y = apply(params, x)
        return ((y - target) ** 2).mean(), y

    return params, loss


def arrays(params):
    """Return the arrays of a pytree by the names of the report."""
    return {name: x for name, x in flatten(params)[1].items() if isinstance(x, jax.Array)}


def assert_same(found, expected):
    assert found.keys() == expected.keys() != set()
    for name, x in expected.items():
        a, b = np.asarray(found[name]), np.asarray(x)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_model(name, tmp_path):
    params, loss = made(name)
    before = arrays(params)
    compressed = smh.compress(params, ratio=0.4)
    names = [tensor.name for tensor in smh.plan_of(compressed).tensors]
    weights = arrays(smh.materialize(compressed))
    assert_same({n: x for n, x in weights.items() if n not in names}, {n: x for n, x in before.items() if n not in names})
    assert_same({n: weights[n] for n in names}, smh.backend.materialize(compressed.plan, compressed.variables))
    assert jax.tree.structure(smh.materialize(compressed)) == jax.tree.structure(params)

    # The gradients of what is kept are those of the plain model, those of the variables are what vjp makes of its others.
    step = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))
    expected, y = step(smh.materialize(compressed))
    expected = arrays(expected)
    outputs = {"y": y}
    for residency in RESIDENCIES:
        other = compressed.with_residency(residency)

        def composed(c):
            p, pull = jax.vjp(smh.materialize, c)
            g, y = step(p)
            return pull(g)[0], y

        gradients, found = composed(other)
        assert_same({"y": found}, outputs)
        assert_same(gradients.kept, {n: expected[n] for n in gradients.kept})
        vjp = smh.vjp(compressed.plan, compressed.variables, {n: expected[n] for n in names})
        assert_same(gradients.variables, vjp)
        for variable in compressed.plan.pool.variable_shapes():
            assert np.asarray(vjp[f"pool/{variable}"]).any()

    trained = jax.tree.map(lambda v, g: v - 0.1 * g if g.dtype == v.dtype else v, compressed, gradients)
    digest = smh.save(tmp_path / "model.safetensors", trained)
    for target in (MODELS[name](1)[0], compressed):
        loaded = smh.load(tmp_path / "model.safetensors", target)
        assert smh.digest(loaded) == digest == smh.digest(trained) != smh.digest(compressed)
        assert_same(arrays(smh.materialize(loaded)), arrays(smh.materialize(trained)))
    assert_same(arrays(params), before)
