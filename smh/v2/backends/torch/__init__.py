"""The PyTorch backend: weights as differentiable tensors, and whole models, on any device, compiled or not."""

from smh.v2.api import Api
from smh.v2.backends.torch.adapter import backend
from smh.v2.backends.torch.functions import digest, load, save
from smh.v2.backends.torch.models import (
    compress,
    compress_,
    fit,
    materialize_,
    plan_of,
    report,
    set_residency,
)
from smh.v2.core import pools
from smh.v2.core.plan import Plan
from smh.v2.files.checkpoint import Checkpoint
from smh.v2.porting import port

__all__ = [
    "Checkpoint",
    "Plan",
    "backend",
    "compress",
    "compress_",
    "digest",
    "fit",
    "initialize",
    "load",
    "materialize",
    "materialize_",
    "plan_of",
    "pools",
    "port",
    "report",
    "save",
    "set_residency",
    "vjp",
]

_api = Api(lambda: backend)
initialize = _api.initialize
materialize = _api.materialize
vjp = _api.vjp
