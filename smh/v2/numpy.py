"""smh for NumPy: the same objects as ``smh.v2.backends.numpy``.

Choose a backend at import: ``from smh.v2 import numpy as smh``.
"""

from smh.v2.backends.numpy import *  # noqa: F403
from smh.v2.backends.numpy import __all__ as __all__
