"""The NumPy backend: the reference in everyday use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from smh.v2.core import generate
from smh.v2.api import Api
from smh.v2.backends.protocol import Backend
from smh.v2.errors import BackendError
from smh.v2.core.kernels import Array, InPlaceOps
from smh.v2.core.plan import Plan

__all__ = ["Plan", "backend", "digest", "initialize", "load", "materialize", "save", "vjp"]


class NumpyOps(InPlaceOps):
    """NumPy, whose ``add.at`` adds segments.

    Small weights that are built at once are parts of one array, for its kernels do not ask where an array begins, and
    from 4 MB on it gets large pages from the system, which make new memory fast.
    """

    together = 1 << 24
    apart = False

    def __init__(self) -> None:
        super().__init__(np)

    @property
    def fuses(self) -> bool:
        """Return False: every operation is done as it is written."""
        return False

    def device(self, x: Array) -> str:
        """Return ``"cpu"``: there is no other."""
        return "cpu"

    def is_false(self, flag: Array) -> bool:
        """Look at the flag: its value is always at hand."""
        return not flag

    def add_segments(self, total: Array, x: Array, segments: Array) -> Array:
        """Add element by element."""
        np.add.at(total, segments, x)
        return total


class NumpyBackend(Backend):
    """Arrays are ``numpy.ndarray``; gradients come from :func:`smh.vjp`."""

    name = "numpy"

    def __init__(self) -> None:
        self._ops = NumpyOps()

    def asarray(self, x: Any, device: Any = None) -> np.ndarray:
        """Return ``x`` as an array of its own."""
        if device not in (None, "cpu"):
            raise BackendError(f"the numpy backend has the device 'cpu' only; got {device!r}")
        return np.array(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return ``x``."""
        return np.asarray(x)

    @np.errstate(all="ignore")
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, in memory as they are indexed: writers of files take other arrays for what they are not."""
        weights = generate.materialize(self._ops, plan, variables, names)
        return {name: np.asarray(w, order="C") for name, w in weights.items()}

    @np.errstate(all="ignore")
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return gradients, as arrays also where NumPy makes scalars of them."""
        return {name: np.asarray(x) for name, x in generate.vjp(self._ops, plan, variables, cotangents).items()}

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index."""
        return generate.indices(self._ops, plan, np.arange(start, stop, dtype=np.int64))

    def devices(self) -> list[str]:
        """Return the one device."""
        return ["cpu"]


backend = NumpyBackend()
_api = Api(lambda: backend)
initialize = _api.initialize
materialize = _api.materialize
vjp = _api.vjp
digest = _api.digest
save = _api.save
load = _api.load
