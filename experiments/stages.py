"""The stages of networks for ImageNet, without any framework."""

RESNET34 = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Channels and number of blocks of each stage."""
EFFICIENTNET_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Expansion, window, stride, channels and number of blocks of each stage."""
