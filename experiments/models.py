"""The networks, each with a width that multiplies the number of units of every hidden layer (at least one unit)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from experiments import imagenet
from experiments.errors import ExperimentError
from experiments.imagenet import Shape, Units
from experiments.stages import EFFICIENTNET_B0, RESNET34


def build(name: str, shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return a network with fresh weights from PyTorch's global generator.

    Parameters
    ----------
    name : str
        ``mlp``: 784-1000-1000-10 on 28 x 28.
        ``shallow``: 784-1000-10 on 28 x 28, the three layers of units of HashedNets (Chen et al. 2015).
        ``cnn``: three convolutions with batch norm, two dense layers; 278,928 weights on 28 x 28.
        ``convnet``: four convolutions with batch norm, average pooling, one dense layer; 278,368 weights on 28 x 28.
        ``resnet32``, ``resnet20``: the networks for CIFAR-10 (He et al. 2016), images of any size.
        ``resnet34``, ``efficientnet_b0``: networks for ImageNet, see :mod:`experiments.imagenet`.
        ``lenet300``, ``lenet5``: LeNet-300-100 and LeNet-5 (as in Caffe); 266,610 and 431,080 numbers.
        ``tiny``: two small layers, for quick checks.
    shape : tuple of int
        Channels, height and width of the images.
    classes : int
        The number of outputs.
    width : float
        The width multiplier of all hidden layers.

    Raises
    ------
    ExperimentError
        For an unknown name.
    """
    if name not in BUILDERS:
        raise ExperimentError(f"model must be one of {', '.join(BUILDERS)}; got {name!r}")
    return BUILDERS[name](shape, classes, lambda units: max(1, round(units * width)))


def widths(name: str) -> Iterator[float]:
    """Iterate over the widths at which the number of units of a layer changes, from 1 down.

    Raises
    ------
    ExperimentError
        If the numbers of units of the network are not known.
    """
    if name not in UNITS:
        raise ExperimentError(
            f"method width needs the numbers of hidden units of {name}: add them as models.UNITS[{name!r}]"
        )
    units = sorted(UNITS[name])
    edges = {(2 * k - 1) / (2 * u) for u in units for k in range(1, u + 1)}
    # just above an edge, where u * width rounds up
    yield from (edge + 1e-9 for edge in sorted(edges, reverse=True))


UNITS: dict[str, set[int]] = {
    "mlp": {1000},
    "shallow": {1000},
    "cnn": {32, 64, 216},
    "convnet": {32, 64, 128, 160},
    "resnet32": {16, 32, 64},
    "resnet20": {16, 32, 64},
    "resnet34": {channels for channels, _ in RESNET34},
    "efficientnet_b0": {32, 1280, *(channels for _, _, _, channels, _ in EFFICIENTNET_B0)},
    "lenet300": {100, 300},
    "lenet5": {20, 50, 500},
    "tiny": {40},
}
"""The numbers of units of the hidden layers of each network, at width 1. A missing number makes method ``width`` choose
a narrower network than the budget allows."""


def _mlp(shape: Shape, classes: int, units: Units) -> nn.Module:
    inputs, hidden = shape[0] * shape[1] * shape[2], units(1000)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def _shallow(shape: Shape, classes: int, units: Units) -> nn.Module:
    inputs, hidden = shape[0] * shape[1] * shape[2], units(1000)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def _lenet300(shape: Shape, classes: int, units: Units) -> nn.Module:
    inputs, first, second = shape[0] * shape[1] * shape[2], units(300), units(100)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )


def _lenet5(shape: Shape, classes: int, units: Units) -> nn.Module:
    first, second, hidden = units(20), units(50), units(500)
    pixels = ((shape[1] - 4) // 2 - 4) // 2 * (((shape[2] - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(shape[0], first, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * pixels, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def _tiny(shape: Shape, classes: int, units: Units) -> nn.Module:
    inputs, hidden = shape[0] * shape[1] * shape[2], units(40)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def _convolutions(shape: Shape, channels: list[int]) -> list[nn.Module]:
    """Return convolutions of stride 2, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    before = shape[0]
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return layers


def _halved(size: int, times: int) -> int:
    """Return a size after convolutions of stride 2 with padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def _cnn(shape: Shape, classes: int, units: Units) -> nn.Module:
    channels = [units(32), units(64), units(64)]
    pixels = _halved(shape[1], 3) * _halved(shape[2], 3)
    return nn.Sequential(
        *_convolutions(shape, channels),
        nn.Flatten(),
        nn.Linear(channels[-1] * pixels, units(216), bias=False),
        nn.ReLU(),
        nn.Linear(units(216), classes),
    )


def _convnet(shape: Shape, classes: int, units: Units) -> nn.Module:
    channels = [units(32), units(64), units(128), units(160)]
    return nn.Sequential(
        *_convolutions(shape, channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)
    )


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights, subsampled and padded with zero channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.more = after - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        y = functional.relu(self.norm1(self.conv1(x)))
        short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(self.norm2(self.conv2(y)) + short)


def _resnet(blocks: int) -> Callable[[Shape, int, Units], nn.Module]:
    def make(shape: Shape, classes: int, units: Units) -> nn.Module:
        before = units(16)
        layers: list[nn.Module] = [
            nn.Conv2d(shape[0], before, 3, 1, 1, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU(),
        ]
        for stage, after in enumerate((units(16), units(32), units(64))):
            for block in range(blocks):
                layers.append(_Block(before, after, 2 if stage and not block else 1))
                before = after
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    return make


BUILDERS: dict[str, Callable[[Shape, int, Units], nn.Module]] = {
    "mlp": _mlp,
    "shallow": _shallow,
    "cnn": _cnn,
    "convnet": _convnet,
    "resnet32": _resnet(5),
    "resnet20": _resnet(3),
    "resnet34": imagenet.resnet34,
    "efficientnet_b0": imagenet.efficientnet_b0,
    "lenet300": _lenet300,
    "lenet5": _lenet5,
    "tiny": _tiny,
}
"""Each builds a network for a shape, a number of classes, and a function from units at width 1 to units."""

IMAGENET = ("resnet34", "efficientnet_b0")
"""The networks for ImageNet."""
