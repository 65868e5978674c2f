"""Plans and values that Hypothesis draws for the core, and the comparison with the oracle."""

import json

import numpy as np
from hypothesis import strategies as st

from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from smh.core import generate, pools
from smh.core.plan import Plan

KINDS = ("normal", "wide", "tiny", "edges", "ties", "zeros", "special")
seeds = st.integers(0, 2**32 - 1)


def floats(rng, shape, kind):
    """Return float32 values: plain, of all exponents, tiny, around the limits of grids, on ties, zeros, non-finite."""
    size = int(np.prod(shape, dtype=np.int64))
    x = rng.standard_normal(size).astype(np.float32)
    with np.errstate(all="ignore"):
        if kind == "wide":
            x = np.ldexp(x, rng.integers(-40, 40, size)).astype(np.float32)
        elif kind == "tiny":
            x = np.ldexp(rng.uniform(-1, 1, size), rng.integers(-149, -25)).astype(np.float32)
        elif kind == "edges":
            powers = rng.choice([-149, -126, -120, -88, -70, -31, -30, -29, 0, 29, 30, 31, 89, 90, 91, 127])
            x = np.ldexp(rng.choice([1 - 2.0**-7, 1 - 2.0**-22, 1 - 2.0**-24, 1.0, -1.0], size), powers).astype("f4")
        elif kind == "ties":
            x = (rng.integers(-254, 254, size).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-9)
            x[0] = np.float32(0.75)
        elif kind == "zeros":
            x = np.zeros(size, dtype=np.float32) if rng.random() < 0.5 else np.where(rng.random(size) < 0.8, 0, x)
        elif kind == "special":
            values = [0.0, -0.0, 1e-45, -1e-40, 2.0**-120, -(2.0**-121), np.inf, -np.inf, np.nan, 3.4e38, -3.4e38]
            x = np.where(rng.random(size) < 0.1, rng.choice(np.asarray(values, dtype=np.float32), size), x)
    return x.astype(np.float32).reshape(shape)


@st.composite
def leaf_pools(draw, weights):
    """Draw a leaf pool for so many weights."""
    bits = draw(st.sampled_from([2, 3, 4, 8, 8, 9, 10, 16]))
    gain = draw(st.sampled_from([None, 0, 1, 3, 20]))
    exponents = st.integers(-29, 30) | st.integers(-3, 3)
    fixed = draw(st.booleans()) and draw(st.booleans())
    kind = draw(st.sampled_from(["matmul", "kronecker", "hash"]))
    pair = (draw(exponents), draw(exponents)) if fixed else None
    if kind == "matmul":
        n = int(np.ceil(np.sqrt(weights)))
        return pools.Matmul(n=n, m=draw(st.integers(1, 40)), bits=bits, gain=gain, exponents=pair)
    if kind == "kronecker":
        d = int(np.ceil(weights**0.25))
        return pools.Kronecker(d=d, t=draw(st.integers(1, 40)), bits=bits, gain=gain, exponents=pair)
    return pools.Hash(
        size=draw(st.integers(1, 70)),
        hashes=draw(st.integers(1, 4)),
        signed=draw(st.booleans()),
        capacity=weights,
        bits=bits,
        gain=gain,
        exponents=pair[:1] if pair else None,
    )


@st.composite
def any_pools(draw, weights, depth=2):
    """Draw a pool, nested up to a depth."""
    if depth == 0 or draw(st.integers(0, 2)):
        return draw(leaf_pools(weights))
    combine = draw(st.sampled_from([pools.Sum, pools.Product]))
    return combine(*draw(st.lists(any_pools(weights, depth - 1), min_size=1, max_size=3)))


_VIEWS = {
    1: [None, ("(a b) -> b a", {"b": 1})],
    2: [None, "i o -> o i", "i o -> i 1 o"],
    3: [None, "w i o -> o i w"],
    4: [None, "h w i o -> o i h w"],
}


@st.composite
def plans(draw):
    """Draw plans of up to about a thousand weights: pools to depth 2, layouts, scales, kappas, modifiers, views."""
    drawn = draw(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4))
    shapes = {f"t{i}": tuple(shape) for i, shape in enumerate(drawn)}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    layout = draw(st.sampled_from(["basic", "cyclic", "padding"]))
    capacity = total if layout == "basic" else draw(st.integers(1, total + 3))
    rules = st.sampled_from(["fan_in", "fan_out", "he", "glorot", 0.5, 3.0, 2.0**-30, 2.0**29])
    modifiers = st.lists(st.sampled_from(["relu", "sign"]), max_size=2)
    return Plan.build(
        shapes,
        ratio=10**9,
        pool=draw(any_pools(capacity)),
        layout=layout,
        scale={name: draw(rules) for name in shapes},
        learn_scale=draw(st.booleans()),
        modifiers={name: draw(modifiers) for name in shapes},
        seed=draw(seeds),
        optimizer=draw(st.sampled_from(["sgd", "adam"])),
        views={name: draw(st.sampled_from(_VIEWS[len(shape)])) for name, shape in shapes.items()},
        include=lambda name: True,
    )


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


def variables_for(plan, seed, kind):
    """Return variables of a kind."""
    rng = np.random.default_rng(seed)
    return {name: floats(rng, shape, kind) for name, shape in plan.variable_shapes.items()}


def cotangents_for(plan, seed, kind):
    """Return cotangents of a kind, of all tensors."""
    rng = np.random.default_rng(seed + 1)
    return {tensor.name: floats(rng, tensor.viewed_shape, kind) for tensor in plan.tensors}


def check(kernels, plan, variables, cotangents, put=np.asarray, take=np.asarray):
    """Compare weights and all gradients of the core with the oracle, bit for bit."""
    described = json.loads(plan.to_json())
    given = {name: put(x) for name, x in variables.items()}
    with np.errstate(all="ignore"):
        weights = generate.materialize(kernels, plan, given)
        gradients = generate.vjp(kernels, plan, given, {name: put(x) for name, x in cotangents.items()})
        expected = oracle.weights(described, variables)
        expected_gradients = oracle.gradients(described, variables, cotangents)
    assert list(weights) == [tensor.name for tensor in plan.tensors]
    assert list(gradients) == list(plan.variable_shapes)
    for name, x in expected.items():
        assert_same_bits(take(weights[name]), x, f"weights {name!r} of {plan.to_json()}")
    for name, x in expected_gradients.items():
        assert_same_bits(take(gradients[name]), x, f"gradient of {name!r} of {plan.to_json()}")
