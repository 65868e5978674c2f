"""ResNet-34, EfficientNet-B0 and a multilayer perceptron, written once over the layers of a framework.

PyTorch, whose models are classes, has them in :mod:`cost.torch_models`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from cost.shapes import EFFICIENTNET_B0, RESNET34

Array = Any


class Layers(Protocol):
    """What models are made of. Images are [batch, height, width, channels]; each layer with weights has a name."""

    def conv(self, name: str, x: Array, channels: int, kernel: int, stride: int = 1, *, bias: bool = False) -> Array:
        """Return a convolution, padded so that a stride of one keeps the size."""

    def depthwise(self, name: str, x: Array, kernel: int, stride: int = 1) -> Array:
        """Return a convolution of each channel on its own, padded likewise, without bias."""

    def norm(self, name: str, x: Array) -> Array:
        """Return batch normalisation: of the batch in training, of running statistics else."""

    def dense(self, name: str, x: Array, units: int) -> Array:
        """Return a linear layer with bias."""

    def relu(self, x: Array) -> Array:
        """Return the positive part."""

    def sigmoid(self, x: Array) -> Array:
        """Return the logistic function."""

    def pool(self, x: Array) -> Array:
        """Return the largest of each 3 x 3 pixels, at every second one."""

    def mean(self, x: Array) -> Array:
        """Return the mean over all pixels, [batch, 1, 1, channels]."""

    def flatten(self, x: Array) -> Array:
        """Return one row for each element of the batch."""


def resnet34(net: Layers, x: Array, size: int) -> Array:
    """Return logits; small images meet a first layer of 3 x 3 and no pooling."""
    large = size >= 128
    x = net.relu(net.norm("bn1", net.conv("conv1", x, 64, 7 if large else 3, 2 if large else 1)))
    x = net.pool(x) if large else x
    before = 64
    for stage, (width, blocks) in enumerate(RESNET34):
        for block in range(blocks):
            name, stride = f"layer{stage}_{block}", 2 if stage and not block else 1
            y = net.relu(net.norm(f"{name}_bn1", net.conv(f"{name}_conv1", x, width, 3, stride)))
            y = net.norm(f"{name}_bn2", net.conv(f"{name}_conv2", y, width, 3))
            if before != width:
                x = net.norm(f"{name}_bn3", net.conv(f"{name}_downsample", x, width, 1, stride))
            x, before = net.relu(x + y), width
    return net.dense("fc", net.flatten(net.mean(x)), 1000)


def efficientnet_b0(net: Layers, x: Array, _: int) -> Array:
    """Return logits, for images of any size."""

    def silu(x: Array) -> Array:
        return x * net.sigmoid(x)

    x = silu(net.norm("stem_bn", net.conv("stem", x, 32, 3, 2)))
    before = 32
    for stage, (kernel, first, expansion, channels, repeats) in enumerate(EFFICIENTNET_B0):
        for block in range(repeats):
            name, stride = f"stage{stage}_{block}", 1 if block else first
            y = x
            if expansion > 1:
                y = silu(net.norm(f"{name}_bn1", net.conv(f"{name}_expand", y, before * expansion, 1)))
            y = silu(net.norm(f"{name}_bn2", net.depthwise(f"{name}_depthwise", y, kernel, stride)))
            squeezed = silu(net.conv(f"{name}_squeeze", net.mean(y), before // 4, 1, bias=True))
            y = y * net.sigmoid(net.conv(f"{name}_excite", squeezed, before * expansion, 1, bias=True))
            y = net.norm(f"{name}_bn3", net.conv(f"{name}_project", y, channels, 1))
            x = x + y if stride == 1 and before == channels else y
            before = channels
    x = silu(net.norm("head_bn", net.conv("head", x, 1280, 1)))
    return net.dense("fc", net.flatten(net.mean(x)), 1000)


def mlp(net: Layers, x: Array, size: int) -> Array:
    """Return the output of three square layers; ``size`` is their width."""
    x = net.relu(net.dense("fc1", x, size))
    return net.dense("fc3", net.relu(net.dense("fc2", x, size)), size)


def small(net: Layers, x: Array, _: int) -> Array:
    """Return the logits of one of each kind of layer that models cannot do without."""
    return net.dense("fc", net.flatten(net.mean(net.relu(net.norm("bn", net.conv("conv", x, 4, 3))))), 1000)


ARCHITECTURES: dict[str, Callable[[Layers, Array, int], Array]] = {
    "resnet34": resnet34,
    "efficientnet_b0": efficientnet_b0,
    "mlp": mlp,
    "tiny": mlp,
    "small": small,
}


def input_shape(model: str, size: int) -> tuple[int, ...]:
    """Return the shape of one image, or of one row."""
    return (size,) if model in ("mlp", "tiny") else (size, size, 3)


def classes(model: str, size: int) -> int:
    """Return how many labels there are."""
    return size if model in ("mlp", "tiny") else 1000
