"""Models of PyTorch that are compressed: ResNet-34, EfficientNet-B0, and a multilayer perceptron."""

import torch
from torch import nn

from cost.shapes import EFFICIENTNET_B0


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
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
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


MODELS = {"resnet34": resnet34, "efficientnet_b0": efficientnet_b0, "mlp": mlp, "tiny": mlp}


def make(model: str, size: int) -> nn.Module:
    """Return a model with the same initial values every time."""
    torch.manual_seed(0)
    return MODELS[model](size)


def inputs(model: str, size: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of random images, or rows, and labels."""
    torch.manual_seed(1)
    if model in ("mlp", "tiny"):
        return torch.randn(batch, size), torch.randint(size, (batch,))
    return torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
