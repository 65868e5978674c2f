"""The PyTorch backend: weights as differentiable tensors, and whole models, on any device, compiled or not."""

from smh.errors import needs

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise needs("torch", "torch", error) from error

from torch import nn

from smh.api import Api
from smh.backends.torch.adapter import backend
from smh.backends.torch.huggingface import from_pretrained
from smh.backends.torch.models import adapter, set_gradients, set_residency
from smh.core import pools
from smh.core.plan import Plan
from smh.files.checkpoint import Checkpoint
from smh.porting import port

__all__ = [
    "Checkpoint",
    "Plan",
    "backend",
    "built",
    "compress",
    "compress_",
    "digest",
    "fit",
    "freeze",
    "from_pretrained",
    "initialize",
    "load",
    "materialize",
    "materialize_",
    "plan_of",
    "pools",
    "port",
    "rate",
    "report",
    "save",
    "set_gradients",
    "set_residency",
    "sweep",
    "vjp",
]

_api: Api[nn.Module, nn.Module] = Api(lambda: backend, lambda model: adapter)
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
