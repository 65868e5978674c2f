"""JAX's kernels by platform: without 64-bit types on TPUs and Metal, or on request."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from smh.backends.float64 import float64_allowed
from smh.backends.jax.kernels import JaxKernels
from smh.core.narrow import NarrowKernels

NO_FLOAT64 = {"tpu", "metal"}
"""Platforms without float64. TPUs only approximate it."""


class NarrowJaxKernels(NarrowKernels, JaxKernels):
    """Kernels for JAX arrays with 64-bit types disabled."""

    @property
    def index_dtype(self) -> Any:
        """int32."""
        return jnp.int32


KERNELS, NARROW = JaxKernels(jnp), NarrowJaxKernels(jnp)
_SMOOTH, SINGLE = JaxKernels(jnp, smooth=True), NarrowJaxKernels(jnp, smooth=True)


def has_float64() -> bool:
    """Return whether the core may use 64-bit types on the default platform."""
    return float64_allowed() and jax.default_backend().lower() not in NO_FLOAT64


def kernels(smooth: bool = False) -> JaxKernels:
    """Return the kernels for the default platform."""
    if has_float64():
        return _SMOOTH if smooth else KERNELS
    return SINGLE if smooth else NARROW
