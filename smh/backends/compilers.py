"""A check for compiler settings that break floating-point arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smh.errors import BackendError

TERMS = (1.0, 2.0**-60)


def rest(x: Any) -> Any:
    """Return the sum of two terms minus the first: 0 for ``TERMS`` in float64, unless a compiler reorders it."""
    return (x[0] + x[1]) - x[0]


def check_rest(compute: Callable[[], Any]) -> None:
    """Raise :class:`~smh.BackendError` unless :func:`rest`, compiled, is 0 for ``TERMS``."""
    result = float(compute())
    if result != 0.0:
        raise BackendError(
            f"XLA reorders sums: (1 + 2**-60) - 1 gave {result:.3g} instead of 0, so weights and gradients would "
            "differ between machines: remove the flag --xla_cpu_enable_fast_math=true from the environment "
            "variable XLA_FLAGS"
        )
