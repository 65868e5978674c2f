"""The functions of smh for JAX: the objects of ``smh.backends.jax``."""

from smh.backends.jax import *  # noqa: F403
from smh.backends.jax import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
