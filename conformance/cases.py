"""Cases: a plan, values for its variables, cotangents, and what the oracle makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conformance import oracle
from conformance.vectors import Vector, load_vectors
from smh import pools
from smh.plan import Plan

KINDS = ("normal", "wide", "tiny", "grid", "special")


class Case:
    """One input for every law; expected results are computed once, by the oracle, and only when a law asks."""

    def __init__(
        self, name: str, plan: Plan, variables: Mapping[str, Any], cotangents: Mapping[str, Any], seed: int
    ) -> None:
        self.name = name
        self.plan = plan
        self.variables = dict(variables)
        self.cotangents = dict(cotangents)
        self.seed = seed

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """Weights of all tensors; none where the arithmetic promises no bits."""
        return oracle.weights(as_dict(self.plan), self.variables) if self.plan.arithmetic == "exact" else {}

    @cached_property
    def gradients(self) -> Mapping[str, Any]:
        """Gradients of all variables; none where the arithmetic promises no bits."""
        if self.plan.arithmetic != "exact":
            return {}
        return oracle.gradients(as_dict(self.plan), self.variables, self.cotangents)

    @cached_property
    def digest(self) -> str:
        """Digest of the weights."""
        return oracle.digest(as_dict(self.plan), self.variables)

    @classmethod
    def of(cls, vector: Vector, seed: int) -> Case:
        """Return the case of a golden vector, with the stored results instead of computed ones."""
        plan = Plan.from_json(json.dumps(vector.plan))
        case = cls(vector.name, plan, vector.variables, vector.cotangents, seed)
        case.__dict__.update(weights=vector.weights, gradients=vector.gradients, digest=vector.digest)
        return case


@lru_cache(maxsize=1)
def golden_cases() -> tuple[Case, ...]:
    """Return the cases of all golden vectors."""
    return tuple(Case.of(vector, seed) for seed, vector in enumerate(load_vectors()))


@lru_cache(maxsize=256)
def drawn_case(plan: Plan, seed: int, kind: str) -> Case:
    """Return the case of a plan with seeded values of one kind; every other seed leaves out some cotangents."""
    cotangents = cotangents_for(plan, seed, KINDS[seed % len(KINDS)])
    if seed % 2:
        cotangents = dict(list(cotangents.items())[1:])
    name = f"plan={plan.to_json()} seed={seed} kind={kind}"
    return Case(name, plan, variables_for(plan, seed, kind), cotangents, seed)


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as the oracle takes it: by way of its JSON."""
    return json.loads(plan.to_json())


def variables_for(plan: Plan, seed: int, kind: str) -> dict[str, np.ndarray]:
    """Return seeded variables of one kind."""
    rng = np.random.default_rng(seed)
    return {name: floats(rng, shape, kind) for name, shape in plan.variable_shapes.items()}


def cotangents_for(plan: Plan, seed: int, kind: str) -> dict[str, np.ndarray]:
    """Return seeded cotangents of one kind."""
    rng = np.random.default_rng(seed + 1)
    return {tensor.name: floats(rng, tensor.viewed_shape, kind) for tensor in plan.tensors}


def floats(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
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
        special = [0.0, -0.0, 1e-45, -1e-40, 2.0**-120, -(2.0**-121), np.inf, -np.inf, np.nan, 3.4e38, -3.4e38]
        hits = rng.random(size) < 0.15
        x[hits] = rng.choice(np.asarray(special, dtype=np.float32), int(hits.sum()))
    return x.reshape(shape)


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


@st.composite
def leaf_pools(draw: Any, weights: int) -> pools.Pool:
    """Draw a leaf pool for so many weights."""
    kind = draw(st.sampled_from(["matmul", "kronecker", "hash"]))
    if kind == "matmul":
        return pools.Matmul(n=int(np.ceil(np.sqrt(weights))), m=draw(st.integers(1, 40)))
    if kind == "kronecker":
        return pools.Kronecker(d=int(np.ceil(weights**0.25)), t=draw(st.integers(1, 40)))
    return pools.Hash(size=draw(st.integers(1, 70)), hashes=draw(st.integers(1, 4)), signed=draw(st.booleans()))


@st.composite
def any_pools(draw: Any, weights: int, depth: int = 2) -> pools.Pool:
    """Draw a pool, nested up to a depth."""
    if depth == 0 or draw(st.integers(0, 2)):
        return draw(leaf_pools(weights))
    combine = draw(st.sampled_from([pools.Sum, pools.Product]))
    return combine(*draw(st.lists(any_pools(weights, depth - 1), min_size=1, max_size=3)))


_VIEWS: dict[int, list[Any]] = {
    1: [None, ("(a b) -> b a", {"b": 1})],
    2: [None, "i o -> o i", "i o -> (o i)", "i o -> i 1 o"],
    3: [None, "w i o -> o i w", "w i o -> (o w) i"],
    4: [None, "h w i o -> o i h w", "h w i o -> (h w) (i o)"],
}


@st.composite
def plans(draw: Any, arithmetic: str = "exact") -> Plan:
    """Draw plans of up to about a thousand weights: pools to depth 2, layouts, scales, modifiers, views, gains."""
    drawn = draw(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4))
    shapes = {f"t{i}": tuple(shape) for i, shape in enumerate(drawn)}
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
        views={name: _view(draw, shape) for name, shape in shapes.items()},
        include=lambda name: True,
    )


def _view(draw: Any, shape: tuple[int, ...]) -> Any:
    view = draw(st.sampled_from(_VIEWS[len(shape)]))
    if not isinstance(view, str) or not draw(st.booleans()):
        return view
    axis = draw(st.integers(0, len(shape) - 1))
    return view, {}, {view.split()[axis]: draw(st.permutations(range(shape[axis])))}


def _with_capacity(pool: pools.Pool, capacity: int) -> pools.Pool:
    if isinstance(pool, pools.Hash):
        return pools.Hash(size=pool.size, hashes=pool.hashes, signed=pool.signed, capacity=capacity)
    if isinstance(pool, (pools.Sum, pools.Product)):
        return type(pool)(*(_with_capacity(part, capacity) for part in pool.parts))
    return pool


@st.composite
def cases(draw: Any) -> tuple[Case, ...]:
    """Draw a plan, and a case of it for every kind of values: a compiled plan serves them all."""
    plan, seed = draw(plans()), draw(st.integers(0, 2**31))
    return tuple(drawn_case(plan, seed + k, kind) for k, kind in enumerate(KINDS))
