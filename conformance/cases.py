"""Cases: a plan, values for its variables, cotangents, and what the oracle makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conformance import oracle
from conformance.vectors import Vector, load_vectors
from smh.core import pools
from smh.core.plan import Plan

KINDS = ("normal", "wide", "tiny", "edges", "ties", "zeros", "special")
"""Kinds of values: see :func:`floats`."""


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
        """Weights of all tensors."""
        return oracle.weights(self.plan.to_dict(), self.variables)

    @cached_property
    def gradients(self) -> Mapping[str, Any]:
        """Gradients of all variables."""
        return oracle.gradients(self.plan.to_dict(), self.variables, self.cotangents)

    @cached_property
    def digest(self) -> str:
        """Digest of the weights."""
        return oracle.digest(self.plan.to_dict(), self.variables)

    @cached_property
    def initial(self) -> Mapping[str, Mapping[str, Any]]:
        """Initial variables by distribution."""
        return {one: oracle.initial_variables(self.plan.to_dict(), one) for one in ("normal", "uniform")}

    @cached_property
    def ordinary(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Variables and cotangents of plain values, for laws that compare runs; the same tensors have cotangents."""
        cotangents = cotangents_for(self.plan, self.seed, "normal")
        given = {name: cotangents[name] for name in self.cotangents}
        return variables_for(self.plan, self.seed, "normal"), given

    @cached_property
    def another(self) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
        """Variables of another seed, and their weights."""
        variables = variables_for(self.plan, self.seed + 1, "normal")
        return variables, oracle.weights(self.plan.to_dict(), variables)

    @classmethod
    def of(cls, vector: Vector, seed: int) -> Case:
        """Return the case of a golden vector, with the stored results instead of computed ones."""
        case = cls(vector.name, Plan.from_dict(vector.plan), vector.variables, vector.cotangents, seed)
        case.__dict__.update(weights=vector.weights, gradients=vector.gradients, digest=vector.digest)
        return case


@lru_cache(maxsize=1)
def golden_cases() -> tuple[Case, ...]:
    """Return the cases of all golden vectors."""
    return tuple(Case.of(vector, seed) for seed, vector in enumerate(load_vectors()))


@lru_cache
def golden_plans(every: int = 1) -> tuple[Case, ...]:
    """Return the cases of every n-th plan of the golden vectors, and of one plan at least for each kind of pool."""
    of_plans: dict[Plan, list[Case]] = {}
    for case in golden_cases():
        of_plans.setdefault(case.plan, []).append(case)
    plans = list(of_plans)
    chosen = {plan.pool.kind: plan for plan in reversed(plans)}.values()
    return tuple(case for k, plan in enumerate(plans) if not k % every or plan in chosen for case in of_plans[plan])


def one_of_each_plan(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Return the first case of each plan."""
    first: dict[Plan, Case] = {}
    for case in cases:
        first.setdefault(case.plan, case)
    return tuple(first.values())


@lru_cache(maxsize=256)
def drawn_case(plan: Plan, seed: int, kind: str) -> Case:
    """Return the case of a plan with seeded values of one kind; every other seed leaves out a cotangent."""
    cotangents = cotangents_for(plan, seed, KINDS[seed % len(KINDS)])
    if seed % 2:
        cotangents = dict(list(cotangents.items())[1:])
    name = f"plan={plan.to_json()} seed={seed} kind={kind}"
    return Case(name, plan, variables_for(plan, seed, kind), cotangents, seed)


def variables_for(plan: Plan, seed: int, kind: str) -> dict[str, np.ndarray]:
    """Return seeded variables of one kind."""
    rng = np.random.default_rng(seed)
    return {name: floats(rng, shape, kind) for name, shape in plan.variable_shapes.items()}


def cotangents_for(plan: Plan, seed: int, kind: str) -> dict[str, np.ndarray]:
    """Return seeded cotangents of one kind, for all tensors."""
    rng = np.random.default_rng(seed + 1)
    return {tensor.name: floats(rng, tensor.viewed_shape, kind) for tensor in plan.tensors}


_POWERS = (-149, -126, -120, -88, -70, -31, -30, -29, 0, 29, 30, 31, 89, 90, 91, 127)
_FRACTIONS = (1 - 2.0**-7, 1 - 2.0**-22, 1 - 2.0**-24, 1.0, -1.0)
_SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 2.0**-120, -(2.0**-121), np.inf, -np.inf, np.nan, 3.4e38, -3.4e38)


def floats(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return float32 values of one kind.

    Kinds are plain, of many exponents, tiny, around the limits of grids, on ties of a coarse grid, zeros, and plain
    with infinities, NaN, subnormal and largest numbers.
    """
    size = int(np.prod(shape, dtype=np.int64))
    x = rng.standard_normal(size).astype(np.float32)
    with np.errstate(all="ignore"):
        if kind == "wide":
            x = np.ldexp(x, rng.integers(-40, 40, size)).astype(np.float32)
        elif kind == "tiny":
            x = np.ldexp(rng.uniform(-1, 1, size), rng.integers(-149, -25)).astype(np.float32)
        elif kind == "edges":
            x = np.ldexp(rng.choice(_FRACTIONS, size), rng.choice(_POWERS)).astype(np.float32)
        elif kind == "ties":
            x = (rng.integers(-254, 254, size).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-9)
            x[0] = np.float32(0.75)
        elif kind == "zeros":
            x = np.zeros(size, dtype=np.float32) if rng.random() < 0.5 else np.where(rng.random(size) < 0.8, 0, x)
        elif kind == "special":
            x = np.where(rng.random(size) < 0.1, rng.choice(np.asarray(_SPECIAL, dtype=np.float32), size), x)
    return np.asarray(x, dtype=np.float32).reshape(shape)


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


@st.composite
def leaf_pools(draw: Any, weights: int) -> pools.Pool:
    """Draw a leaf pool for so many weights."""
    bits = draw(st.sampled_from([8, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]))
    gain = draw(st.sampled_from([None, 0, 1, 3, 20]))
    exponents = st.integers(-3, 3) | st.integers(-29, 30)
    pair = (draw(exponents), draw(exponents)) if draw(st.sampled_from([False, False, False, True])) else None
    kind = draw(st.sampled_from(["matmul", "kronecker", "hash"]))
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
def plans(draw: Any) -> Plan:
    """Draw plans of up to about a thousand weights: pools to depth 2, layouts, scales, kappas, modifiers, views."""
    sizes = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4)
    shapes = {f"t{i}": tuple(shape) for i, shape in enumerate(draw(sizes))}
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
        views={name: _view(draw, shape) for name, shape in shapes.items()},
        include=lambda name: True,
    )


def _view(draw: Any, shape: tuple[int, ...]) -> Any:
    view = draw(st.sampled_from(_VIEWS[len(shape)]))
    if not isinstance(view, str) or not draw(st.booleans()):
        return view
    axis = draw(st.integers(0, len(shape) - 1))
    return view, {}, {view.split()[axis]: draw(st.permutations(range(shape[axis])))}


@st.composite
def cases(draw: Any) -> tuple[Case, ...]:
    """Draw a plan, and a case of it for every kind of values: a compiled plan serves them all."""
    plan, seed = draw(plans()), draw(st.integers(0, 2**31))
    return tuple(drawn_case(plan, seed + k, kind) for k, kind in enumerate(KINDS))
