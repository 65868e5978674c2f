"""The backend itself: arrays in and out, weights and gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smh.backends.compilers import TERMS, check_rest, rest
from smh.backends.jax import derivatives
from smh.backends.jax.derivatives import Arrays
from smh.backends.jax.modes import modes
from smh.backends.jax.narrow import KERNELS
from smh.backends.protocol import Backend, Function, Mode
from smh.core.generate import check_cotangents, check_variables
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError, VariableError


class JaxBackend(Backend):
    """Arrays are ``jax.Array``; gradients come from JAX, which sees materialization as one function.

    Every call is one compiled program, kept per plan and names. The setting ``jax_enable_x64`` does not matter, and
    stays as it is.
    """

    name = "jax"
    kernels = KERNELS

    def asarray(self, x: Any, device: Any = None) -> jax.Array:
        """Return a copy of ``x`` as an array, by default where JAX places arrays."""
        if device is not None and not isinstance(device, (jax.Device, jax.sharding.Sharding)):
            device = self._named(device)
        with jax.enable_x64(True):
            own = jnp.array(x, copy=True) if isinstance(x, jax.Array) else np.array(x, order="C")
            return jax.device_put(own, device)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        if isinstance(x, jax.ShapeDtypeStruct):
            raise VariableError(f"abstract arrays have no values until smh.load fills them; got {x}")
        if isinstance(x, jax.core.Tracer):
            raise VariableError(
                "this needs values, and a traced array has none: call it outside of jax.jit, jax.grad and the like; "
                f"got {x.aval}"
            )
        return np.array(x)

    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None, *, fast: bool = False
    ) -> dict[str, Array]:
        """Return weights, through which gradients, exact or fast, flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        _check(plan, variables)
        weights = _functions(self.mode, plan, chosen, fast)[0](dict(variables)) if chosen else {}
        return {name: weights[name] for name in chosen}

    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return the result of ``jax.vjp`` for the weights that have cotangents."""
        _check(plan, variables)
        check_cotangents(KERNELS, plan, cotangents)
        gradients = _functions(self.mode, plan, tuple(cotangents))[1](dict(variables), dict(cotangents))
        return {name: gradients[name] for name in plan.variable_shapes}

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index, on JAX's default device."""
        indices = self.mode.around(functools.partial(derivatives.indices, plan, stop - start))
        with jax.enable_x64(True):
            return dict(indices(jnp.int64(start)))

    def devices(self) -> list[str]:
        """Return the devices of the default platform, and those of the host."""
        default, found = jax.config.jax_default_device, jax.local_devices()
        if isinstance(default, jax.Device):
            found.insert(0, default)
        with suppress(RuntimeError):  # where JAX was told to start without the host
            found += jax.local_devices(backend="cpu")
        return list(dict.fromkeys(f"{x.platform}:{jax.local_devices(backend=x.platform).index(x)}" for x in found))

    def on_kernels(self, fn: Function, *args: Any) -> Any:
        """Return ``fn(kernels, *args)``, in 64 bits, or without where the kernels are."""
        with jax.enable_x64(self.mode.kernels is None):
            return super().on_kernels(fn, *args)

    def modes(self) -> tuple[Mode, ...]:
        """Return transformations, settings and placements."""
        return modes()

    def _named(self, device: Any) -> Any:
        """Return the device of JAX that a name such as ``"cpu:1"`` means."""
        platform, _, number = str(device).partition(":")
        try:
            devices = jax.local_devices(backend=platform) if platform else []
            return {str(i): found for i, found in enumerate(devices)}[number or "0"]
        except (RuntimeError, KeyError) as error:
            raise BackendError(f"the jax backend has the devices {self.devices()} here; got {device!r}") from error


@functools.lru_cache(maxsize=256)
def _functions(mode: Mode, plan: Plan, names: tuple[str, ...], fast: bool = False) -> tuple[Function, Function]:
    """Return the functions from all variables to the named weights, and from these cotangents too to all gradients."""
    build = mode.within(functools.partial(derivatives.build, plan, names, fast=fast))

    def gradients(variables: Arrays, cotangents: Arrays) -> Any:
        if not names:
            return derivatives.without_cotangents(plan, variables)
        weights, pull = jax.vjp(build, variables)
        return pull({name: derivatives.as_cotangent(g, weights[name]) for name, g in cotangents.items()})[0]

    return mode.around(build), mode.around(jax.jit(gradients))  # which sees that the weights themselves are not needed


def _check(plan: Plan, variables: Mapping[str, Array]) -> None:
    """Raise unless the variables are those of the plan, and compiled programs compute the right bits."""
    _check_compiler()
    for name, x in variables.items():
        if not isinstance(x, jax.Array):
            raise VariableError(f"variable {name!r} must be a jax.Array, float32; got {type(x).__name__}")
    check_variables(KERNELS, plan, variables)


@functools.cache
def _check_compiler() -> None:
    """Raise :class:`~smh.BackendError` where XLA reorders sums of floating-point numbers, which a flag lets it do.

    Compiled programs on the CPU would not have the bits of the specification. A compiled sum tells, once per process.
    """
    if jax.default_backend() != "cpu":
        return
    with jax.enable_x64(True), jax.disable_jit(False), jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
        check_rest(lambda: jax.jit(rest)(np.asarray(TERMS)))


backend = JaxBackend()
