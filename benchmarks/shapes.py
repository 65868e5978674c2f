"""Shapes of generated tensors: networks in PyTorch's layout, and squares."""

from __future__ import annotations

from experiments.stages import EFFICIENTNET_B0, RESNET34

Shapes = dict[str, tuple[int, ...]]


def shapes_of(name: str) -> Shapes:
    """Return the shapes of ``resnet34``, ``efficientnet_b0`` or ``squareN``, one tensor of N x N."""
    if name.startswith("square") and name[6:].isdecimal():
        return {"square": (int(name[6:]),) * 2}
    if name not in _NETWORKS:
        raise SystemExit(f"shapes must be squareN, {' or '.join(_NETWORKS)}; got {name!r}")
    return _NETWORKS[name]()


def resnet34() -> Shapes:
    """ResNet-34 for ImageNet (He et al. 2016): 21.8 million weights."""
    shapes: Shapes = {"conv1": (64, 3, 7, 7)}
    before = 64
    for stage, (channels, blocks) in enumerate(RESNET34):
        for block in range(blocks):
            name = f"layers.{stage}.{block}"
            shapes |= {f"{name}.conv1": (channels, before, 3, 3), f"{name}.conv2": (channels, channels, 3, 3)}
            if before != channels:
                shapes[f"{name}.shortcut"] = (channels, before, 1, 1)
            before = channels
    return shapes | {"fc": (1000, 512)}


def efficientnet_b0() -> Shapes:
    """EfficientNet-B0 (Tan and Le 2019): 5.2 million weights."""
    shapes: Shapes = {"stem": (32, 3, 3, 3)}
    before = 32
    for stage, (expansion, window, _, channels, blocks) in enumerate(EFFICIENTNET_B0):
        for block in range(blocks):
            name, inner, squeezed = f"stages.{stage}.{block}", expansion * before, before // 4
            if expansion > 1:
                shapes[f"{name}.expand"] = (inner, before, 1, 1)
            shapes |= {
                f"{name}.depthwise": (inner, 1, window, window),
                f"{name}.squeeze": (squeezed, inner, 1, 1),
                f"{name}.excite": (inner, squeezed, 1, 1),
                f"{name}.project": (channels, inner, 1, 1),
            }
            before = channels
    return shapes | {"head": (1280, before, 1, 1), "fc": (1000, 1280)}


_NETWORKS = {"resnet34": resnet34, "efficientnet_b0": efficientnet_b0}
