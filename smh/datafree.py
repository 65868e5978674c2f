"""Inputs for fine-tuning without data: the functions of ``smh.backends.torch.datafree``."""

from smh.backends.torch.datafree import *  # noqa: F403
from smh.backends.torch.datafree import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
