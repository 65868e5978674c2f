"""smh for PyTorch: the same objects as ``smh.v2.backends.torch``.

Choose a backend at import: ``from smh.v2 import torch as smh``.
"""

from smh.v2.backends.torch import *  # noqa: F403
from smh.v2.backends.torch import __all__ as __all__
