"""A backend for arrays of array-api-strict, which know the array API and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import array_api_strict as xp
import numpy as np

from smh.api import Api
from smh.backends.protocol import Backend
from smh.core import generate
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import BackendError

KERNELS = Kernels(xp)


class ToyBackend(Backend):
    """Six methods; the core does the rest."""

    name = "toy"
    kernels = KERNELS

    def asarray(self, x: Any, device: Any = None) -> Array:
        """Return a copy of ``x``."""
        if device not in (None, "CPU_DEVICE"):
            raise BackendError(f"the toy backend has the device 'CPU_DEVICE' only; got {device!r}")
        return xp.asarray(np.array(x, order="C"))

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x``."""
        return np.asarray(x)

    @np.errstate(all="ignore")
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights."""
        return generate.materialize(KERNELS, plan, variables, names)

    @np.errstate(all="ignore")
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return gradients."""
        return generate.vjp(KERNELS, plan, variables, cotangents)

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index."""
        return generate.indices(KERNELS, plan, xp.arange(start, stop, dtype=xp.int64))

    def devices(self) -> list[str]:
        """Return the one device."""
        return ["CPU_DEVICE"]


backend = ToyBackend()
materialize = Api(lambda: backend).materialize
