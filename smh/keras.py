"""smh for Keras and TensorFlow: the same objects as ``smh.backends.tensorflow``.

Choose a backend at import: ``from smh import keras as smh``.
"""

from smh.backends.tensorflow import *  # noqa: F403
from smh.backends.tensorflow import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
