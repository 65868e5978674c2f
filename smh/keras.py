"""The functions of smh for Keras and TensorFlow: the objects of ``smh.backends.tensorflow``."""

from smh.backends.tensorflow import *  # noqa: F403
from smh.backends.tensorflow import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
