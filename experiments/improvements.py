"""Additions to training: distillation from a dense model, averages of variables, and faster arithmetic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.data import Images
from experiments.settings import Settings

TEMPERATURE = 4.0
_SHARE = 0.5
_NORM_BATCH = 500


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str, teacher: nn.Module | None) -> torch.Tensor:
    """Return the loss of a batch: the cross entropy, or its mean with the divergence from a teacher.

    The divergence is multiplied by the square of the temperature, so that its gradient does not depend on it.
    """
    if precision != "float32":
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        z = model(x)
        with torch.no_grad():
            target = None if teacher is None else teacher(x).float()
    plain = functional.cross_entropy(z.float(), y)
    if target is None:
        return plain
    own, wanted = (functional.log_softmax(one / TEMPERATURE, 1) for one in (z.float(), target))
    divergence = functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return (1 - _SHARE) * plain + _SHARE * TEMPERATURE**2 * divergence


class Average:
    """The mean of all variables over the last steps of a training.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training.
    steps : int
        The number of steps of the training.
    share : float
        The share of steps to average over; 0 leaves the model as it is.
    """

    def __init__(self, model: nn.Module, steps: int, share: float) -> None:
        self._own = [x for x in model.parameters() if x.requires_grad] if share else []
        self._first = steps - round(share * steps) + 1
        self._count = 0
        self._means: list[torch.Tensor] = []

    @property
    def state(self) -> dict[str, Any]:
        """The means so far, for :meth:`restore`."""
        return {"means": [mean.clone() for mean in self._means], "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._count = state["count"]
        self._means = [mean.to(own.device) for mean, own in zip(state["means"], self._own, strict=False)]

    def after_step(self, step: int) -> None:
        """Take the variables after a step, counted from 1, into account."""
        if step < self._first or not self._own:
            return
        self._count += 1
        with torch.no_grad():
            if self._count == 1:
                self._means = [own.detach().clone() for own in self._own]
            else:
                for mean, own in zip(self._means, self._own, strict=True):
                    mean.lerp_(own, 1 / self._count)

    def finish(self) -> None:
        """Replace the variables of the model by their means."""
        with torch.no_grad():
            for own, mean in zip(self._own, self._means, strict=False):
                own.copy_(mean)


def estimate_norms(model: nn.Module, images: Images, device: str) -> None:
    """Replace the statistics of all batch norms by those of the training images, without augmentation."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for indices in torch.arange(len(images)).split(_NORM_BATCH):
            if len(indices) > 1:
                model(images.batch(indices)[0].to(device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def copy_(model: nn.Module, other: nn.Module) -> None:
    """Copy all parameters and buffers of a model into one whose pool has other bits."""
    with torch.no_grad():
        for mine, theirs in ((model.parameters, other.parameters), (model.buffers, other.buffers)):
            for x, y in zip(mine(), theirs(), strict=True):
                x.copy_(y)


def place_of_teacher(settings: Settings, unfinished: Path | None) -> Path | None:
    """Return the file of a teacher: ``CONFIG.teachers/KEY.pt`` beside ``CONFIG.unfinished``."""
    if unfinished is None:
        return None
    return unfinished.parent.with_suffix(".teachers") / f"{settings.file_name}.pt"


def restore(model: nn.Module, path: Path | None, device: str) -> bool:
    """Load a trained model from its file, and say whether there is one."""
    if path is None or not path.exists():
        return False
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return True


def keep(model: nn.Module, path: Path | None) -> None:
    """Write a trained model to its file. The file is complete at any time."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), temporary)
        os.replace(temporary, path)
