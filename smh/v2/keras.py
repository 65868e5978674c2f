"""smh for Keras and TensorFlow: the same objects as ``smh.v2.backends.tensorflow``.

Choose a backend at import: ``from smh.v2 import keras as smh``.
"""

from smh.v2.backends.tensorflow import *  # noqa: F403
from smh.v2.backends.tensorflow import __all__ as __all__
