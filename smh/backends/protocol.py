"""What a backend is: at most ten methods, each with the laws that the conformance suite checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from smh.ops import Array
from smh.plan import Plan


class Backend(ABC):
    """A framework's way to run the core.

    Laws for every method: no argument is changed; equal arguments give equal bits, in whatever process, thread count or
    device; results are arrays of the backend, float32 unless said otherwise, on the device of the variables.
    """

    name: ClassVar[str]

    @abstractmethod
    def asarray(self, x: Any, device: Any = None) -> Array:
        """Return an array of the backend with the values of ``x``.

        Law: ``to_numpy(asarray(x, device))`` has the bits and dtype of ``x``, on every device.
        """

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray:
        """Return a NumPy array on the host, of the same dtype and bits."""

    @abstractmethod
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, as :func:`smh.materialize` describes.

        Laws: the bits of the specification; ``materialize(plan, variables, [name])[name]`` equals
        ``materialize(plan, variables)[name]``, bit for bit.
        """

    @abstractmethod
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return gradients, as :func:`smh.vjp` describes, by the way in which the framework's users get theirs.

        Law: the bits of the specification, one gradient for every variable, zeros where nothing flows.
        """

    @abstractmethod
    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index of virtual weights ``start`` to ``stop``, int64, computed by the framework.

        Law: the same integers on every backend, and for every slice those of the whole range.
        """

    @abstractmethod
    def devices(self) -> list[str]:
        """Return the devices that ``asarray`` takes, the default first."""
