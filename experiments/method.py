"""What a method consists of: a function that makes a model, and one that says how large it may be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from experiments import models, sizes
from experiments.errors import CannotReachError
from experiments.models import Shape
from experiments.settings import Settings


@dataclass(frozen=True)
class Stored:
    """The number of stored variables of a model, by kind.

    All trained floating-point numbers count, and the running statistics of batch norm. Random tensors that are drawn
    from the seed again do not count, and neither do positions.
    """

    pool: int = 0
    scales: int = 0
    weights: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """The total number."""
        return self.pool + self.scales + self.weights + self.kept


class Hook(Protocol):
    """What acts after each step of a training."""

    @property
    def state(self) -> dict[str, Any]:
        """Everything that the hook remembers, as tensors and numbers, for :meth:`restore` after an interruption."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""

    def after_step(self, step: int, steps: int) -> None:
        """Change the model after a step, counted from 1. After averaging, the last step is repeated."""


@dataclass(frozen=True)
class Made:
    """A model to train.

    An interrupted run makes its model again, with the same seed, and then restores the parameters and buffers of the
    model, the optimiser and the hook. Whatever else a model needs must be drawn again from the seed.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    stored : Stored
        The number of its stored variables.
    about : dict
        Details for the results.
    hook : Hook, optional
        Acts after each step.
    weights : sequence of torch.nn.Parameter, optional
        The trained weights that are stored as rounded integers; by default, the weights of all layers. They are rounded
        in place after training. A model with ``integers`` does not need them.
    integers : callable, optional
        Returns the integers of the trained model, with ``bits`` bits.
    rate : callable, optional
        Returns the estimate of the bits of these integers.
    """

    model: nn.Module
    stored: Stored
    about: dict[str, Any] = field(default_factory=dict)
    hook: Hook | None = None
    weights: Sequence[nn.Parameter] | None = None
    integers: Callable[[], list[torch.Tensor]] | None = None
    rate: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Network:
    """The network of a run, dense, for the functions of a method.

    Parameters
    ----------
    name : str
        Its name in :data:`experiments.models.BUILDERS`.
    shape : tuple of int
        Channels, height and width of the images.
    classes : int
        The number of classes.
    trained : torch.nn.Module, optional
        The trained dense model, for method ``fit`` only.
    """

    name: str
    shape: Shape
    classes: int
    trained: nn.Module | None = None

    def build(self, width: float = 1.0) -> nn.Module:
        """Return the network with fresh weights from PyTorch's global generator."""
        return models.build(self.name, self.shape, self.classes, width)

    @functools.cached_property
    def skeleton(self) -> nn.Module:
        """The network without memory for its weights."""
        return sizes.skeleton(self.name, self.shape, self.classes)

    @property
    def dense(self) -> int:
        """The number of stored variables of the dense model."""
        return sizes.count(self.skeleton)

    @functools.cached_property
    def weights(self) -> dict[str, int]:
        """The number of weights of each layer."""
        return {name: rows * columns for name, (rows, columns) in sizes.matrices(self.skeleton).items()}

    @property
    def kept(self) -> int:
        """The number of other stored variables: biases and batch norm."""
        return self.dense - sum(self.weights.values())

    def room(self, allowed: int, scales: int = 0) -> int:
        """Return the number of variables that a budget leaves for weights, or raise :class:`CannotReachError`."""
        least = self.kept + scales + 1
        if allowed < least:
            raise CannotReachError(least, allowed)
        return allowed - least + 1


@dataclass(frozen=True)
class Method:
    """A method: how it makes a model, and how large a model may be.

    Parameters
    ----------
    make : callable
        Returns the :class:`Made` model for settings, a :class:`Network` and the size that ``size`` returned. It draws
        from PyTorch's global generator, which has the seed of the settings.
    size : callable, optional
        Returns the largest size for settings, a :class:`Network` and the number of stored variables allowed, in any
        form: a pool ratio, a width, a number of weights. Raises :class:`CannotReachError` if there is none. A method
        without it stores a number for every weight, and has no ratio.
    """

    make: Callable[[Settings, Network, Any], Made]
    size: Callable[[Settings, Network, int], Any] | None = None
