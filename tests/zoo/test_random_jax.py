"""Random small pytrees, compressed against plainly written: the same function of the same weights, given as arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax", reason="the jax backend needs jax")
import jax.numpy as jnp  # noqa: E402

import smh as core  # noqa: E402
from smh import jax as smh  # noqa: E402
from smh.backends.jax.pytrees import flatten  # noqa: E402
from tests.zoo.jax_models import scaled  # noqa: E402

WIDTH = 8
X = jnp.asarray(np.random.default_rng(3).normal(size=(5, WIDTH)), "float32")


def dense(rng):
    return {"kernel": scaled(rng, WIDTH, WIDTH), "bias": jnp.zeros(WIDTH)}


LAYERS = {
    "dense": (dense, lambda p, x: x @ p["kernel"] + p["bias"]),
    "no_bias": (lambda rng: {"w": scaled(rng, WIDTH, WIDTH)}, lambda p, x: x @ p["w"]),
    "bottleneck": (
        lambda rng: (scaled(rng, WIDTH, 3), scaled(rng, 3, WIDTH)),
        lambda p, x: jnp.tanh(x @ p[0]) @ p[1],
    ),
    "norm": (
        lambda rng: {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)},
        lambda p, x: jax.nn.standardize(x) * p["scale"] + p["bias"],
    ),
    "heads": (
        lambda rng: {"query": {"kernel": jnp.asarray(rng.normal(size=(WIDTH, 2, 4)) / 3, "float32")}},
        lambda p, x: jnp.einsum("bi,iho->bho", x, p["query"]["kernel"]).reshape(x.shape),
    ),
    "stack": (
        lambda rng: {"kernel": scaled(rng, 2, WIDTH, WIDTH), "bias": jnp.zeros((2, WIDTH))},
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["kernel"][0] + p["bias"][0]) @ p["kernel"][1] + p["bias"][1]),
    ),
    "embedding": (
        lambda rng: {"embedding": scaled(rng, 7, WIDTH)},
        lambda p, x: x + p["embedding"][jnp.arange(len(x)) % 7],
    ),
    "constants": (lambda rng: [3, jnp.arange(4), None], lambda p, x: x / p[0]),
}
"""Kind: what makes the parameters of a layer, and the layer."""

leaves = st.sampled_from(sorted(LAYERS)).map(lambda kind: ("leaf", kind))
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(["list", "dict", "residual"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=4,
)


def made(tree, rng):
    kind, inside = tree
    if kind == "leaf":
        return LAYERS[inside][0](rng)
    parts = [made(part, rng) for part in inside]
    return {f"part{i}": part for i, part in enumerate(parts)} if kind == "dict" else parts


def called(tree, params, x):
    """Return the output of a tree of layers; those of a dictionary are called in the opposite order."""
    kind, inside = tree
    if kind == "leaf":
        return LAYERS[inside][1](params, x)
    pairs = list(zip(inside, params.values() if kind == "dict" else params, strict=True))
    y = x
    for part, p in reversed(pairs) if kind == "dict" else pairs:
        y = jnp.tanh(called(part, p, y))
    return x + y if kind == "residual" else y


@st.composite
def models(draw):
    """Draw a model: a tree of layers between two others that are tied or not, and a collection that is not trained."""
    tree, rng = draw(trees), np.random.default_rng(draw(st.integers(0, 99)))
    params = {"first": dense(rng), "tree": made(tree, rng), "last": dense(rng)}
    if draw(st.booleans()):
        params["last"]["kernel"] = params["first"]["kernel"]
    frozen = draw(st.booleans())
    if frozen:
        params = {"params": params, "constants": {"kernel": scaled(rng, WIDTH, WIDTH)}}

    def apply(params, x):
        own = params["params"] if frozen else params
        y = called(tree, own["tree"], jnp.tanh(x @ own["first"]["kernel"] + own["first"]["bias"]))
        y = y @ own["last"]["kernel"] + own["last"]["bias"]
        return y @ params["constants"]["kernel"] if frozen else y

    return params, apply


def assert_same(found, expected, what):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype == np.float32, what
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=what)


@settings(max_examples=10)
@given(models(), st.sampled_from(["full", "cached", "layer"]))
def test_a_compressed_pytree_computes_what_is_written_plainly(model, residency):
    params, apply = model
    compressed = smh.compress(params, ratio=0.5, residency=residency)
    plan = smh.plan_of(compressed)
    variables = {name: np.asarray(x) for name, x in compressed.variables.items()}
    built = core.materialize(plan, variables)
    places = {t.name: (t.name, *t.aliases) for t in compressed.structure.compression.tensors}
    treedef, named = flatten(params)

    def loss(arrays):
        y = apply(jax.tree.unflatten(treedef, [arrays.get(name, x) for name, x in named.items()]), X)
        return (y**2).mean(), y

    trained = {name: x for name, x in named.items() if isinstance(x, jax.Array) and x.dtype == np.float32}
    weights = trained | {place: jnp.asarray(built[name]) for name in built for place in places[name]}
    (_, expected), gradients = jax.value_and_grad(loss, has_aux=True)(weights)

    def compressed_loss(compressed):
        y = apply(smh.materialize(compressed), X)
        return (y**2).mean(), y

    (_, y), found = jax.value_and_grad(compressed_loss, has_aux=True, allow_int=True)(compressed)
    assert_same(y, expected, "output")
    for name in compressed.kept.keys() & trained.keys():
        assert_same(compressed.kept[name], trained[name], name)
        assert_same(found.kept[name], gradients[name], f"gradient of {name}")
    cotangents = {name: np.asarray(sum(gradients[place] for place in places[name])) for name in built}
    expected = core.vjp(plan, variables, cotangents)
    for name, gradient in found.variables.items():
        assert_same(gradient, expected[name], f"gradient of {name}")
    for name in plan.pool.variable_shapes():
        assert expected[f"pool/{name}"].any(), name
    assert not any("constants/kernel" in name for name in built)
