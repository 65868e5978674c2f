"""Networks for ImageNet, for images of any size: ResNet-34 and EfficientNet-B0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.stages import EFFICIENTNET_B0, RESNET34

Shape = tuple[int, int, int]
Units = Callable[[int], int]


def resnet34(shape: Shape, classes: int, units: Units) -> nn.Module:
    """ResNet-34 (He et al. 2016)."""
    before = units(64)
    layers: list[nn.Module] = [_Convolution(shape[0], before, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, (channels, blocks) in enumerate(RESNET34):
        for block in range(blocks):
            layers.append(_Basic(before, units(channels), 2 if stage and not block else 1))
            before = units(channels)
    return nn.Sequential(*layers, *_classifier(before, classes))


def efficientnet_b0(shape: Shape, classes: int, units: Units) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019), without stochastic depth."""
    before = units(32)
    layers: list[nn.Module] = [_Convolution(shape[0], before, 3, 2, act=nn.SiLU())]
    for expansion, window, stride, channels, blocks in EFFICIENTNET_B0:
        for block in range(blocks):
            layers.append(_Inverted(before, units(channels), expansion, window, 1 if block else stride))
            before = units(channels)
    last = units(1280)
    return nn.Sequential(*layers, _Convolution(before, last, 1, act=nn.SiLU()), *_classifier(last, classes))


class _Convolution(nn.Sequential):
    """A convolution with batch norm and, unless told otherwise, ReLU."""

    def __init__(self, before: int, after: int, window: int, stride: int = 1, groups: int = 1, act: Any = None) -> None:
        conv = nn.Conv2d(before, after, window, stride, window // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(after), nn.ReLU() if act is None else act)


class _Basic(nn.Module):
    """Two convolutions of 3 x 3 and a shortcut, which is a convolution where the stage begins."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        last = _Convolution(after, after, 3, act=nn.Identity())
        self.layers = nn.Sequential(_Convolution(before, after, 3, stride), last)
        self.shortcut = _Convolution(before, after, 1, stride, act=nn.Identity()) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        return functional.relu(self.layers(x) + self.shortcut(x))


class _Inverted(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self, before: int, after: int, expansion: int, window: int, stride: int) -> None:
        super().__init__()
        inner, squeezed = expansion * before, max(1, before // 4)
        self.expand = _Convolution(before, inner, 1, act=nn.SiLU()) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(inner, inner, window, stride, inner, nn.SiLU())
        narrow, wide = nn.Conv2d(inner, squeezed, 1), nn.Conv2d(squeezed, inner, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), narrow, nn.SiLU(), wide, nn.Sigmoid())
        self.project = _Convolution(inner, after, 1, act=nn.Identity())
        self.skips = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.gate(y))
        return x + y if self.skips else y


def _classifier(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
