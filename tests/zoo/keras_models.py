"""Networks of ``keras.applications`` with few and narrow blocks, and weights of their own."""

import keras
from keras.src.applications import resnet

SHAPE = (32, 32, 3)
SMALL = {"weights": None, "classes": 4}
ALONE = SMALL | {"input_shape": SHAPE, "include_top": True}


def resnet_of(stacks, preact):
    """Return a ResNet with two stacks of two blocks each."""

    def stages(x):
        return stacks(stacks(x, 8, 2, name="conv2"), 16, 2, name="conv3")

    return resnet.ResNet(stages, preact, True, **ALONE)


FAMILIES = {
    "mobilenet_v3": lambda: keras.applications.MobileNetV3Small(SHAPE, alpha=0.5, **SMALL),
    "resnet": lambda: resnet_of(resnet.stack_residual_blocks_v1, False),
    "resnet_v2": lambda: resnet_of(resnet.stack_residual_blocks_v2, True),
}
"""Name: what makes the model."""
