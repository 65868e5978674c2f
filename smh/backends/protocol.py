"""What a backend is: at most ten methods, each with the laws that the conformance suite checks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import BackendError, near_names

Function = Callable[..., Any]
"""From arrays, or dicts of arrays, of a backend to the same."""


@dataclass(frozen=True)
class Mode:
    """A way in which people run a backend: eagerly, traced, compiled, transformed, in a context.

    Modes are what a backend says of itself; the conformance suite runs every law in each of them.
    """

    name: str
    about: str
    """One line: what is done."""
    around: Callable[[Function], Function] = lambda fn: fn
    """Wraps a whole call, as ``jax.jit`` or a context: from a function of arrays to one with the same results."""
    within: Callable[[Function], Function] = lambda fn: fn
    """Wraps the building of weights *inside* of what is differentiated, as ``torch.compile`` or ``jax.checkpoint``."""
    slowness: int = 4
    """How many times fewer cases the conformance suite runs than eagerly; more for modes that compile every plan."""
    missing: str = ""
    """Why the mode cannot run here, where it cannot."""
    kernels: Kernels | None = None
    """The kernels that the backend has in this mode, if they are others."""


EAGER = Mode("eager", "calls as they are", slowness=1)


class Backend(ABC):
    """A framework's way to run the core.

    Laws for every method: no argument is changed; equal arguments give equal bits, in whatever process, thread count or
    device; results are arrays of the backend, float32 unless said otherwise, on the device of the variables.
    """

    name: ClassVar[str]
    mode: Mode = EAGER
    kernels: Kernels | None = None
    """The kernels on which this backend runs the core, if the conformance suite may check each of them by itself.

    Law: every method gives the bits of the default, :class:`smh.core.kernels.Kernels`.
    """

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

    def on_kernels(self, fn: Function, *args: Any) -> Any:
        """Return ``fn(kernels, *args)``, run as this backend runs its core.

        A backend whose core needs a setting, such as 64-bit types in JAX, switches it on around the call.

        Raises
        ------
        BackendError
            If the backend does not show its kernels.
        """
        if self.kernels is None:
            raise BackendError(f"the {self.name} backend does not show its kernels: it has no attribute 'kernels'")
        return fn(self.mode.kernels or self.kernels, *args)

    def modes(self) -> tuple[Mode, ...]:
        """Return the ways in which people run this backend, also those that cannot run here; eager comes first.

        Law: no mode changes a bit.
        """
        return (EAGER,)

    def in_mode(self, name: str) -> Self:
        """Return this backend with all its functions running in a mode.

        Raises
        ------
        BackendError
            If the backend has no such mode, or the mode cannot run here.
        """
        modes = {mode.name: mode for mode in self.modes()}
        if name not in modes:
            raise BackendError(f"the {self.name} backend has no mode {name!r}: {near_names(name, modes)}")
        if modes[name].missing:
            raise BackendError(f"mode {name!r} of the {self.name} backend cannot run here: {modes[name].missing}")
        other = copy.copy(self)
        other.mode = modes[name]
        return other
