"""The backend itself: arrays in and out, weights and gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smh.backends.jax import derivatives
from smh.backends.jax.compiler import check_compiler
from smh.backends.jax.derivatives import KERNELS, Arrays
from smh.backends.jax.modes import modes
from smh.backends.protocol import EAGER, Backend, Function, Mode
from smh.core import generate
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
        """Return ``x`` as an array of its own, by default where JAX places arrays."""
        place = self._place(device)
        with jax.enable_x64(True):
            own = jnp.array(x, copy=True) if isinstance(x, jax.Array) else np.array(x, order="C")
            return jax.device_put(own, place)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        return np.array(x)

    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, through which gradients flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        flat = _flat(plan, variables)
        weights = _weights(self.mode, plan, chosen)(flat) if chosen else ()
        return dict(zip(chosen, weights, strict=True))

    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return what ``jax.vjp`` gives for the weights that have cotangents."""
        flat = _flat(plan, variables)
        generate.check_cotangents(KERNELS, plan, cotangents)
        if cotangents:
            gradients = _gradients(self.mode, plan, tuple(cotangents))(flat, tuple(cotangents.values()))
        else:
            gradients = derivatives.without_cotangents(plan, flat)
        return dict(zip(plan.variable_shapes, gradients, strict=True))

    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index, on JAX's default device."""
        with jax.enable_x64(True):
            found = self.mode.around(functools.partial(derivatives.indices, plan, stop - start))(jnp.int64(start))
        return dict(found)

    def devices(self) -> list[str]:
        """Return the devices of the default platform, and those of the host."""
        return list(dict.fromkeys(map(_device_name, _local_devices())))

    def on_kernels(self, fn: Function, *args: Any) -> Any:
        """Return ``fn(kernels, *args)``, in 64 bits."""
        with jax.enable_x64(True):
            return fn(self.kernels, *args)

    def modes(self) -> tuple[Mode, ...]:
        """Return transformations, settings and placements."""
        return (dataclasses.replace(EAGER, slowness=12), *modes())  # every call is a compiled program

    def _place(self, device: Any) -> Any:
        """Return what JAX takes as a device."""
        if device is None or isinstance(device, (jax.Device, jax.sharding.Sharding)):
            return device
        platform, _, number = str(device).partition(":")
        try:
            devices = jax.local_devices(backend=platform) if platform else []
            return {str(i): found for i, found in enumerate(devices)}[number or "0"]
        except (RuntimeError, KeyError) as error:
            raise BackendError(f"the jax backend has the devices {self.devices()} here; got {device!r}") from error


@functools.lru_cache(maxsize=256)
def _weights(mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return the function from all variables to the named weights."""
    return mode.around(mode.within(functools.partial(derivatives.build, plan, names)))


@functools.lru_cache(maxsize=256)
def _gradients(mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return the function from all variables, and cotangents of the named weights, to all gradients."""
    inner = mode.within(functools.partial(derivatives.build, plan, names))

    def gradients(variables: Arrays, cotangents: Arrays) -> Any:
        weights, pull = jax.vjp(inner, variables)
        (result,) = pull(tuple(map(derivatives.as_cotangent, cotangents, weights)))
        return result

    return mode.around(jax.jit(gradients))  # the compiler sees that the weights themselves are not needed


def _local_devices() -> list[jax.Device]:
    """Return the default device if one is set, those of the default platform, and those of the host."""
    try:
        host = jax.local_devices(backend="cpu")
    except RuntimeError:  # JAX was told to start without
        host = []
    default = jax.config.jax_default_device
    return [*([default] if isinstance(default, jax.Device) else []), *jax.local_devices(), *host]


def _device_name(device: jax.Device) -> str:
    """Return the platform and the device's place in it."""
    return f"{device.platform}:{jax.local_devices(backend=device.platform).index(device)}"


def _flat(plan: Plan, variables: Mapping[str, Array]) -> Arrays:
    """Return the variables in the plan's order, or say what does not fit."""
    check_compiler()
    for name, x in variables.items():
        if not isinstance(x, jax.Array):
            raise VariableError(f"variable {name!r} must be a jax.Array, float32; got {type(x).__name__}")
    generate.check_variables(KERNELS, plan, variables)
    return tuple(variables[name] for name in plan.variable_shapes)


backend = JaxBackend()
