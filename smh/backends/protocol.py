"""The protocol of backends: at most ten methods, each with laws that the conformance suite checks."""

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
"""A function from arrays, or dicts of arrays, of a backend to arrays or dicts of arrays."""


@dataclass(frozen=True)
class Mode:
    """A way to run a backend: eagerly, traced, compiled, transformed, in a context.

    A backend declares its modes, and the conformance suite runs every law in each of them.
    """

    name: str
    about: str
    """A description of one line."""
    around: Callable[[Function], Function] = lambda fn: fn
    """Wraps a whole call, like ``jax.jit`` or a context: maps a function of arrays to one with equal results."""
    within: Callable[[Function], Function] = lambda fn: fn
    """Wraps the build of weights *inside* the differentiated function, like ``torch.compile`` or ``jax.checkpoint``."""
    slowness: int = 4
    """The factor by which the conformance suite runs fewer cases than eagerly; larger if each plan is compiled."""
    missing: str = ""
    """The reason why the mode cannot run here, or an empty string."""
    kernels: Kernels | None = None
    """The kernels of the backend in this mode, if they differ."""


EAGER = Mode("eager", "calls as they are", slowness=1)


class Backend(ABC):
    """A framework's way to run the core.

    Laws for every method: arguments are not changed; equal arguments give equal bits, for every process, number of
    threads and device; results are arrays of the backend, float32 unless stated otherwise, on the device of the
    variables.
    """

    name: ClassVar[str]
    mode: Mode = EAGER
    kernels: Kernels | None = None
    """The kernels on which this backend runs the core, if the conformance suite may check each of them separately.

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
        """Return gradients, as :func:`smh.vjp` describes, computed by the framework's usual differentiation.

        Law: the bits of the specification, one gradient for every variable, zeros for variables without influence.
        """

    @abstractmethod
    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index of virtual weights ``start`` to ``stop``, int64, computed by the framework.

        Law: equal integers on every backend; a slice equals the same slice of the whole range.
        """

    @abstractmethod
    def devices(self) -> list[str]:
        """Return the devices that ``asarray`` accepts, the default first."""

    def on_kernels(self, fn: Function, *args: Any) -> Any:
        """Return ``fn(kernels, *args)``, run in the settings of the core of this backend.

        A backend whose core needs a setting, such as 64-bit types in JAX, enables it during the call.

        Raises
        ------
        BackendError
            If the backend does not expose its kernels.
        """
        if self.kernels is None:
            raise BackendError(f"the {self.name} backend does not expose its kernels: it has no attribute 'kernels'")
        return fn(self.mode.kernels or self.kernels, *args)

    def modes(self) -> tuple[Mode, ...]:
        """Return the modes of this backend, eager first, including modes that cannot run here.

        Law: no mode changes a bit.
        """
        return (EAGER,)

    def in_mode(self, name: str) -> Self:
        """Return this backend with all functions running in a mode.

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
