"""The backend itself: arrays in and out, weights and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from smh.backends.protocol import EAGER, Backend, Function, Mode
from smh.backends.tensorflow import derivatives
from smh.backends.tensorflow.derivatives import KERNELS, as_written
from smh.backends.tensorflow.modes import MODES
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError, VariableError

_Maker = Callable[[Mode, Plan, tuple[str, ...]], Function]


class TensorFlowBackend(Backend):
    """Arrays are ``tf.Tensor``; variables may also be ``tf.Variable``. Gradients come from ``tf.GradientTape``."""

    name = "tensorflow"
    kernels = KERNELS

    def asarray(self, x: Any, device: Any = None) -> tf.Tensor:
        """Return ``x`` as a tensor of its own, by default on TensorFlow's default device."""
        with tf.device(self._device(device)):
            return tf.identity(x if tf.is_tensor(x) else tf.constant(np.array(x, order="C")))

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        return np.asarray(x.numpy() if tf.is_tensor(x) else x)

    @as_written
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, through which gradients flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        flat = _flat(plan, variables)
        weights = self._call(_build, plan, chosen)(*flat) if chosen else ()
        return dict(zip(chosen, weights, strict=True))

    @as_written
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return what a ``tf.GradientTape`` gives for the weights that have cotangents."""
        flat = _flat(plan, variables)
        given = _cotangents(plan, cotangents)
        if not given:
            return derivatives.without_cotangents(plan, flat)
        results = self._call(_gradients, plan, tuple(given))(*flat, *given.values())
        return dict(zip(plan.variable_shapes, results, strict=True))

    @as_written
    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index."""
        return generate.indices(KERNELS, plan, tf.range(start, stop, dtype=tf.int64))

    def devices(self) -> list[str]:
        """Return the logical devices, as ``"GPU:0"`` or ``"CPU:0"``, accelerators first."""
        names = [device.name.rpartition("device:")[2] for device in tf.config.list_logical_devices()]
        return sorted(names, key=lambda name: name.startswith("CPU"))

    def modes(self) -> tuple[Mode, ...]:
        """Return graphs, compilers and transforms."""
        return (EAGER, *MODES)

    def _device(self, device: Any) -> str:
        """Return the name of a device, or say which there are."""
        known = self.devices()
        if device is None:
            return known[0]
        name = str(getattr(device, "name", device)).rpartition("device:")[2].lstrip("/").upper()
        name = name if ":" in name else f"{name}:0"
        if name not in known:
            raise BackendError(f"the tensorflow backend has the devices {known} here; got {device!r}")
        return name

    def _call(self, make: _Maker, plan: Plan, names: tuple[str, ...]) -> Function:
        """Return a function of tensors in this backend's mode."""
        if self.mode is EAGER:  # nothing to keep
            return make(EAGER, plan, names)
        return _kept(make, self.mode, plan, names)


def _build(mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return the function from all variables to the named weights."""
    return mode.within(functools.partial(derivatives.build, plan, names))


def _gradients(mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return the function from all variables and the cotangents of the named weights to the variables' gradients."""
    build = _build(mode, plan, names)

    def gradients(*tensors: Array) -> Any:
        flat, cotangents = tensors[: -len(names)], tensors[-len(names) :]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(flat)
            weights = build(*flat)
        return tape.gradient(weights, flat, [tf.convert_to_tensor(x) for x in cotangents])

    return gradients


@functools.lru_cache(maxsize=64)
def _kept(make: _Maker, mode: Mode, plan: Plan, names: tuple[str, ...]) -> Function:
    """Return a function in a mode, which may have compiled it."""
    return mode.around(make(mode, plan, names))


def _flat(plan: Plan, variables: Mapping[str, Array]) -> list[Array]:
    """Return the variables in the plan's order as tensors, or say what does not fit."""
    shapes = plan.variable_shapes
    tensors = {name: _tensor(f"variable {name!r}", x, shapes.get(name)) for name, x in variables.items()}
    generate.check_variables(KERNELS, plan, tensors)
    return [tensors[name] for name in shapes]


def _cotangents(plan: Plan, cotangents: Mapping[str, Array]) -> dict[str, Array]:
    """Return cotangents as tensors, or say what does not fit."""
    shapes = {tensor.name: tensor.viewed_shape for tensor in plan.tensors}
    tensors = {name: _tensor(f"the cotangent of {name!r}", x, shapes.get(name)) for name, x in cotangents.items()}
    generate.check_cotangents(KERNELS, plan, tensors)
    return tensors


def _tensor(what: str, x: Array, shape: tuple[int, ...] | None) -> tf.Tensor:
    """Return a tensor or variable as a tensor; where a graph does not know the shape, it checks it when it runs."""
    if not isinstance(x, tf.Tensor | tf.Variable) and not _is_keras_variable(x):
        raise VariableError(f"{what} must be a tf.Tensor, float32; got {type(x).__name__}")
    x = tf.convert_to_tensor(x)
    return x if shape is None or x.shape.is_fully_defined() else tf.ensure_shape(x, shape)


def _is_keras_variable(x: Any) -> bool:
    return tf.is_tensor(x) and isinstance(getattr(x, "value", None), tf.Variable)


backend = TensorFlowBackend()
