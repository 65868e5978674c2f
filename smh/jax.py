"""smh for JAX: the same objects as ``smh.backends.jax``.

Choose a backend at import: ``from smh import jax as smh``.
"""

from smh.backends.jax import *  # noqa: F403
from smh.backends.jax import __all__ as __all__


def __dir__() -> list[str]:
    return sorted(__all__)
