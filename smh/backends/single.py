"""Smooth kernels without float64, for fast gradients."""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

from smh.core.kernels import Kernels

K = TypeVar("K", bound=Kernels)


def in_float32(kernels: K) -> K:
    """Let float64 mean float32 in smooth kernels, and return them.

    Fast gradients promise no bits, so they need no type wider than those of the variables.
    """
    xp = ModuleType(f"{kernels.xp.__name__}_single")
    xp.__dict__.update({**vars(kernels.xp), "float64": kernels.xp.float32})
    kernels.xp = xp
    return kernels
