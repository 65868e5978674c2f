"""The PyTorch backend: weights as differentiable tensors, and whole models, on any device, compiled or not."""

from smh.api import Api
from smh.backends.torch.adapter import backend
from smh.backends.torch.functions import digest, load, save
from smh.backends.torch.models import (
    compress,
    compress_,
    fit,
    materialize_,
    plan_of,
    report,
    set_residency,
)
from smh.core import pools
from smh.core.plan import Plan
from smh.files.checkpoint import Checkpoint
from smh.porting import port

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
