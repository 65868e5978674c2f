"""The backend itself: arrays in and out, weights and gradients, and the ways in which people run TensorFlow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from smh.backends.compilers import TERMS, check_rest, rest
from smh.backends.float64 import no_float64
from smh.backends.protocol import EAGER, Backend, Function, Mode
from smh.backends.tensorflow import derivatives
from smh.backends.tensorflow.derivatives import as_written
from smh.backends.tensorflow.narrow import KERNELS, NARROW
from smh.core import generate
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError, VariableError


class TensorFlowBackend(Backend):
    """Arrays are ``tf.Tensor``; variables may also be ``tf.Variable``. Gradients come from ``tf.GradientTape``."""

    name = "tensorflow"
    kernels = KERNELS

    def asarray(self, x: Any, device: Any = None) -> tf.Tensor:
        """Return a copy of ``x`` as a tensor, by default on TensorFlow's default device."""
        with tf.device(self._device(device)):
            return tf.identity(x if tf.is_tensor(x) else tf.constant(np.array(x, order="C")))

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        try:
            return np.asarray(x.numpy() if tf.is_tensor(x) else x)
        except (AttributeError, NotImplementedError) as error:
            what = "this needs values, and graphs have none while they are traced: call it outside of tf.function"
            raise VariableError(f"{what}; got {x}") from error

    @as_written
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, through which gradients flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        flat = _flat(plan, variables)
        weights = self._function(plan, chosen)(*flat) if chosen else ()
        return dict(zip(chosen, weights, strict=True))

    @as_written
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradients of a ``tf.GradientTape`` for the weights that have cotangents."""
        flat = _flat(plan, variables)
        given = _tensors("the cotangent of", cotangents, {tensor.name: tensor.viewed_shape for tensor in plan.tensors})
        generate.check_cotangents(KERNELS, plan, given)
        if given:
            results = self._function(plan, tuple(given), pull=True)(*flat, *given.values())
        else:
            results = derivatives.gradients(plan, (), *flat)
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
        return (EAGER, *_MODES)

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

    def _function(self, plan: Plan, names: tuple[str, ...], pull: bool = False) -> Function:
        """Return a function of tensors in this backend's mode."""
        make = _function.__wrapped__ if self.mode is EAGER else _function  # eagerly there is nothing to keep
        return make(self.mode, plan, names, pull)


@functools.lru_cache(maxsize=64)
def _function(mode: Mode, plan: Plan, names: tuple[str, ...], pull: bool) -> Function:
    """Return the function from all variables to the named weights, in a mode, which may compile it.

    With ``pull``, that from all variables and the cotangents of these weights to the gradients of the variables.
    """
    build = mode.within(functools.partial(derivatives.build, plan, names))

    def gradients(*tensors: Array) -> Any:
        flat, cotangents = tensors[: -len(names)], tensors[-len(names) :]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(flat)
            weights = build(*flat)
        return tape.gradient(weights, flat, [tf.convert_to_tensor(x) for x in cotangents])

    return mode.around(gradients if pull else build)


@functools.cache
def _check_compiler() -> None:
    """Raise :class:`~smh.BackendError` where XLA reorders sums, which flags let it do; once per process."""
    if os.environ.get("XLA_FLAGS"):
        with tf.init_scope(), tf.device("CPU:0"):
            check_rest(lambda: _XLA(rest)(tf.constant(TERMS, tf.float64)))


def _flat(plan: Plan, variables: Mapping[str, Array]) -> list[Array]:
    """Return the variables in the plan's order as tensors, or raise if one does not fit."""
    _check_compiler()
    tensors = _tensors("variable", variables, plan.variable_shapes)
    generate.check_variables(KERNELS, plan, tensors)
    return [tensors[name] for name in plan.variable_shapes]


def _tensors(what: str, given: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return tensors and variables as tensors; where a graph does not know a shape, it checks it when it runs."""
    found = {}
    for name, x in given.items():
        of_keras = tf.is_tensor(x) and isinstance(getattr(x, "value", None), tf.Variable)
        if not isinstance(x, tf.Tensor | tf.Variable) and not of_keras:
            raise VariableError(f"{what} {name!r} must be a tf.Tensor, float32; got {type(x).__name__}")
        x = tf.convert_to_tensor(x)
        known = x.shape.is_fully_defined() or name not in shapes
        found[name] = x if known else tf.ensure_shape(x, shapes[name])
    return found


def _traced(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator that makes graphs. It wraps the function, or TensorFlow would warn of retracing."""
    return lambda fn: tf.function(functools.partial(fn), autograph=False, **options)


def _of_variables(fn: Function) -> Function:
    return lambda *args: fn(*(tf.Variable(x) for x in args))


def _vectorized(fn: Function) -> Function:
    """Run a batch of one: gradients, where there are any, are taken inside."""

    def run(*args: Any) -> Any:
        batch = tf.vectorized_map(lambda args: fn(*args), tuple(x[None] for x in args))
        return tf.nest.map_structure(lambda x: x[0], batch)

    return _traced()(run)


@contextmanager
def _other_precision() -> Iterator[None]:
    """Switch TF32 for float32 products, which NVIDIA GPUs have, off where it is on, on where it is off."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(not before)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


_XLA = _traced(jit_compile=True)

_MODES = (
    Mode("precision", "TF32 switched off, or on where it was off", around=_other_precision()),
    Mode("function", "a whole call in tf.function", around=_traced(), slowness=8),
    Mode("function-within", "weights built by a tf.function", within=_traced(), slowness=8),
    Mode("xla", "a whole call in tf.function(jit_compile=True)", around=_XLA, slowness=40),
    Mode("xla-within", "weights built by a tf.function(jit_compile=True)", within=_XLA, slowness=40),
    no_float64(NARROW),
    Mode("recompute", "tf.recompute_grad", within=tf.recompute_grad),
    Mode("variables", "variables are tf.Variable", around=_of_variables),
    Mode("vectorized", "tf.vectorized_map of a whole call, in tf.function", around=_vectorized, slowness=8),
)

backend = TensorFlowBackend()
