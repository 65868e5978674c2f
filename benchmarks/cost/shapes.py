"""Shapes of the generated tensors of well-known models, as ``h w i o`` and ``i o``."""

import math

Shapes = dict[str, tuple[int, ...]]

EFFICIENTNET_B0 = (
    # kernel, stride, expansion, channels, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""The stages of mobile inverted bottlenecks in EfficientNet-B0."""
RESNET34 = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Width and number of blocks of the stages in ResNet-34."""


def mlp() -> Shapes:
    """Return three square layers of 4096."""
    return {f"fc{i}": (4096, 4096) for i in range(3)}


def resnet34() -> Shapes:
    """Return ResNet-34 for ImageNet: all convolutions and the last layer."""
    shapes: Shapes = {"conv1": (7, 7, 3, 64)}
    before = 64
    for stage, (width, blocks) in enumerate(RESNET34, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (3, 3, before, width)
            shapes[f"{name}.conv2"] = (3, 3, width, width)
            if before != width:
                shapes[f"{name}.downsample"] = (1, 1, before, width)
            before = width
    return shapes | {"fc": (512, 1000)}


def efficientnet_b0() -> Shapes:
    """Return EfficientNet-B0: expansions, depthwise convolutions, squeeze and excite, projections."""
    shapes: Shapes = {"stem": (3, 3, 3, 32)}
    before = 32
    for stage, (kernel, _, expansion, channels, repeats) in enumerate(EFFICIENTNET_B0):
        for block in range(repeats):
            name, wide, squeezed = f"{stage}.{block}", before * expansion, before // 4
            if expansion > 1:
                shapes[f"{name}.expand"] = (1, 1, before, wide)
            shapes[f"{name}.depthwise"] = (kernel, kernel, 1, wide)
            shapes[f"{name}.squeeze"] = (1, 1, wide, squeezed)
            shapes[f"{name}.excite"] = (1, 1, squeezed, wide)
            shapes[f"{name}.project"] = (1, 1, wide, channels)
            before = channels
    return shapes | {"head": (1, 1, before, 1280), "fc": (1280, 1000)}


def transformer() -> Shapes:
    """Return twelve layers of width 768: attention and a feed-forward part of four times the width."""
    parts = {"qkv": (768, 2304), "out": (768, 768), "up": (768, 3072), "down": (3072, 768)}
    return {f"{layer}.{name}": shape for layer in range(12) for name, shape in parts.items()}


def square(side: int) -> Shapes:
    """Return one matrix."""
    return {"weight": (side, side)}


MODELS = {
    "resnet34": resnet34,
    "efficientnet_b0": efficientnet_b0,
    "mlp": mlp,
    "transformer": transformer,
    "square2300": lambda: square(2300),
    "square4612": lambda: square(4612),
    "tiny": lambda: {"fc1": (64, 100), "fc2": (100, 10), "fc3": (10, 10)},
}
"""Shapes by the names of models; ``tiny`` only shows that everything runs."""


def by_size(shapes: Shapes) -> dict[str, str]:
    """Return the names of the largest tensor and of the median one, by what they are."""
    names = sorted(shapes, key=lambda name: math.prod(shapes[name]))
    return {"largest": names[-1], "median": names[len(names) // 2]}
