"""Where the core does without float64: on devices that have none, and where users say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from smh.backends.protocol import Mode
from smh.core.kernels import Kernels
from smh.errors import BackendError

VARIABLE = "SMH_FLOAT64"


def _of_environment() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise BackendError(f"{VARIABLE} must be 0, for no float64, or 1; got {value!r}")
    return value == "1"


_allowed = _of_environment()


def float64_allowed() -> bool:
    """Say whether users let the core have float64, as they do unless SMH_FLOAT64 is 0."""
    return _allowed


@contextmanager
def without_float64() -> Iterator[None]:
    """Let the core do without float64 for a while, in all threads: no bit changes.

    It pays where float64 is slow, as on consumer GPUs. What is compiled already stays as it is. The environment
    variable ``SMH_FLOAT64=0`` does the same for a whole process.

    Examples
    --------
    >>> with without_float64():
    ...     float64_allowed()
    False
    """
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def no_float64(kernels: Kernels) -> Mode:
    """Return the mode of a backend in which it does without float64, on the kernels that it then has."""
    return Mode("no-float64", "float32 and int32 only, as on Metal and TPUs", around=without_float64(), kernels=kernels)
