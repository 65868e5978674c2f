"""Warnings that name a line of the user's code."""

from __future__ import annotations

import sys
import warnings

_PASSED = {"smh", "torch", "jax", "flax", "equinox", "keras", "tensorflow", "numpy", "contextlib", "functools"}
"""Packages whose frames lie between a user's line and a warning, such as those that call a hook."""


def warn(text: str) -> None:
    """Warn of the innermost line outside of this library and the frameworks, with a ``UserWarning``."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
