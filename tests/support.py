"""What tests of the core share."""

import numpy as np

from smh.backends.numpy import NumpyOps
from smh.grid import line_shifters, to_grid


def on_grid(x, axis, bits):
    """Return a matrix whose lines along an axis are rounded to their grids (rules 1 to 4)."""
    return to_grid(NumpyOps(), x, line_shifters(np, x, axis, bits))


def of_torch(tensors, name):
    """Return a tensor of a plan from those of a torch module, where one may hold three of the plan's."""
    whole, _, part = name.rpartition(".")
    if whole.endswith("in_proj_weight"):
        return tensors[whole].chunk(3)[("query", "key", "value").index(part)]
    return tensors[name]


def scale_of_torch(name):
    """Return the parameter of a torch module that holds the scale of a tensor of a plan."""
    return f"{name.replace('in_proj_weight.', 'in_proj_weight_')}_scale"
