"""smh for NumPy: the same objects as ``smh.backends.numpy``.

Choose a backend at import: ``from smh import numpy as smh``.
"""

from smh.backends.numpy import *  # noqa: F403
from smh.backends.numpy import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
