"""The laws that every backend keeps, in every mode and on every device.

A law is a function that fails with an AssertionError. Laws of the first kind take a case; the suite runs them on the
golden vectors and on drawn plans. Laws of the second kind bring their own data. `tests/meta` holds a broken backend for
every law, which no other law finds.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import smh
from conformance import fingerprint, oracle, real_sizes
from conformance.bits import Tally
from conformance.cases import Case, as_dict, cotangents_for, floats, variables_for
from smh import pools
from smh.api import Api
from smh.backends.protocol import Backend
from smh.initial import initial_variables
from smh.plan import Plan


@dataclass(frozen=True)
class Subject:
    """A backend in one mode, on one device.

    `source` is a name that :func:`fingerprint.find` knows, by which another process gets the same backend.
    """

    backend: Backend
    device: str
    source: str

    def put(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return arrays of the backend on the device."""
        return {name: self.backend.asarray(x, self.device) for name, x in arrays.items()}

    def take(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return NumPy arrays."""
        return {name: self.backend.to_numpy(x) for name, x in arrays.items()}

    def weights(self, plan: Plan, variables: Mapping[str, Any], names: Any = None) -> dict[str, np.ndarray]:
        """Build weights, from NumPy to NumPy."""
        return self.take(self.backend.materialize(plan, self.put(variables), names))

    def gradients(
        self, plan: Plan, variables: Mapping[str, Any], cotangents: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Compute gradients, from NumPy to NumPy."""
        return self.take(self.backend.vjp(plan, self.put(variables), self.put(cotangents)))


CaseLaw = Callable[[Subject, Case, Tally], None]
OwnLaw = Callable[[Subject, Tally], None]


def indices(s: Subject, case: Case, tally: Tally) -> None:
    """The hash index equals the oracle's, for the whole range and for a slice of it."""
    capacity = case.plan.capacity
    for start, stop in ((0, capacity), (capacity // 3, capacity // 2 + 1)):
        found = s.take(s.backend.indices(case.plan, start, stop))
        tally.all_same(found, oracle.indices(as_dict(case.plan), np.arange(start, stop)), "indices into")


def initial(s: Subject, case: Case, tally: Tally) -> None:
    """Initial variables have the oracle's bits, in both distributions."""
    for distribution in ("normal", "uniform"):
        found = Api(lambda: s.backend).initialize(case.plan, distribution, s.device)
        tally.all_same(s.take(found), oracle.initial_variables(as_dict(case.plan), distribution), distribution)


def weights(s: Subject, case: Case, tally: Tally) -> None:
    """All weights have the oracle's bits, and the digest is the oracle's."""
    if case.weights:
        tally.all_same(s.weights(case.plan, case.variables), case.weights, "weights")
    digest = Api(lambda: s.backend).digest(case.plan, s.put(case.variables))
    tally.true(digest == case.digest, f"digest: {digest} against {case.digest}")


def gradients(s: Subject, case: Case, tally: Tally) -> None:
    """The gradient of every variable has the oracle's bits; tensors without cotangents send none."""
    if case.gradients:
        found = s.gradients(case.plan, case.variables, case.cotangents)
        tally.all_same(found, case.gradients, "gradient of")


def by_name(s: Subject, case: Case, tally: Tally) -> None:
    """Weights that are built by name, in any order, have the bits that they have when all are built."""
    if case.plan.arithmetic == "exact":
        names = [tensor.name for tensor in case.plan.tensors][::-2]
        every = s.weights(case.plan, case.variables)
        tally.all_same(
            s.weights(case.plan, case.variables, names), {name: every[name] for name in names}, "weights by name"
        )


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
    plan = dataclasses.replace(case.plan, arithmetic="exact")
    first, other = (variables_for(plan, case.seed + k, "normal") for k in range(2))
    cotangents = cotangents_for(plan, case.seed, "normal")
    before, gradients_before = s.weights(plan, first), s.gradients(plan, first, cotangents)
    found = s.weights(plan, other)
    tally.all_same(found, oracle.weights(as_dict(plan), other), "weights of other variables, afterwards,")
    tally.all_same(s.weights(plan, first), before, "weights, once more,")
    tally.all_same(s.gradients(plan, first, cotangents), gradients_before, "gradients, once more,")


def linearity(s: Subject, case: Case, tally: Tally) -> None:
    """Twice the cotangents give twice the gradients, negative ones negative, zeros zeros; also in fast arithmetic."""
    plan, fast = (dataclasses.replace(case.plan, arithmetic=arithmetic) for arithmetic in ("exact", "fast"))
    variables, cotangents = variables_for(plan, case.seed, "normal"), cotangents_for(plan, case.seed, "normal")
    once = s.gradients(plan, variables, cotangents)
    for factor in (2.0, -1.0):
        scaled = {name: np.float32(factor) * g for name, g in cotangents.items()}
        # Adding 0 turns -0 into the +0 that every result has.
        expected = {name: np.asarray(np.float32(factor) * g + np.float32(0)) for name, g in once.items()}
        tally.all_same(s.gradients(plan, variables, scaled), expected, f"gradients of cotangents times {factor}:")
    zeros = {name: np.zeros_like(g) for name, g in cotangents.items()}
    for name, g in s.gradients(fast, variables, zeros).items():
        tally.true(not g.any(), f"the gradient of {name!r} for zero cotangents, fast, is {g[g != 0]}")


def fast(s: Subject, case: Case, tally: Tally) -> None:
    """Fast products lie within 4 K 2**-24 |a| |b| of the exact ones, forward and in both gradients (section 3.4)."""
    rng = np.random.default_rng(case.seed)
    n, m = (int(k) for k in rng.integers(2, 40, 2))
    plan = Plan.build(
        {"a": (n, n)}, ratio=10**9, pool=pools.Matmul(n=n, m=m), scale=1.0, learn_scale=False, gain=0, arithmetic="fast"
    )
    left, right, g = (floats(rng, shape, "normal") for shape in ((n, m), (m, n), (n, n)))
    variables = {"pool/left": left, "pool/right": right}
    found = s.weights(plan, variables) | s.gradients(plan, variables, {"a": g})
    for name, a, b in (("a", left, right), ("pool/left", g, right.T), ("pool/right", left.T, g)):
        exact = oracle.product(a, b).astype(np.float64)
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0)[None, :]
        off = np.abs(found[name].astype(np.float64) - exact) / (4 * a.shape[1] * 2.0**-24 * norms)
        tally.true(off.max() <= 1, f"fast {name!r} is off by {off.max():.3g} times the bound")


def round_trip(s: Subject, tally: Tally) -> None:
    """Arrays go to every device and back with the same dtype and bits: NaN payloads, subnormals, zeros, no elements."""
    special = np.asarray([0x7FC00001, 0xFFC12345, 1, 0x80000000, 0x007FFFFF, 0x7F800000], dtype=np.uint32)
    arrays = [special.view(np.float32), np.float32(1.5) * np.ones(()), np.zeros((0, 3), dtype=np.float32)]
    for dtype in (np.float64, np.int64, np.int32, np.uint8, np.bool_):
        arrays.append(np.arange(6).reshape(2, 3).astype(dtype))
    arrays.append(np.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32).T)
    for x in arrays:
        for device in dict.fromkeys((s.device, *s.backend.devices())):
            there = s.backend.asarray(x, device)
            again = s.backend.asarray(there, s.device)
            for y in (there, again):
                tally.same(s.backend.to_numpy(y), x, f"{x.dtype} {x.shape} by way of {device}", payloads=True)


def refusals(s: Subject, tally: Tally) -> None:
    """What does not fit is refused with an error of the library that says what was received."""
    plan = Plan.build({"a": (4, 3), "b": (2, 2)}, ratio=4)
    variables = s.put(initial_variables(plan))
    one = s.backend.asarray(np.ones(1, dtype=np.float32), s.device)
    double = s.backend.asarray(np.ones(plan.variable_shapes["pool/left"], dtype=np.float64), s.device)
    lacking = {name: x for name, x in variables.items() if name != "pool/right"}
    attempts: list[tuple[str, type[Exception], Callable[[], Any]]] = [
        ("a missing variable", smh.VariableError, lambda: s.backend.materialize(plan, lacking)),
        ("an unknown variable", smh.VariableError, lambda: s.backend.materialize(plan, {**variables, "x": one})),
        ("a wrong shape", smh.VariableError, lambda: s.backend.materialize(plan, {**variables, "pool/left": one})),
        ("float64", smh.VariableError, lambda: s.backend.materialize(plan, {**variables, "pool/left": double})),
        ("no array", smh.VariableError, lambda: s.backend.materialize(plan, {**variables, "pool/left": "left"})),
        ("an unknown tensor", smh.UnknownNameError, lambda: s.backend.materialize(plan, variables, ["c"])),
        ("a missing variable", smh.VariableError, lambda: s.backend.vjp(plan, lacking, {})),
        ("an unknown cotangent", smh.UnknownNameError, lambda: s.backend.vjp(plan, variables, {"c": one})),
        ("a cotangent's shape", smh.VariableError, lambda: s.backend.vjp(plan, variables, {"a": one})),
        ("an unknown device", smh.BackendError, lambda: s.backend.asarray(np.ones(1), "a device of no backend")),
    ]
    for what, error, attempt in attempts:
        try:
            attempt()
        except error:
            tally.true(True, what)
        except Exception as other:
            raise AssertionError(f"{what} gave {type(other).__name__}, not {error.__name__}: {other}") from other
        else:
            tally.true(False, f"{what} was accepted")


def large(s: Subject, tally: Tally) -> None:
    """Sizes beyond every block and chunk: the oracle's bits in a sample, NumPy's in all, and one tensor alone."""
    reference = smh.get_backend("numpy")
    for case in fingerprint.large_cases()[: max(1, 4 // s.backend.mode.slowness)]:
        built = s.weights(case.plan, case.variables)
        tally.all_same(built, reference.materialize(case.plan, case.variables), "large weights")
        last = case.plan.tensors[-1].name
        tally.same(s.weights(case.plan, case.variables, [last])[last], built[last], f"large {last!r} alone")
        found = s.gradients(case.plan, case.variables, case.cotangents)
        tally.all_same(found, reference.vjp(case.plan, case.variables, case.cotangents), "large gradient of")
        if isinstance(case.plan.pool, pools.Matmul):
            v = built["a"][-1:, -5:]  # scale 1, and the first tensor ends within the first row of virtual weights
            tally.same(v, fingerprint.sample(case), "a sample of large weights")


def environment(s: Subject, tally: Tally) -> None:
    """Thread counts, other frameworks in the process and the order of imports do not change a bit."""
    mine = fingerprint.of(s.backend, s.device)
    for threads, load in (("1", ()), ("2", fingerprint.FRAMEWORKS)):
        variables = dict.fromkeys(fingerprint.THREADS, threads)
        command = [sys.executable, "-m", "conformance.fingerprint", s.source, s.backend.mode.name, s.device, *load]
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, cwd=fingerprint.ROOT
        )
        tally.true(done.returncode == 0, f"with {threads} threads and {load} loaded: {done.stderr[-2000:]}")
        theirs = done.stdout.split()[-1]
        tally.true(theirs == mine, f"with {threads} threads and {load} loaded: {theirs} against {mine}")


def resnet34(s: Subject, tally: Tally) -> None:
    """ResNet-34's 21.8 million weights and their gradients have the stored fingerprints, at three ratios."""
    golden = real_sizes.golden()
    for case in real_sizes.cases():
        found = fingerprint.of(s.backend, s.device, [case])
        tally.true(found == golden[case.name], f"{case.name}: {found} against {golden[case.name]}")
        arrays = [*case.cotangents.values(), *case.variables.values()]  # as many results
        tally.bits += 8 * sum(x.nbytes for x in arrays)


CASE_LAWS: tuple[CaseLaw, ...] = (
    indices,
    initial,
    weights,
    gradients,
    by_name,
    form,
    purity,
    memory,
    linearity,
    fast,
)
OWN_LAWS: tuple[OwnLaw, ...] = (round_trip, refusals, large, environment)


def own_laws(subject: Subject | None, deep: bool) -> tuple[OwnLaw, ...]:
    """Return the laws without cases: processes are started for the first mode only, real sizes wait for `--deep`."""
    first = subject is not None and subject.backend.mode == subject.backend.modes()[0]
    return tuple(law for law in OWN_LAWS if law is not environment or first) + ((resnet34,) if deep else ())
