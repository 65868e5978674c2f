"""Structured Multi-Hashing: generate the weights of a model from a small pool of trained variables.

The functions work on PyTorch modules, Keras models and pytrees of JAX, and give the same bits in each framework:

>>> import smh
>>> model = smh.compress(model, ratio=0.1)  # doctest: +SKIP
>>> digest = smh.save("model.safetensors", model)  # doctest: +SKIP

They also work on arrays, without a model:

>>> plan = smh.Plan.build({"fc1": (64, 100), "fc2": (100, 10)}, ratio=0.1)
>>> variables = smh.initialize(plan)
>>> weights = smh.materialize(plan, variables)

For arrays, the environment variable ``SMH_BACKEND`` names the backend; the default is NumPy. ``smh.torch``,
``smh.jax``, ``smh.keras`` and ``smh.numpy`` have the same functions for one backend.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from smh import porting
from smh._version import __version__
from smh.api import Api as _Api
from smh.backends.registry import get_backend, list_backends
from smh.core import pools
from smh.core.plan import Plan
from smh.core.tensors import TensorSpec
from smh.errors import (
    BackendError,
    CheckpointError,
    ConformanceError,
    ExportError,
    LimitError,
    PlanError,
    PortError,
    SmhError,
    UnknownNameError,
    VariableError,
)
from smh.files.checkpoint import Checkpoint
from smh.models.adapter import adapter_of as _adapter_of
from smh.porting import port

__all__ = [
    "BackendError",
    "Checkpoint",
    "CheckpointError",
    "ConformanceError",
    "ExportError",
    "LimitError",
    "Plan",
    "PlanError",
    "PortError",
    "SmhError",
    "TensorSpec",
    "UnknownNameError",
    "VariableError",
    "__version__",
    "built",
    "compress",
    "compress_",
    "digest",
    "fit",
    "freeze",
    "get_backend",
    "initialize",
    "list_backends",
    "load",
    "materialize",
    "materialize_",
    "plan_of",
    "pools",
    "port",
    "porting",
    "rate",
    "report",
    "save",
    "sweep",
    "vjp",
]

_api: _Api[_Any, _Any] = _Api(get_backend, _adapter_of)
built = _api.built
compress = _api.compress
compress_ = _api.compress_
digest = _api.digest
fit = _api.fit
freeze = _api.freeze
initialize = _api.initialize
load = _api.load
materialize = _api.materialize
materialize_ = _api.materialize_
plan_of = _api.plan_of
rate = _api.rate
report = _api.report
save = _api.save
sweep = _api.sweep
vjp = _api.vjp


_MODULES = ("datafree", "export", "jax", "keras", "numpy", "torch")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


def __getattr__(name: str) -> _Any:
    """Import a module that needs more than NumPy, or that of a framework, on first use."""
    if name in _MODULES:
        return _import_module(f"smh.{name}")
    raise AttributeError(f"module 'smh' has no attribute {name!r}")
