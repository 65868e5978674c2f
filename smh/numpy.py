"""The functions of smh for NumPy: the objects of ``smh.backends.numpy``."""

from smh.backends.numpy import *  # noqa: F403
from smh.backends.numpy import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
