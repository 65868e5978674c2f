"""What tests of the core share."""

import numpy as np

from smh.backends.numpy import NumpyOps
from smh.grid import line_shifters, to_grid


def on_grid(x, axis, bits):
    """Return a matrix whose lines along an axis are rounded to their grids (rules 1 to 4)."""
    return to_grid(NumpyOps(), x, line_shifters(np, x, axis, bits))
