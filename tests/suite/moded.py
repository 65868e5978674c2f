"""The NumPy backend in other modes than its own."""

from __future__ import annotations

import os
import signal
from typing import Any

from smh.backends.numpy import NumpyBackend
from smh.backends.protocol import Mode


class Moded(NumpyBackend):
    """A mode that works, one that builds other weights, one that is missing."""

    def modes(self) -> tuple[Mode, ...]:
        """Return modes of which only the names are read."""
        never = Mode("never", "not at all", missing="no such thing here")
        return (Mode("plain", "as it is"), Mode("negated", "of the other sign"), never)

    def materialize(self, *arguments: Any) -> dict[str, Any]:
        """Return weights, in one mode the negative ones."""
        weights = super().materialize(*arguments)
        return {name: -w for name, w in weights.items()} if self.mode.name == "negated" else weights


class Deadly(NumpyBackend):
    """A backend that ends its process, as the system does where memory runs out."""

    def materialize(self, *_: Any) -> dict[str, Any]:
        """Return nothing, ever."""
        os.kill(os.getpid(), signal.SIGKILL)
        return {}
