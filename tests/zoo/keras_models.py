"""Networks of ``keras.applications`` with few and narrow blocks, and weights of their own."""

import keras
from keras.src.applications import densenet, efficientnet, efficientnet_v2, resnet

SHAPE = (32, 32, 3)
SMALL = {"weights": None, "classes": 4}
ALONE = SMALL | {"input_shape": SHAPE, "include_top": True}


def resnet_of(stacks, preact):
    """Return a ResNet with two stacks of two blocks each."""

    def stages(x):
        return stacks(stacks(x, 8, 2, name="conv2"), 16, 2, name="conv3")

    return resnet.ResNet(stages, preact, True, **ALONE)


FAMILIES = {
    "mobilenet": lambda: keras.applications.MobileNet(SHAPE, alpha=0.25, **SMALL),
    "mobilenet_v2": lambda: keras.applications.MobileNetV2(SHAPE, alpha=0.35, **SMALL),
    "mobilenet_v3": lambda: keras.applications.MobileNetV3Small(SHAPE, alpha=0.5, **SMALL),
    "resnet": lambda: resnet_of(resnet.stack_residual_blocks_v1, False),
    "resnet_v2": lambda: resnet_of(resnet.stack_residual_blocks_v2, True),
    "densenet": lambda: densenet.DenseNet((1, 2, 1, 1), **ALONE),
    "efficientnet": lambda: efficientnet.EfficientNet(0.25, 0.2, 32, **ALONE, name="efficientnet", weights_name=""),
    "efficientnet_v2": lambda: efficientnet_v2.EfficientNetV2(
        0.25, 0.2, 32, **ALONE, name="efficientnetv2-b0", weights_name=""
    ),
}
"""Name: what makes the model."""
