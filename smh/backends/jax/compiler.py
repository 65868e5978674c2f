"""Whether XLA computes what programs say: a flag lets it reorder sums of floating-point numbers, without a word."""

from __future__ import annotations

import functools

import jax
import numpy as np

from smh.errors import BackendError


@functools.cache
def check_compiler() -> None:
    """Raise :class:`~smh.BackendError` where compiled programs on the CPU would not have the bits of the specification.

    A compiled sum tells, once per process.
    """
    if jax.default_backend() != "cpu":
        return
    with jax.enable_x64(True), jax.disable_jit(False), jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
        left = float(jax.jit(lambda x: (x[0] + x[1]) - x[0])(np.asarray([1.0, 2.0**-60])))
    if left != 0.0:
        raise BackendError(
            "XLA reorders sums here, (1 + 2**-60) - 1 gave "
            f"{left:.3g} instead of 0, so weights and gradients would differ from those elsewhere: leave the flag "
            "--xla_cpu_enable_fast_math=true out of the environment variable XLA_FLAGS"
        )
