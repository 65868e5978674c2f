"""Strategies for plans and arrays, and the comparison of bits."""

import json

import numpy as np
from hypothesis import strategies as st

from smh import pools
from smh.plan import Plan

KINDS = ("normal", "wide", "tiny", "grid", "special")


def assert_same_bits(actual, expected, what=""):
    """Fail unless two float32 arrays have the same bits; all NaNs count as one."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float32 == expected.dtype, f"{what}: {actual.dtype} against {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    a, e = canonical_bits(actual), canonical_bits(expected)
    where = np.argwhere(a != e)
    if len(where):
        at = tuple(where[0])
        raise AssertionError(
            f"{what}: {len(where)} of {a.size} differ, first at {at}: "
            f"{actual[at]!r} ({a[at]:#010x}) against {expected[at]!r} ({e[at]:#010x})"
        )


def canonical_bits(x):
    bits = np.ascontiguousarray(x).reshape(np.shape(x)).view(np.uint32)
    return np.where(np.isnan(x), np.uint32(0x7FC00000), bits)


def floats(rng, shape, kind):
    """Return float32 values of one kind: plain, of all exponents, tiny, on ties of a coarse grid, or with specials."""
    size = int(np.prod(shape, dtype=np.int64))
    if kind == "normal":
        x = rng.standard_normal(size).astype(np.float32)
    elif kind == "wide":
        bits = rng.integers(0, 2**32, size, dtype=np.uint32)
        bits = np.where((bits & 0x7F800000) == 0x7F800000, bits & 0xBF7FFFFF, bits)
        x = bits.astype(np.uint32).view(np.float32)
    elif kind == "tiny":
        x = np.ldexp(rng.uniform(-1, 1, size), rng.integers(-149, -95, size)).astype(np.float32)
    elif kind == "grid":
        # Odd multiples of half a grid unit beside one large value: half of all roundings are ties.
        x = (rng.integers(-(2**12), 2**12, size) + 0.5).astype(np.float32) * np.float32(2.0**-24)
        x[rng.integers(0, size, max(1, size // 8))] = np.float32(0.75)
    else:
        x = rng.standard_normal(size).astype(np.float32)
        special = [
            0.0,
            -0.0,
            1e-45,
            -1e-40,
            2.0**-120,
            -(2.0**-121),
            np.inf,
            -np.inf,
            np.nan,
            3.4e38,
            -3.4e38,
        ]
        hits = rng.random(size) < 0.15
        x[hits] = rng.choice(np.asarray(special, dtype=np.float32), int(hits.sum()))
    return x.reshape(shape)


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


@st.composite
def leaf_pools(draw, weights):
    kind = draw(st.sampled_from(["matmul", "kronecker", "hash"]))
    if kind == "matmul":
        return pools.Matmul(n=int(np.ceil(np.sqrt(weights))), m=draw(st.integers(1, 40)))
    if kind == "kronecker":
        return pools.Kronecker(d=int(np.ceil(weights**0.25)), t=draw(st.integers(1, 40)))
    return pools.Hash(size=draw(st.integers(1, 70)), hashes=draw(st.integers(1, 4)), signed=draw(st.booleans()))


@st.composite
def any_pools(draw, weights, depth=2):
    if depth == 0 or draw(st.integers(0, 2)):
        return draw(leaf_pools(weights))
    combine = draw(st.sampled_from([pools.Sum, pools.Product]))
    return combine(*draw(st.lists(any_pools(weights, depth - 1), min_size=1, max_size=3)))


_VIEWS = {
    1: [None, ("(a b) -> b a", {"b": 1})],
    2: [None, "i o -> o i", "i o -> (o i)", "i o -> i 1 o"],
    3: [None, "w i o -> o i w", "w i o -> (o w) i"],
    4: [None, "h w i o -> o i h w", "h w i o -> (h w) (i o)"],
}


@st.composite
def plans(draw, arithmetic="exact"):
    """Draw plans of up to about a thousand weights: pools to depth 2, layouts, scales, modifiers, views, gains."""
    shapes = draw(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4))
    shapes = {f"t{i}": tuple(shape) for i, shape in enumerate(shapes)}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    layout = draw(st.sampled_from(["basic", "cyclic", "padding"]))
    capacity = total if layout == "basic" else draw(st.integers(1, total + 3))
    pool = draw(any_pools(capacity))
    rules = st.sampled_from(["fan_in", "fan_out", "he", "glorot", 0.5, 3.0])
    modifiers = st.lists(st.sampled_from(["relu", "sign"]), max_size=2)
    return Plan.build(
        shapes,
        ratio=10**9,
        pool=_with_capacity(pool, capacity),
        layout=layout,
        scale={name: draw(rules) for name in shapes},
        learn_scale=draw(st.booleans()),
        modifiers={name: draw(modifiers) for name in shapes},
        seed=draw(seeds),
        arithmetic=arithmetic,
        gain=draw(st.sampled_from(["sgd", "adam", 0, 1, 3])),
        views={name: draw(st.sampled_from(_VIEWS[len(shape)])) for name, shape in shapes.items()},
        include=lambda name: True,
    )


def _with_capacity(pool, capacity):
    if isinstance(pool, pools.Hash):
        return pools.Hash(size=pool.size, hashes=pool.hashes, signed=pool.signed, capacity=capacity)
    if isinstance(pool, (pools.Sum, pools.Product)):
        return type(pool)(*(_with_capacity(part, capacity) for part in pool.parts))
    return pool


def variables_for(plan, seed, kind):
    rng = np.random.default_rng(seed)
    return {name: floats(rng, shape, kind) for name, shape in plan.variable_shapes.items()}


def cotangents_for(plan, seed, kind):
    rng = np.random.default_rng(seed + 1)
    return {tensor.name: floats(rng, tensor.viewed_shape, kind) for tensor in plan.tensors}


def as_dict(plan):
    """Return the plan as the oracle takes it: by way of its JSON."""
    return json.loads(plan.to_json())
