"""Building all weights, and all gradients, relative to raw float32 products of the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import GRADIENTS, Case, Row, by_turns, memory_row, over, peak_beyond, peak_in_fresh_process
from benchmarks.shapes import shapes_of
from smh.core.initial import initial_variables
from smh.core.plan import Plan

FLOORS = {"build": "product", "exact gradients": "both products", "fast gradients": "both products"}
"""The floor of each measurement."""


class Work(NamedTuple):
    """A plan with its variables, a cotangent for every tensor, and a cotangent for the whole matrix."""

    plan: Plan
    variables: dict[str, Any]
    cotangents: dict[str, Any]
    matrix: Any

    @classmethod
    def of(cls, name: str, ratio: float) -> Work:
        plan = Plan.build(shapes_of(name), ratio=ratio)
        n, random = plan.pool.n, np.random.default_rng(0)  # type: ignore[attr-defined]
        g = {t.name: random.standard_normal(t.viewed_shape, dtype=np.float32) for t in plan.tensors}
        return cls(plan, initial_variables(plan), g, random.standard_normal((n, n), dtype=np.float32))

    def map(self, array: Callable[[Any], Any]) -> Work:
        """Return a copy with a function applied to all arrays."""
        variables, cotangents = ({k: array(x) for k, x in d.items()} for d in (self.variables, self.cotangents))
        return Work(self.plan, variables, cotangents, array(self.matrix))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.plan.tensors)

    @property
    def factors(self) -> tuple[Any, Any]:
        return self.variables["pool/left"], self.variables["pool/right"]


def measure(
    backend: str, names: Iterable[str], ratios: Iterable[float], rounds: int, modes: Sequence[str] | None = None
) -> Iterator[Row]:
    """Iterate over the results of a backend, in all modes or some."""
    for name in names:
        for ratio in ratios:
            cases = CASES[backend](Work.of(name, ratio)).items()
            seconds = by_turns({case: x for case, x in cases if not modes or case.partition(":")[0] in modes}, rounds)
            for case, times in seconds.items():
                mode, _, what = case.partition(": ")
                if what in FLOORS:
                    floor = seconds[f"{mode}: {FLOORS[what]}"]
                    yield over(times, floor, network=name, ratio=ratio, mode=mode, what=what)
            peak = peak_in_fresh_process("kernels.peak_of_build", backend, name, ratio, mode)
            weights = 4 * sum(tensor.size for tensor in Plan.build(shapes_of(name), ratio=ratio).tensors)
            yield from memory_row(peak, weights, network=name, ratio=ratio, mode=mode, what="memory of build")


def peak_of_build(backend: str, name: str, ratio: float, mode: str) -> int:
    """Return the peak memory of a build in a mode, after compilation, beyond the framework and the arguments."""
    return peak_beyond(None, CASES[backend](Work.of(name, ratio))[f"{mode}: build"]())


def numpy_cases(work: Work) -> dict[str, Case]:
    """NumPy, which has one mode."""
    from smh import numpy as smh

    plan, variables, cotangents, g = work
    left, right = work.factors
    return {
        "eager: product": lambda: lambda: left @ right,
        "eager: build": lambda: lambda: smh.materialize(plan, variables),
        "eager: both products": lambda: lambda: (g @ right.T, left.T @ g),
        "eager: exact gradients": lambda: lambda: smh.vjp(plan, variables, cotangents),
    }


def torch_cases(work: Work) -> dict[str, Case]:
    """PyTorch, eager and compiled. Gradients are those of autograd's backward pass."""
    import torch

    from smh.backends.torch.autograd import Materialize

    plan, variables, cotangents, g = work.map(torch.from_numpy)
    left, right = work.map(torch.from_numpy).factors
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}

    def no_grad(build: Callable[..., Any]) -> Callable[[], object]:
        return lambda: torch.no_grad()(build)(*variables.values())

    def backward(build: Callable[..., Any]) -> Callable[[], object]:
        weights = build(*leaves.values())
        return lambda: torch.autograd.grad(weights, list(leaves.values()), list(cotangents.values()))

    torch.compiler.reset()  # past a number of compilations, PyTorch silently stops to compile a function
    cases: dict[str, Case] = {}
    for mode in ("eager", "compile"):
        cases |= {
            f"{mode}: product": lambda: lambda: left @ right,
            f"{mode}: both products": lambda: lambda: (g @ right.T, left.T @ g),
        }
        for kind in GRADIENTS:
            build = functools.partial(Materialize.apply, plan, work.names, kind == "fast")
            if mode == "compile":
                build = torch.compile(build, dynamic=False)
            if kind == "exact":
                cases[f"{mode}: build"] = functools.partial(no_grad, build)
            cases[f"{mode}: {kind} gradients"] = functools.partial(backward, build)
    return cases


def jax_cases(work: Work) -> dict[str, Case]:
    """JAX: programs of ``jax.jit``."""
    import jax
    import jax.numpy as jnp

    from smh import jax as smh
    from smh.backends.jax.derivatives import build

    plan, variables, cotangents, g = work = work.map(jnp.asarray)
    left, right = work.factors

    def compiled(fn: Callable[..., Any], *args: Any) -> Case:
        run = jax.jit(fn)
        return lambda: lambda: jax.block_until_ready(run(*args))

    def pull(kind: str) -> Callable[..., Any]:
        weights = functools.partial(build, plan, work.names, fast=kind == "fast")
        return lambda x, cotangents: jax.vjp(weights, x)[1](cotangents)

    return {
        "jit: product": compiled(jnp.matmul, left, right),
        "jit: build": compiled(lambda x: smh.materialize(plan, x), variables),
        "jit: both products": compiled(lambda g, left, right: (g @ right.T, left.T @ g), g, left, right),
    } | {f"jit: {kind} gradients": compiled(pull(kind), variables, cotangents) for kind in GRADIENTS}


def tensorflow_cases(work: Work) -> dict[str, Case]:
    """TensorFlow: graphs of ``tf.function``."""
    import tensorflow as tf

    from smh import keras as smh
    from smh.backends.tensorflow.derivatives import build

    plan, variables, cotangents, g = work = work.map(tf.constant)
    left, right = work.factors

    def compiled(fn: Callable[..., Any], *args: Any) -> Case:
        run = tf.function(fn, autograph=False)
        return lambda: lambda: run(*args)

    def pull(kind: str) -> Callable[..., Any]:
        def gradients(x: Any, cotangents: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                weights = build(plan, work.names, *x.values(), fast=kind == "fast")
            return tape.gradient(weights, x, list(cotangents.values()))

        return gradients

    def both(g: Any, left: Any, right: Any) -> Any:
        return tf.matmul(g, right, transpose_b=True), tf.matmul(left, g, transpose_a=True)

    return {
        "function: product": compiled(tf.matmul, left, right),
        "function: build": compiled(lambda x: smh.materialize(plan, x), variables),
        "function: both products": compiled(both, g, left, right),
    } | {f"function: {kind} gradients": compiled(pull(kind), variables, cotangents) for kind in GRADIENTS}


CASES = {"numpy": numpy_cases, "torch": torch_cases, "jax": jax_cases, "tensorflow": tensorflow_cases}
