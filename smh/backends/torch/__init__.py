"""The PyTorch backend: weights as differentiable tensors, and whole models, on any device, compiled or not."""

from smh.errors import needs

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise needs("torch", "torch", error) from error

from typing import Any

from torch import nn

from smh.api import Api
from smh.backends.torch.adapter import backend
from smh.backends.torch.huggingface import from_pretrained
from smh.backends.torch.models import ModelsInPlace, adapter, materialize_, set_gradients, set_residency
from smh.core import pools
from smh.core.plan import Plan
from smh.files.checkpoint import Checkpoint
from smh.models.api import with_signature_of
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
    "from_pretrained",
    "initialize",
    "load",
    "materialize",
    "materialize_",
    "plan_of",
    "pools",
    "port",
    "report",
    "save",
    "set_gradients",
    "set_residency",
    "vjp",
]

_api: Api[nn.Module, nn.Module] = Api(lambda: backend, lambda model: adapter)
_in_place: Api[nn.Module, nn.Module] = Api(lambda: backend, lambda model: ModelsInPlace())
built = _api.built
compress = _api.compress
digest = _api.digest
fit = _api.fit
initialize = _api.initialize
load = _api.load
materialize = _api.materialize
plan_of = _api.plan_of
report = _api.report
save = _api.save
vjp = _api.vjp


@with_signature_of(_api.compress)
def compress_(*args: Any, **options: Any) -> nn.Module:
    """Do what :func:`smh.compress` does, with the same arguments, with the model itself, and return it.

    If it fails, the model has not changed.

    Examples
    --------
    >>> import torch
    >>> from smh import torch as smh
    >>> model = torch.nn.Linear(40, 30)
    >>> smh.compress_(model, size="1 kB") is model
    True
    """
    return _in_place.compress(*args, **options)
