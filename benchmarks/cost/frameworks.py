"""The raw operations of every framework, in the way in which its users run it."""

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Function = Callable[..., Any]


@dataclass(frozen=True)
class Framework:
    """A backend of smh in one of its modes, and the raw operations that it is compared with.

    Parameters
    ----------
    backend, mode : str
        As smh names them.
    product : callable
        From left and right to ``left @ right``.
    gradients : callable
        From left, right and the product's cotangent to the cotangents of both.
    gather : callable
        From a table and an int32 index to ``table[index]``.
    scatter : callable
        From an index, values and a size to the sums of the values that share an index.
    prepare : callable
        From a function to what users would call: compiled, where they compile.
    wait : callable
        From a result to the same, once it has been computed.
    wide : callable
        Returns a context in which float64 is float64.
    """

    backend: str
    mode: str
    product: Function
    gradients: Function
    gather: Function
    scatter: Function
    prepare: Function = staticmethod(lambda fn: fn)
    wait: Function = staticmethod(lambda x: x)
    wide: Callable[[], AbstractContextManager[Any]] = nullcontext

    def raw_float64(self, fn: Function, *args: Array) -> Callable[[], Any]:
        """Return a call of a raw function on float64 arrays."""
        prepared = self.prepare(fn)

        def run() -> Any:
            with self.wide():
                return self.wait(prepared(*args))

        return run

    def raw(self, fn: Function, *args: Array) -> Callable[[], Any]:
        """Return a call of a raw function, as users would make it."""
        prepared = self.prepare(fn)
        return lambda: self.wait(prepared(*args))


def _numpy() -> Framework:
    return Framework(
        "numpy",
        "eager",
        product=lambda left, right: left @ right,
        gradients=lambda left, right, g: (g @ right.T, left.T @ g),
        gather=lambda table, index: table[index],
        scatter=lambda index, g, size: np.bincount(index, weights=g, minlength=size),
    )


def _torch(mode: str) -> Framework:
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch._dynamo.config.recompile_limit = 64  # one process compiles many models, which share their code
    return Framework(
        "torch",
        mode,
        product=lambda left, right: left @ right,
        gradients=lambda left, right, g: (g @ right.mT, left.mT @ g),
        gather=lambda table, index: table[index],
        scatter=lambda index, g, size: g.new_zeros(size).index_add_(0, index, g),
        prepare=(lambda fn: torch.compile(fn, dynamic=False)) if mode == "compile" else (lambda fn: fn),
    )


def _jax() -> Framework:
    jax = importlib.import_module("jax")
    return Framework(
        "jax",
        "jit",
        product=lambda left, right: left @ right,
        gradients=lambda left, right, g: (g @ right.T, left.T @ g),
        gather=lambda table, index: table[index],
        scatter=lambda index, g, size: jax.ops.segment_sum(g, index, size),
        prepare=jax.jit,
        wait=jax.block_until_ready,
        wide=lambda: jax.enable_x64(True),
    )


def _tensorflow(mode: str) -> Framework:
    tf = importlib.import_module("tensorflow")
    return Framework(
        "tensorflow",
        mode,
        product=tf.matmul,
        gradients=lambda left, right, g: (
            tf.matmul(g, right, transpose_b=True),
            tf.matmul(left, g, transpose_a=True),
        ),
        gather=tf.gather,
        scatter=lambda index, g, size: tf.math.unsorted_segment_sum(g, index, size),
        prepare=(lambda fn: fn) if mode == "eager" else tf.function(autograph=False, jit_compile=mode == "xla" or None),
    )


FRAMEWORKS = {
    "numpy": _numpy,
    "torch": lambda: _torch("eager"),
    "torch.compile": lambda: _torch("compile"),
    "jax": _jax,
    "tf.eager": lambda: _tensorflow("eager"),
    "tf.function": lambda: _tensorflow("function"),
    "tf.xla": lambda: _tensorflow("xla"),
}
"""What makes a framework, by the name that the command line and the tables use; nothing is imported before."""
