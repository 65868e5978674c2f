"""The JAX backend: weights as differentiable arrays, and pytrees of them, on any device, under any transformation."""

from smh.v2.backends.jax.adapter import backend
from smh.v2.backends.jax.functions import digest, initialize, load, materialize, save, vjp
from smh.v2.backends.jax.pytrees import Compressed, compress, fit, plan_of, report
from smh.v2.core.plan import Plan

__all__ = [
    "Compressed",
    "Plan",
    "backend",
    "compress",
    "digest",
    "fit",
    "initialize",
    "load",
    "materialize",
    "plan_of",
    "report",
    "save",
    "vjp",
]
