"""Layers as products of two factors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def factorise_(model: nn.Module, ranks: Mapping[str, int | None]) -> None:
    """Replace every layer that has a rank by a product of two layers with fresh weights.

    The first layer has PyTorch's initialisation. The second gives the products the variance of a layer initialised by
    PyTorch, 1 / (3 inputs). Biases are unchanged.
    """
    for name, rank in ranks.items():
        if rank is None:
            continue
        parent, _, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, attribute, _factorised(getattr(owner, attribute), rank))


def _factorised(layer: nn.Linear | nn.Conv2d, rank: int) -> nn.Sequential:
    has_bias = layer.bias is not None
    first: nn.Linear | nn.Conv2d
    second: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=has_bias)
    else:
        first = nn.Conv2d(
            layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=has_bias)
    nn.init.normal_(second.weight, std=rank**-0.5)
    if has_bias:
        second.bias = layer.bias
    return nn.Sequential(first, second)
