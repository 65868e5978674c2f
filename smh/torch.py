"""The functions of smh for PyTorch: the objects of ``smh.backends.torch``."""

from smh.backends.torch import *  # noqa: F403
from smh.backends.torch import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
