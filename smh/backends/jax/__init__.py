"""The JAX backend: weights as differentiable arrays, and pytrees of them, on any device, under any transformation."""

from smh.backends.jax.adapter import backend
from smh.backends.jax.functions import digest, initialize, load, materialize, save, vjp
from smh.backends.jax.models import compress, fit, plan_of, report
from smh.backends.jax.pytrees import Compressed
from smh.core.plan import Plan

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
