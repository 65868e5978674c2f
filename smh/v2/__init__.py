"""smh: Structured Multi-Hashing for model compression, with the same bits in every framework.

>>> import smh.v2 as smh
>>> plan = smh.Plan.build({"fc1": (64, 100), "fc2": (100, 10)}, ratio=0.1)
>>> variables = smh.initialize(plan)
>>> weights = smh.materialize(plan, variables)

The functions here use the backend that the environment variable ``SMH_BACKEND`` names, NumPy by default. To choose one
in code, import it: ``from smh.v2.backends import torch as smh``.
"""

from smh.v2 import porting
from smh.v2._version import __version__
from smh.v2.api import Api as _Api
from smh.v2.backends.registry import get_backend, list_backends
from smh.v2.core import pools
from smh.v2.core.plan import Plan
from smh.v2.core.tensors import TensorSpec
from smh.v2.errors import (
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
from smh.v2.files.checkpoint import Checkpoint
from smh.v2.porting import port

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
    "digest",
    "get_backend",
    "initialize",
    "list_backends",
    "load",
    "materialize",
    "pools",
    "port",
    "porting",
    "save",
    "vjp",
]

_api = _Api(get_backend)
initialize = _api.initialize
materialize = _api.materialize
vjp = _api.vjp
digest = _api.digest
save = _api.save
load = _api.load
