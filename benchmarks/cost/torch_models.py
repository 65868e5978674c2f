"""Models in PyTorch: ResNet-34, EfficientNet-B0, a multilayer perceptron; their training steps and forward passes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cost.architectures import classes, input_shape
from cost.shapes import EFFICIENTNET_B0, RESNET34
from smh.backends import torch as smh


class Block(nn.Module):
    """Two convolutions of 3 x 3 around which the input goes, projected where the width changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet34(size: int) -> nn.Module:
    """Return the model; small images meet a first layer of 3 x 3 and no pooling."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    if size >= 128:
        layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, (width, blocks) in enumerate(RESNET34):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Bottleneck(nn.Module):
    """A mobile inverted bottleneck: expand, filter each channel, squeeze and excite, project."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, squeezed = before * expansion, before // 4
        self.expand = _conv(before, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, wide, 1), nn.Sigmoid()
        )
        self.project = _conv(wide, channels, 1)[:2]
        self.around = stride == 1 and before == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        inner = self.depthwise(self.expand(x))
        out = self.project(inner * self.excite(inner))
        return out + x if self.around else out


def efficientnet_b0(size: int) -> nn.Module:
    """Return the model, for images of any size."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
    before = 32
    for kernel, stride, expansion, channels, repeats in EFFICIENTNET_B0:
        for block in range(repeats):
            layers.append(Bottleneck(before, channels, kernel, 1 if block else stride, expansion))
            before = channels
    return nn.Sequential(*layers, _conv(before, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def mlp(size: int) -> nn.Module:
    """Return three square layers; ``size`` is their width."""
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))


def _conv(before: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.SiLU())


def small(_: int) -> nn.Module:
    """Return one of each kind of layer that models cannot do without."""
    return nn.Sequential(_conv(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))


MODELS = {"resnet34": resnet34, "efficientnet_b0": efficientnet_b0, "mlp": mlp, "tiny": mlp, "small": small}


def make(model: str, size: int) -> nn.Module:
    """Return a model with the same initial values every time."""
    torch.manual_seed(0)
    return MODELS[model](size)


def compress(model: nn.Module, ratio: float, arithmetic: str, residency: str = "full") -> nn.Module:
    """Return a compressed copy."""
    return smh.compress(model, ratio=ratio, arithmetic=arithmetic, residency=residency)


def plan_of(model: nn.Module) -> smh.Plan:
    """Return the plan of a compressed model."""
    return smh.plan_of(model)


def inputs(model: str, size: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of random images, or rows, and labels."""
    torch.manual_seed(1)
    shape = input_shape(model, size)
    return torch.randn(batch, *shape[2:], *shape[:2]), torch.randint(classes(model, size), (batch,))


def train(mode: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    """Return a training step: forward, backward, and plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    forward = _prepared(mode, model.train())

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()

    return run


def infer(mode: str, model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """Return a forward pass without gradients."""
    forward = _prepared(mode, model.eval())

    @torch.no_grad()
    def run() -> torch.Tensor:
        y: torch.Tensor = forward(x)
        return y

    return run


def save(path: str, model: nn.Module) -> None:
    """Write a model as it is."""
    torch.save(model, path)


def load(path: str) -> nn.Module:
    """Read what :func:`save` wrote."""
    model: nn.Module = torch.load(path, weights_only=False)
    return model


def _prepared(mode: str, model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model, dynamic=False) if mode == "compile" else model
