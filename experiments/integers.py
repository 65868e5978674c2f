"""Weights as trained integers without a product: one integer for each weight, or a shared table of integers.

Both round as pools with fixed exponents do, and both can be trained with the rate in the loss.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from smh.backends.torch.narrow import KERNELS
from smh.core.rate import array_rate


class Rounded(nn.Module):
    """A tensor as integers times a fixed unit and a scale.

    Parameters
    ----------
    x : torch.Tensor
        The initial values. The unit follows from their deviation, as in a pool with fixed exponents.
    bits : int
        The bits of an integer, with its sign.
    learn_scale : bool
        Whether the scale is trained; otherwise it is 1.
    """

    def __init__(self, x: torch.Tensor, bits: int, learn_scale: bool = True) -> None:
        super().__init__()
        exponent = math.frexp(float(x.detach().std()))[1] + max(2, bits - 4)
        self.bits = bits - 1
        self.unit = 2.0 ** (exponent - self.bits)
        self.scale = nn.Parameter(torch.ones(())) if learn_scale else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round; gradients pass."""
        return (x + (self.integers(x) * self.unit - x).detach()) * self.scale

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """Return the integers."""
        return (x.detach() / self.unit).round().clamp(1.0 - 2.0**self.bits, 2.0**self.bits - 1.0)

    def rate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rate of the tensor."""
        return array_rate(KERNELS, x.reshape(-1) / self.unit, self.bits, torch.Tensor.detach)


class RoundedTensors:
    """Parameters of layers that are rounded, each by itself.

    Parameters
    ----------
    layers : sequence of torch.nn.Module
        The layers. They are changed in place.
    names : sequence of str
        The parameters to round.
    bits : int
        The bits of an integer.
    """

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str], bits: int) -> None:
        for layer in layers:
            for name in names:
                if getattr(layer, name) is not None:
                    parametrize.register_parametrization(layer, name, Rounded(getattr(layer, name), bits))
        parts = [part for layer in layers for part in layer.parametrizations.values()]
        self._rounded = [(part[0], part.original) for part in parts]

    def rate(self) -> torch.Tensor:
        """Return the rate of all tensors."""
        return torch.stack([part.rate(x) for part, x in self._rounded]).sum()

    def integers(self) -> list[torch.Tensor]:
        """Return the integers of each tensor."""
        return [part.integers(x) for part, x in self._rounded]


class Shared(nn.Module, abc.ABC):
    """A network whose weights are read from shared values, times a learned scale of each layer.

    Parameters
    ----------
    model : torch.nn.Module
        The network. Its layers are changed in place.
    layers : sequence of torch.nn.Module
        The layers whose weights are replaced.
    index : torch.Tensor
        The places of all weights among the values, layer by layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], index: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        deviation = torch.cat([layer.weight.detach().flatten() for layer in layers]).std()
        self.deviation = float(deviation)
        for layer, places in zip(layers, index.split([layer.weight.numel() for layer in layers]), strict=True):
            weight = layer.weight
            del layer.weight
            layer.register_parameter("scale", nn.Parameter(weight.detach().std() / deviation))
            layer.register_buffer("index", places.view(weight.shape), persistent=False)
            layer.register_forward_pre_hook(self._fill)

    @abc.abstractmethod
    def values(self) -> torch.Tensor:
        """Return all values, of the deviation of all initial weights together."""

    def _fill(self, layer: nn.Module, args: object) -> None:
        layer.weight = self.values()[layer.index] * layer.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        return self.model(x)


class OnTable(Shared):
    """A network whose weights are all read from one table (STABLE-RPS, Desai and Shrivastava 2024).

    Weights are numbered over all layers. Each run of ``size`` weights reads the table in another random order
    (RANDOMFOLD), so all variables are used equally often, and a table as large as the weights gives the plain network.
    Adam makes the scaling of gradients by the number of uses unnecessary. Variables have the deviation of all weights
    together, so the learning rate of the plain network fits. A weight is its variable times a learned scale of its
    layer.

    Parameters
    ----------
    model, layers
        As in :class:`Shared`.
    size : int
        The number of variables.
    bits, seed : int
        The bits of an integer, and the seed of variables and orders.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], size: int, bits: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(size, generator=generator)
        total = sum(layer.weight.numel() for layer in layers)
        orders = [torch.randperm(size, generator=generator) for _ in range(-(-total // size))]
        super().__init__(model, layers, torch.cat(orders)[:total])
        self.variables = nn.Parameter(self.deviation * drawn)
        self.rounded = Rounded(self.variables, bits, learn_scale=False)

    def values(self) -> torch.Tensor:
        """Return the rounded table."""
        return self.rounded(self.variables)

    def rate(self) -> torch.Tensor:
        """Return the rate of the table."""
        return self.rounded.rate(self.variables)

    def integers(self) -> list[torch.Tensor]:
        """Return the integers of the table."""
        return [self.rounded.integers(self.variables)]


class OnProduct(Shared):
    """A network whose weights are the cells of one matrix product in an order.

    Parameters
    ----------
    model, layers, bits, seed
        As in :class:`OnTable`.
    size : int
        The maximum number of variables.
    order : callable
        Returns the places of all cells of a square matrix, given its side, a multiple of 16, and a generator.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        size: int,
        bits: int,
        seed: int,
        order: Callable[[int, torch.Generator], torch.Tensor],
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = sum(layer.weight.numel() for layer in layers)
        side = math.isqrt(total - 1) // 16 * 16 + 16
        terms = max(1, size // (2 * side))
        super().__init__(model, layers, order(side, generator)[:total])
        deviation = math.sqrt(self.deviation / math.sqrt(terms))
        self.left = nn.Parameter(deviation * torch.randn(side, terms, generator=generator))
        self.right = nn.Parameter(deviation * torch.randn(terms, side, generator=generator))
        self.rounded = nn.ModuleList(Rounded(x, bits, learn_scale=False) for x in (self.left, self.right))

    def values(self) -> torch.Tensor:
        """Return the cells, row by row."""
        left, right = (rounded(x) for rounded, x in zip(self.rounded, (self.left, self.right), strict=True))
        return (left @ right).flatten()

    def integers(self) -> list[torch.Tensor]:
        """Return the integers of both factors."""
        return [rounded.integers(x) for rounded, x in zip(self.rounded, (self.left, self.right), strict=True)]


def rows(side: int, generator: torch.Generator) -> torch.Tensor:
    """Return the cells row by row."""
    return torch.arange(side * side)


def shuffled(side: int, generator: torch.Generator) -> torch.Tensor:
    """Return the cells in random order."""
    return torch.randperm(side * side, generator=generator)


def diagonals(side: int, generator: torch.Generator) -> torch.Tensor:
    """Return the cells diagonal by diagonal; each has all rows and all columns."""
    cell = torch.arange(side * side)
    row, diagonal = cell % side, cell // side
    return row * side + (row + diagonal) % side


def tiles(side: int, generator: torch.Generator) -> torch.Tensor:
    """Return the cells row by row of strips of 16 columns, strip by strip."""
    return torch.arange(side * side).view(side, side // 16, 16).transpose(0, 1).flatten()
