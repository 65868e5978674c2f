"""The JAX backend: weights as differentiable arrays, and pytrees of them, on any device, under any transformation."""

from smh.errors import needs

try:
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    raise needs("jax", "jax", error) from error

from typing import Any

from smh.api import Api
from smh.backends.jax.adapter import backend
from smh.backends.jax.models import adapter
from smh.backends.jax.pytrees import Compressed
from smh.core.plan import Plan

__all__ = [
    "Compressed",
    "Plan",
    "backend",
    "built",
    "compress",
    "digest",
    "fit",
    "freeze",
    "initialize",
    "load",
    "materialize",
    "plan_of",
    "rate",
    "report",
    "save",
    "sweep",
    "vjp",
]

_api: Api[Any, Compressed] = Api(lambda: backend, lambda model: adapter)
built = _api.built
compress = _api.compress
digest = _api.digest
fit = _api.fit
freeze = _api.freeze
initialize = _api.initialize
load = _api.load
materialize = _api.materialize
plan_of = _api.plan_of
rate = _api.rate
report = _api.report
save = _api.save
sweep = _api.sweep
vjp = _api.vjp
