"""Models as JAX users define them, from compression over training and files to plain pytrees, bit for bit."""

import dataclasses
import fnmatch
import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
optax = pytest.importorskip("optax", reason="Optax is not installed")
pytest.importorskip("flax", reason="Flax is not installed")
pytest.importorskip("equinox", reason="Equinox is not installed")

import smh as core  # noqa: E402
from smh import jax as smh  # noqa: E402
from smh.backends.jax.pytrees import flatten  # noqa: E402
from tests.zoo.jax_models import MODELS, NO_MATRICES, STACKS  # noqa: E402
from tests.zoo.learning import assert_keeps_up  # noqa: E402


@functools.cache
def made(name):
    """Return parameters, and a compiled function that gives gradients at them and the output."""
    params, apply, x = MODELS[name](0)
    shape = jax.eval_shape(lambda: apply(params, x)).shape
    target = np.random.default_rng(3).normal(size=shape).astype("float32")
    treedef, named = flatten(params)

    def loss(arrays):
        y = apply(jax.tree.unflatten(treedef, [arrays.get(key, x) for key, x in named.items()]), x)
        return ((y - target) ** 2).mean(), y

    return params, loss, jax.jit(jax.value_and_grad(loss, has_aux=True))


def arrays(params):
    """Return the float32 arrays of a pytree by the names of the report; functions and counters stay where they are."""
    leaves = flatten(params)[1].items()
    return {name: x for name, x in leaves if isinstance(x, jax.Array) and x.dtype == np.float32}


def assert_same(found, expected):
    assert found.keys() == expected.keys() != set()
    for name, x in expected.items():
        a, b = np.asarray(found[name]), np.asarray(x)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=name)


OPTIMIZER = optax.adam(1e-2)


@jax.jit
def updated(params, gradients, state):
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def losses_of(name, params, steps=60):
    """Return the first and the last loss of parameters, compressed or not, that are trained on one batch."""
    gradients_of = made(name)[2]
    state, losses = OPTIMIZER.init(params), []
    for _ in range(steps):
        if isinstance(params, dict):
            (loss, _), gradients = gradients_of(params)
        else:
            weights, pull = jax.vjp(lambda c: arrays(smh.materialize(c)), params)
            (loss, _), gradients = gradients_of(weights)
            (gradients,) = pull(gradients)
        params, state = updated(params, gradients, state)
        losses.append(float(loss))
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", MODELS)
def test_model(name, tmp_path):
    params, _, step = made(name)
    before = arrays(params)
    compressed = smh.compress(params, ratio=0.5, optimizer="adam")
    plan, variables = smh.plan_of(compressed), compressed.variables
    names = [tensor.name for tensor in plan.tensors]
    assert jax.tree.structure(smh.materialize(compressed)) == jax.tree.structure(params)
    weights, pull = jax.vjp(lambda v: arrays(smh.materialize(dataclasses.replace(compressed, variables=v))), variables)
    kept = {n: x for n, x in before.items() if n not in names}
    assert kept
    assert_same({n: x for n, x in weights.items() if n not in names}, kept)
    assert_same({n: weights[n] for n in names}, core.materialize(plan, host(variables)))

    # The pool gets the gradients that NumPy makes of those of the weights.
    expected = step(weights)[1]
    gradients = pull(expected)[0]
    cotangents = {n: np.asarray(expected[n]) for n in names}
    assert_same(gradients, core.vjp(plan, host(variables), cotangents))
    for variable in plan.pool.variable_shapes():
        assert np.asarray(gradients[f"pool/{variable}"]).any()

    moved = {n: v - np.float32(0.1) * np.asarray(gradients[n]) for n, v in host(variables).items()}
    trained = dataclasses.replace(compressed, variables={n: jax.numpy.asarray(v) for n, v in moved.items()})
    weights = arrays(smh.materialize(trained))
    for _ in range(2):
        assert_same(arrays(smh.materialize(trained.with_residency("cached"))), weights)
    path = tmp_path / "model.safetensors"
    digest = smh.save(path, trained)
    for target in (other(params), compressed):
        loaded = smh.load(path, target)
        assert smh.digest(loaded) == digest == smh.digest(trained) != smh.digest(compressed)
        assert_same(arrays(smh.materialize(loaded)), weights)
    assert_same(arrays(params), before)

    dense = losses_of(name, before)
    assert_keeps_up(dense, losses_of(name, compressed))
    if name == "haiku_mlp":  # where wrong initial values show
        large = {n: 30 * v if n.startswith("scale/") else v for n, v in variables.items()}
        with pytest.raises(AssertionError, match="the loss starts"):
            assert_keeps_up(dense, losses_of(name, dataclasses.replace(compressed, variables=large)))


def host(named):
    return {name: np.asarray(x) for name, x in named.items()}


def other(params):
    """Return parameters with other values."""
    treedef, named = flatten(params)
    changed = {name: jax.numpy.asarray(np.asarray(x) + 1) for name, x in arrays(params).items()}
    return jax.tree.unflatten(treedef, [changed.get(name, x) for name, x in named.items()])


@pytest.mark.parametrize("name", ["haiku_mlp"])
def test_layer_by_layer(name):
    params, loss, _ = made(name)
    compressed = smh.compress(params, ratio=0.5, optimizer="adam")
    weights = arrays(smh.materialize(compressed))
    assert_same(arrays(smh.materialize(compressed.with_residency("layer"))), weights)


@pytest.mark.parametrize("name", NO_MATRICES)
def test_what_is_no_weight_matrix_is_kept(name):
    params = made(name)[0]
    compressed = smh.compress(params, ratio=0.4)
    for pattern in NO_MATRICES[name]:
        names = fnmatch.filter(arrays(params), pattern)
        assert names, pattern
        assert set(names) <= set(compressed.kept), pattern


@pytest.mark.parametrize("name", STACKS)
def test_weights_start_with_the_deviation_of_their_fan_in(name):
    plan = smh.plan_of(smh.compress(made(name)[0], ratio=0.4))
    weights = core.materialize(plan, core.initialize(plan))
    for pattern, inputs in STACKS[name].items():
        names = fnmatch.filter(weights, pattern)
        assert names, pattern
        for key in names:
            assert weights[key].std() == pytest.approx((3 * inputs) ** -0.5, rel=0.15), (key, weights[key].shape)
