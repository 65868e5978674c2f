"""The NumPy backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from smh.api import Api
from smh.backends.numpy_kernels import NumpyKernels
from smh.backends.protocol import Backend
from smh.core import generate
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import BackendError

__all__ = ["Plan", "backend", "digest", "initialize", "load", "materialize", "save", "vjp"]


class NumpyBackend(Backend):
    """Arrays are ``numpy.ndarray``, and gradients come from :func:`smh.vjp`."""

    name = "numpy"
    kernels: Kernels = NumpyKernels()

    def asarray(self, x: Any, device: Any = None) -> np.ndarray:
        """Return a copy of ``x`` as an array."""
        if device is not None and not (isinstance(device, str) and device == "cpu"):
            raise BackendError(f"the numpy backend has only the device 'cpu'; got {device!r}")
        return np.array(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return ``x``."""
        return np.asarray(x)

    @np.errstate(all="ignore")
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, contiguous in memory: some writers of files misread other arrays."""
        weights = generate.materialize(self.kernels, plan, variables, names)
        return {name: np.asarray(w, order="C") for name, w in weights.items()}

    @np.errstate(all="ignore")
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return gradients, as arrays also where NumPy returns scalars."""
        return {name: np.asarray(x) for name, x in generate.vjp(self.kernels, plan, variables, cotangents).items()}

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index."""
        return generate.indices(self.kernels, plan, np.arange(start, stop, dtype=np.int64))

    def devices(self) -> list[str]:
        """Return the one device."""
        return ["cpu"]


backend = NumpyBackend()
_api: Api[Any, Any] = Api(lambda: backend)
initialize = _api.initialize
materialize = _api.materialize
vjp = _api.vjp
digest = _api.digest
save = _api.save
load = _api.load
