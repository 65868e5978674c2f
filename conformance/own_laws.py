"""The laws that bring their own data."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import conformance as suite
import smh
from conformance import fingerprint, oracle, real_sizes
from conformance.bits import Tally
from conformance.cases import Case, cotangents_for, variables_for
from conformance.kernel_laws import kernels
from conformance.subject import OwnLaw, Subject
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.core.views import View

SHAPES = {"a": (3, 4), "b": (2, 3, 2), "c": (5,), "d": (2, 2)}


@lru_cache(maxsize=1)
def mixed() -> Case:
    """Return a case with every kind of pool, integers of odd and even numbers of bits, views and modifiers."""
    nested = pools.Product(pools.Hash(size=9, capacity=33, bits=3, gain=0), pools.Kronecker(d=3, t=2, bits=9, gain=0))
    pool = pools.Sum(pools.Matmul(n=6, m=3, bits=4, gain=2), nested, pools.Hash(size=7, capacity=40, gain=1))
    plan = Plan.build(
        SHAPES,
        ratio=10**9,
        pool=pool,
        modifiers={name: ["relu"] if name == "b" else [] for name in SHAPES},
        views={"b": "w i o -> (o w) i"},
        seed=4,
        optimizer="adam",
        include=lambda name: True,
    )
    return Case("mixed", plan, variables_for(plan, 6, "normal"), cotangents_for(plan, 6, "normal"), 6)


@lru_cache(maxsize=1)
def single() -> Case:
    """Return the same tensors with one matmul pool, which compiles much faster, for laws of tensors, not of pools."""
    plan = dataclasses.replace(mixed().plan, pool=pools.Matmul(n=6, m=3, bits=8, gain=2))
    return Case("single", plan, variables_for(plan, 6, "normal"), cotangents_for(plan, 6, "normal"), 6)


def names(s: Subject, tally: Tally) -> None:
    """Names of tensors change nothing, nor does their alphabetical order."""
    case = single()
    new = {tensor.name: f"{'zyxw'[k]}/{tensor.name}.é" for k, tensor in enumerate(case.plan.tensors)}
    tensors = tuple(dataclasses.replace(tensor, name=new[tensor.name]) for tensor in case.plan.tensors)
    plan = dataclasses.replace(case.plan, tensors=tensors)
    scales = {tensor.scale_variable: f"scale/{new[tensor.name]}" for tensor in case.plan.tensors}
    variables = {scales.get(name, name): x for name, x in case.variables.items()}
    before = s.weights(case.plan, case.variables)
    found = s.weights(plan, variables)
    tally.all_same(found, {new[name]: w for name, w in before.items()}, "with other names, weights")
    before = s.gradients(case.plan, case.variables, case.cotangents)
    found = s.gradients(plan, variables, {new[name]: g for name, g in case.cotangents.items()})
    tally.all_same(found, {scales.get(name, name): g for name, g in before.items()}, "with other names, gradient of")


def views(s: Subject, tally: Tally) -> None:
    """Views commute with building: a view of weights is what a plan with the view builds, and likewise back."""
    plain = Plan.build(SHAPES, ratio=10**9, pool=pools.Matmul(n=6, m=3), include=lambda name: True)
    patterns = {
        "a": View.make(("i (g o) -> (g i) o", {"g": 2}, {"g": [1, 0], "i": [2, 0, 1]})),
        "b": View.make("w i o -> 1 o (i w)"),
        "c": View.make(("i -> i", {}, {"i": [4, 2, 0, 1, 3]})),
        "d": View.make("i o -> (o i)"),
    }
    plan = dataclasses.replace(
        plain, tensors=tuple(dataclasses.replace(t, view=patterns[t.name]) for t in plain.tensors)
    )
    variables, cotangents = variables_for(plan, 8, "normal"), cotangents_for(plan, 8, "normal")
    canonical = s.weights(plain, variables)
    found = s.weights(plan, variables)
    for tensor in plan.tensors:
        expected = oracle.apply_view(tensor.view.to_dict(), canonical[tensor.name])
        tally.same(found[tensor.name], np.ascontiguousarray(expected), f"the view {tensor.view} of {tensor.name!r}")
    back = {
        t.name: np.ascontiguousarray(oracle.undo_view(t.view.to_dict(), cotangents[t.name], t.shape))
        for t in plan.tensors
    }
    expected = s.gradients(plain, variables, back)
    tally.all_same(s.gradients(plan, variables, cotangents), expected, "by way of views, the gradient of")


def zeros(s: Subject, tally: Tally) -> None:
    """Cotangents that are left out are zeros, where variables are finite."""
    case = single()
    for given in (["a", "c"], ["b"]):
        cotangents = {name: case.cotangents[name] for name in given}
        filled = {name: cotangents.get(name, np.zeros_like(g)) for name, g in case.cotangents.items()}
        found = s.gradients(case.plan, case.variables, cotangents)
        expected = s.gradients(case.plan, case.variables, filled)
        tally.all_same(found, expected, "with zeros left out, the gradient of")
        scales = {f"scale/{name}" for name in case.cotangents if name not in given}
        tally.true(
            not any(found[name].any() for name in scales), f"scale gradients of tensors without cotangents: {found}"
        )


def on_grid(s: Subject, tally: Tally) -> None:
    """Variables that are rounded to their grids are the oracle's, generate the same weights, and stay as they are."""
    case = mixed()
    expected = dict(case.variables) | {
        name: x.value for name, x in oracle.grids(case.plan.to_dict(), case.variables).items()
    }
    rounded = {name: np.asarray(x) for name, x in generate.on_grid(Kernels(np), case.plan, case.variables).items()}
    tally.all_same(rounded, expected, "on its grid")
    unrounded = s.weights(case.plan, case.variables)
    tally.all_same(s.weights(case.plan, rounded), unrounded, "weights of variables on grids:")
    if s.backend.kernels is not None:
        there = s.backend.on_kernels(lambda k, x: generate.on_grid(k, case.plan, x), s.put(case.variables))
        tally.all_same(s.take(there), expected, "by the backend, on its grid")
        again = s.backend.on_kernels(lambda k, x: generate.on_grid(k, case.plan, x), there)
        tally.all_same(s.take(again), expected, "twice on its grid")


def files(s: Subject, tally: Tally) -> None:
    """A file that any backend writes gives every other the same bits, digest and kept tensors."""
    case, numpy = mixed(), Subject(smh.get_backend("numpy"), "cpu", "numpy")
    bias = np.asarray([1.5, -0.0, 1e-45], dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for writer, reader in ((s, numpy), (numpy, s), (s, s)):
            for training in (False, True):
                path = Path(folder) / f"{writer.backend.name}-{reader.backend.name}-{training}.safetensors"
                variables, kept = writer.put(case.variables), writer.put({"bias": bias})
                digest = writer.api.save(path, case.plan, variables, kept, training=training)
                found = reader.api.load(path, device=reader.device)
                tally.true(found.digest == digest, f"loaded with the digest {found.digest}, not {digest}")
                tally.true(found.plan == case.plan, f"loaded with another plan: {found.plan.to_json()}")
                loaded = reader.take(found.variables)
                if training:
                    tally.all_same(loaded, case.variables, "loaded from a file of training,")
                weights = reader.weights(case.plan, loaded)
                tally.all_same(weights, writer.weights(case.plan, case.variables), "weights of what was loaded:")
                again = reader.api.digest(found.plan, found.variables)
                tally.true(again == digest, f"built with the digest {again}, not {digest}")
                tally.same(reader.take(found.dense)["bias"], bias, "a kept tensor")


def precision(s: Subject, tally: Tally) -> None:
    """Sums are exact whatever units and settings there are for float32 products, where they are largest."""
    for bits, terms in ((8, 1500), (9, 400), (8, 1024), (16, 300))[: max(1, 4 // s.backend.mode.slowness)]:
        plan = Plan.build({"a": (4, 4)}, ratio=10**9, pool=pools.Matmul(n=4, m=terms, bits=bits, gain=0), scale=1.0)
        rng = np.random.default_rng(bits)
        largest = 1.0 - 2.0 ** (1 - bits)
        variables = initial_variables(plan)
        for name in ("pool/left", "pool/right"):
            # Integers next to the largest, odd and even, so that sums need all bits.
            steps = rng.integers(0, 3, variables[name].shape)
            variables[name] = (largest - steps * 2.0 ** (1 - bits)).astype(np.float32)
            variables[name].flat[0] = largest
        case = Case(f"{terms} terms of {bits} bits", plan, variables, cotangents_for(plan, bits, "normal"), bits)
        tally.all_same(s.weights(plan, variables), case.weights, f"with {case.name}, weights")
        found = s.gradients(plan, variables, case.cotangents)
        tally.all_same(found, case.gradients, f"with {case.name}, the gradient of")


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
    """Sizes beyond every block: the oracle's bits in a sample, the default kernels' in all, and one tensor alone."""
    for case in fingerprint.large_cases()[: max(1, 4 // s.backend.mode.slowness)]:
        expected, expected_gradients = fingerprint.by_default_kernels(case)
        built = s.weights(case.plan, case.variables)
        tally.all_same(built, expected, "large weights")
        last = case.plan.tensors[-1].name
        tally.same(s.weights(case.plan, case.variables, [last])[last], built[last], f"large {last!r} alone")
        found = s.gradients(case.plan, case.variables, case.cotangents)
        tally.all_same(found, expected_gradients, "large gradient of")
        if isinstance(case.plan.pool, pools.Matmul):
            v = built["a"][-1:, -5:]  # scale 1, and the first tensor ends within the first row of virtual weights
            tally.same(v, fingerprint.sample(case), "a sample of large weights")


def environment(s: Subject, tally: Tally) -> None:
    """Thread counts, other frameworks in the process and the order of imports do not change a bit."""
    expected = fingerprint.by_default()
    start = f"import {suite.__name__}; from conformance.fingerprint import main; main()"
    threads, load = "2", fingerprint.FRAMEWORKS
    command = [sys.executable, "-c", start, s.source, s.backend.mode.name, s.device, *load]
    environment = os.environ | dict.fromkeys(fingerprint.THREADS, threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=fingerprint.ROOT)
    tally.true(done.returncode == 0, f"with {threads} threads and {load} loaded: {done.stderr[-2000:]}")
    theirs = done.stdout.split()[-1]
    tally.true(theirs == expected, f"with {threads} threads and {load} loaded: {theirs} against {expected}")


def resnet34(s: Subject, tally: Tally) -> None:
    """ResNet-34's 21.8 million weights and their gradients have the stored fingerprints, at three ratios."""
    golden = real_sizes.golden()
    for case in real_sizes.cases():
        found = fingerprint.of(s.backend, s.device, [case])
        tally.true(found == golden[case.name], f"{case.name}: {found} against {golden[case.name]}")
        arrays = [*case.cotangents.values(), *case.variables.values()]  # as many results
        tally.bits += 8 * sum(x.nbytes for x in arrays)


OWN_LAWS: tuple[OwnLaw, ...] = (
    kernels,
    precision,
    names,
    views,
    zeros,
    on_grid,
    files,
    round_trip,
    refusals,
    large,
    environment,
)
ONCE: tuple[OwnLaw, ...] = (kernels, names, views, zeros, on_grid, files, environment)
"""What is checked in the first mode only: the laws of cases find in the others whatever these do."""
