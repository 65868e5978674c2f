"""Weights as trained integers without a product: one integer for each weight, or a shared table of integers.

Both round as pools with fixed exponents do, and both can be trained with the rate in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


class OnTable(nn.Module):
    """A network whose weights are all read from one table (STABLE-RPS, Desai and Shrivastava 2024).

    Weights are numbered over all layers. Each run of ``size`` weights reads the table in another random order
    (RANDOMFOLD), so all variables are used equally often, and a table as large as the weights gives the plain network.
    Adam makes the scaling of gradients by the number of uses unnecessary. Variables have the deviation of all weights
    together, so the learning rate of the plain network fits. A weight is its variable times a learned scale of its
    layer.

    Parameters
    ----------
    model : torch.nn.Module
        The network. Its layers are changed in place.
    layers : sequence of torch.nn.Module
        The layers whose weights are replaced.
    size : int
        The number of variables.
    bits, seed : int
        The bits of an integer, and the seed of variables and orders.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], size: int, bits: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        deviation = torch.cat([layer.weight.detach().flatten() for layer in layers]).std()
        self.variables = nn.Parameter(deviation * torch.randn(size, generator=generator))
        self.rounded = Rounded(self.variables, bits, learn_scale=False)
        sizes = [layer.weight.numel() for layer in layers]
        orders = [torch.randperm(size, generator=generator) for _ in range(-(-sum(sizes) // size))]
        for layer, index in zip(layers, torch.cat(orders)[: sum(sizes)].split(sizes), strict=True):
            weight = layer.weight
            del layer.weight
            layer.register_parameter("scale", nn.Parameter(weight.detach().std() / deviation))
            layer.register_buffer("index", index.view(weight.shape), persistent=False)
            layer.register_forward_pre_hook(self._fill)

    def _fill(self, layer: nn.Module, args: object) -> None:
        layer.weight = self.rounded(self.variables)[layer.index] * layer.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        return self.model(x)

    def rate(self) -> torch.Tensor:
        """Return the rate of the table."""
        return self.rounded.rate(self.variables)

    def integers(self) -> list[torch.Tensor]:
        """Return the integers of the table."""
        return [self.rounded.integers(self.variables)]
