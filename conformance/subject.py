"""What a law is checked on: a backend in one mode, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.bits import Tally
from conformance.cases import Case
from smh.api import Api
from smh.backends.protocol import Backend
from smh.core.plan import Plan


@dataclass(frozen=True)
class Subject:
    """A backend in one mode, on one device.

    `source` is a name that :func:`conformance.fingerprint.find` knows, by which another process gets the same
    backend.
    """

    backend: Backend
    device: str
    source: str

    @property
    def api(self) -> Api:
        """The public functions of arrays, for this backend in its mode."""
        return Api(lambda: self.backend)

    def put(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return arrays of the backend on the device."""
        return {name: self.backend.asarray(x, self.device) for name, x in arrays.items()}

    def take(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return NumPy arrays."""
        return {name: self.backend.to_numpy(x) for name, x in arrays.items()}

    def weights(self, plan: Plan, variables: Mapping[str, Any], names: Any = None) -> dict[str, np.ndarray]:
        """Build weights, from NumPy to NumPy."""
        return self.take(self.backend.materialize(plan, self.put(variables), names))

    def gradients(
        self, plan: Plan, variables: Mapping[str, Any], cotangents: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Compute gradients, from NumPy to NumPy."""
        return self.take(self.backend.vjp(plan, self.put(variables), self.put(cotangents)))


CaseLaw = Callable[[Subject, Case, Tally], None]
"""Checked on golden vectors and on drawn plans."""
OwnLaw = Callable[[Subject, Tally], None]
"""Brings its own data."""
