"""smh for PyTorch: the same objects as ``smh.backends.torch``.

Choose a backend at import: ``from smh import torch as smh``.
"""

from smh.backends.torch import *  # noqa: F403
from smh.backends.torch import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
