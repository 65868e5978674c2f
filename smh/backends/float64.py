"""The choice between kernels with and without float64."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from smh.backends.protocol import Mode
from smh.backends.switch import Switch
from smh.core.kernels import Kernels
from smh.errors import BackendError

VARIABLE = "SMH_FLOAT64"


def _of_environment() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise BackendError(f"{VARIABLE} must be 0 (no float64) or 1; got {value!r}")
    return value == "1"


_ALLOWED = Switch(_of_environment())


def float64_allowed() -> bool:
    """Return whether the core may use float64: true unless SMH_FLOAT64 is 0 or within :func:`without_float64`."""
    return _ALLOWED.on


@contextmanager
def without_float64() -> Iterator[None]:
    """Run the core without float64 within the block, in all threads. No bit changes.

    This is faster on devices with slow float64, such as consumer GPUs. Functions that are already compiled do not
    change. The environment variable ``SMH_FLOAT64=0`` does the same for a whole process.

    Examples
    --------
    >>> with without_float64():
    ...     float64_allowed()
    False
    """
    with _ALLOWED.off():
        yield


def no_float64(kernels: Kernels) -> Mode:
    """Return the mode of a backend without float64, with the kernels of that mode."""
    return Mode("no-float64", "float32 and int32 only, as on Metal and TPUs", around=without_float64(), kernels=kernels)
