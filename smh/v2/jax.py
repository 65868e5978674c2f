"""smh for JAX: the same objects as ``smh.v2.backends.jax``.

Choose a backend at import: ``from smh.v2 import jax as smh``.
"""

from smh.v2.backends.jax import *  # noqa: F403
from smh.v2.backends.jax import __all__ as __all__
