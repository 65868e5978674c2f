"""The laws that are checked on golden vectors and on drawn plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from conformance import oracle
from conformance.bits import Tally
from conformance.cases import Case
from conformance.subject import CaseLaw, Subject
from smh.core.pools import LeafPool

Arrays = Mapping[str, Any]


def indices(s: Subject, case: Case, tally: Tally) -> None:
    """The hash index equals the oracle's, for the whole range and for a slice of it."""
    capacity = case.plan.capacity
    for start, stop in ((0, capacity), (capacity // 3, capacity // 2 + 1)):
        found = s.take(s.backend.indices(case.plan, start, stop))
        tally.all_same(found, oracle.indices(case.plan.to_dict(), np.arange(start, stop)), "indices into")


def initial(s: Subject, case: Case, tally: Tally) -> None:
    """Initial variables have the oracle's bits, in both distributions."""
    for distribution, expected in case.initial.items():
        found = s.api.initialize(case.plan, distribution, s.device)
        tally.all_same(s.take(found), expected, f"{distribution} initial variable")


def weights(s: Subject, case: Case, tally: Tally) -> None:
    """All weights have the oracle's bits."""
    tally.all_same(s.weights(case.plan, case.variables), case.weights, "weights")


def gradients(s: Subject, case: Case, tally: Tally) -> None:
    """The gradient of every variable has the oracle's bits; tensors without cotangents send none."""
    found = s.gradients(case.plan, case.variables, case.cotangents)
    tally.all_same(found, case.gradients, "gradient of")


def digest(s: Subject, case: Case, tally: Tally) -> None:
    """The digest is the oracle's: weights in canonical shapes have the right bits, too."""
    found = s.api.digest(case.plan, s.put(case.variables))
    tally.true(found == case.digest, f"digest: {found} against {case.digest}")


def by_name(s: Subject, case: Case, tally: Tally) -> None:
    """Weights that are built by name, in any order, have the bits that they have when all are built."""
    names = [tensor.name for tensor in case.plan.tensors][::-2]
    every = s.weights(case.plan, case.variables)
    found = s.weights(case.plan, case.variables, names)
    tally.all_same(found, {name: every[name] for name in names}, "weights by name")


def form(s: Subject, case: Case, tally: Tally) -> None:
    """Results are arrays of the backend: type, dtype, shape, device, and the order of their names."""
    model = s.backend.asarray(np.zeros(1, dtype=np.float32), s.device)
    built = s.backend.materialize(case.plan, s.put(case.variables))
    found = s.backend.vjp(case.plan, s.put(case.variables), s.put(case.cotangents))
    tally.true(list(built) == [tensor.name for tensor in case.plan.tensors], f"names of weights: {list(built)}")
    tally.true(list(found) == list(case.plan.variable_shapes), f"names of gradients: {list(found)}")
    shapes = {tensor.name: tensor.viewed_shape for tensor in case.plan.tensors} | case.plan.variable_shapes
    for name, x in {**built, **found}.items():
        tally.true(isinstance(x, type(model)), f"{name!r}: {type(x).__name__} is no {type(model).__name__}")
        tally.true(x.dtype == model.dtype, f"{name!r}: {x.dtype} against {model.dtype}")
        tally.true(tuple(x.shape) == shapes[name], f"{name!r}: {tuple(x.shape)} against {shapes[name]}")
        tally.true(x.device == model.device, f"{name!r}: on {x.device}, not {model.device}")


def purity(s: Subject, case: Case, tally: Tally) -> None:
    """No argument is changed."""
    variables, cotangents = s.put(case.variables), s.put(case.cotangents)
    names = [list(variables), list(cotangents)]
    s.backend.materialize(case.plan, variables)
    s.backend.vjp(case.plan, variables, cotangents)
    tally.true([list(variables), list(cotangents)] == names, "names of the arguments are changed")
    for what, before, after in (("variable", case.variables, variables), ("cotangent", case.cotangents, cotangents)):
        for name, x in before.items():
            tally.same(s.backend.to_numpy(after[name]), x, f"{what} {name!r} after the call")


def memory(s: Subject, case: Case, tally: Tally) -> None:
    """Results depend on the arguments only: not on calls before, and not on how often."""
    first, cotangents = case.variables, case.cotangents
    other, expected = case.another
    before, gradients_before = s.weights(case.plan, first), s.gradients(case.plan, first, cotangents)
    found = s.weights(case.plan, other)
    tally.all_same(found, expected, "weights of other variables, afterwards,")
    tally.all_same(s.weights(case.plan, first), before, "weights, once more,")
    tally.all_same(s.gradients(case.plan, first, cotangents), gradients_before, "gradients, once more,")


def linearity(s: Subject, case: Case, tally: Tally) -> None:
    """Twice the cotangents give twice the gradients, negative ones negative; products may reach the limits of grids."""
    if '"product"' in case.plan.to_json():
        return
    variables, cotangents = case.ordinary
    once = s.gradients(case.plan, variables, cotangents)
    for factor in (2.0, -1.0):
        scaled = {name: np.float32(factor) * g for name, g in cotangents.items()}
        found = s.gradients(case.plan, variables, scaled)
        _same_but_for_floors(tally, found, once, factor, f"gradients of cotangents times {factor}:")


def powers(s: Subject, case: Case, tally: Tally) -> None:
    """Variables of one array times a power of two give weights, and other gradients, times that power.

    Exponents that a plan fixes, combined pools, padding and signs have no such law.
    """
    pool = case.plan.pool
    if not isinstance(pool, LeafPool) or pool.exponents is not None or case.plan.layout == "padding":
        return
    if any("sign" in tensor.modifiers for tensor in case.plan.tensors):
        return
    variables, cotangents = case.ordinary
    name = next(iter(variables))
    once = s.weights(case.plan, variables)
    for power in (5, -7):
        scaled = variables | {name: np.ldexp(variables[name], power)}
        found = s.weights(case.plan, scaled)
        _same_but_for_floors(tally, found, once, 2.0**power, f"weights of {name!r} times 2**{power}:")
    other = {key: g for key, g in s.gradients(case.plan, scaled, cotangents).items() if key != name}
    before = s.gradients(case.plan, variables, cotangents)
    expected = {key: before[key] for key in other}
    _same_but_for_floors(tally, other, expected, 2.0**power, f"gradients for {name!r} times 2**{power}:")


def _same_but_for_floors(tally: Tally, found: Arrays, once: Arrays, factor: float, what: str) -> None:
    """Compare ``found`` with ``factor`` times ``once`` where no floor of either can have removed anything."""
    small = 2.0**-100  # floors are at 2**-120 at most, and what they remove is not multiplied by more than 2**20
    for name, x in once.items():
        expected = np.asarray(np.float32(factor) * x + np.float32(0))  # -0 becomes +0
        tiny = (np.abs(expected) < small) & (np.abs(found[name]) < small) | (np.abs(x) < small)
        tally.same(np.where(tiny, 0, found[name]), np.where(tiny, 0, expected).astype(np.float32), f"{what} {name!r}")


CASE_LAWS: tuple[CaseLaw, ...] = (
    indices,
    initial,
    weights,
    gradients,
    digest,
    by_name,
    form,
    purity,
    memory,
    linearity,
    powers,
)

RESULTS: tuple[CaseLaw, ...] = (weights, gradients, digest)
"""The laws that compare results with the oracle's: golden vectors hold values that single mistakes need."""
