"""The TensorFlow backend: weights as differentiable tensors, eagerly, in graphs, and compiled by XLA."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from smh import generate
from smh.api import Api
from smh.backends.protocol import EAGER, Backend, Function, Mode
from smh.backends.tensorflow import derivatives, models
from smh.backends.tensorflow.derivatives import OPS
from smh.backends.tensorflow.models import compress, fit, plan_of, report
from smh.backends.tensorflow.modes import MODES
from smh.errors import BackendError, PlanError, VariableError
from smh.ops import Array
from smh.plan import Plan

__all__ = [
    "Plan",
    "backend",
    "compress",
    "digest",
    "fit",
    "initialize",
    "load",
    "materialize",
    "plan_of",
    "report",
    "save",
    "vjp",
]

_Maker = Callable[[Mode, Plan, tuple[str, ...]], Function]
_as_written = tf.autograph.experimental.do_not_convert
"""A user's tf.function leaves what it decorates alone: the core's loops and branches are of Python's values."""


class TensorFlowBackend(Backend):
    """Arrays are ``tf.Tensor``; variables may also be ``tf.Variable``. Gradients come from ``tf.GradientTape``."""

    name = "tensorflow"

    def asarray(self, x: Any, device: Any = None) -> tf.Tensor:
        """Return ``x`` as a tensor of its own, by default on TensorFlow's default device."""
        with tf.device(self._device(device)):
            return tf.identity(x if tf.is_tensor(x) else tf.constant(np.array(x, order="C")))

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return the values of ``x`` on the host."""
        return np.asarray(x.numpy() if tf.is_tensor(x) else x)

    @_as_written
    def materialize(
        self, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return weights, through which gradients flow to the variables."""
        chosen = tuple(tensor.name for tensor in plan.select(names))
        flat = _flat(plan, variables)
        weights = self._call(_build, plan, chosen)(*flat) if chosen else ()
        return dict(zip(chosen, weights, strict=True))

    @_as_written
    def vjp(self, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Return what a ``tf.GradientTape`` gives for the weights that have cotangents."""
        flat = _flat(plan, variables)
        given = _cotangents(plan, cotangents)
        if not given:
            return derivatives.without_cotangents(plan, flat)
        results = self._call(_gradients, plan, tuple(given))(*flat, *given.values())
        return dict(zip(plan.variable_shapes, results, strict=True))

    @_as_written
    def indices(self, plan: Plan, start: int, stop: int) -> dict[str, Array]:
        """Return the hash index."""
        return generate.indices(OPS, plan, tf.range(start, stop, dtype=tf.int64))

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
    generate.check_variables(OPS, plan, tensors)
    return [tensors[name] for name in shapes]


def _cotangents(plan: Plan, cotangents: Mapping[str, Array]) -> dict[str, Array]:
    """Return cotangents as tensors, or say what does not fit."""
    shapes = {tensor.name: tensor.viewed_shape for tensor in plan.tensors}
    tensors = {name: _tensor(f"the cotangent of {name!r}", x, shapes.get(name)) for name, x in cotangents.items()}
    generate.check_cotangents(OPS, plan, tensors)
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
_api = Api(lambda: backend)
initialize = _api.initialize
vjp = _as_written(_api.vjp)


@_as_written
def materialize(
    plan: Plan | Any, variables: Mapping[str, Array] | None = None, names: Iterable[str] | None = None
) -> Any:
    """Build weights from variables, or a plain model from a compressed one.

    Parameters
    ----------
    plan : Plan or keras.Model
        What to build. For a compressed model, a plain one of the same configuration is made, whose weights are
        variables that hold what was generated; it is not compiled, and the given one is not changed.
    variables : mapping of str to tf.Tensor, tf.Variable or keras.Variable, float32
        With a plan: all its variables, by name.
    names : iterable of str, optional
        With a plan: the tensors to build, all by default. The bits do not depend on what else is built.

    Returns
    -------
    dict of str to tf.Tensor, float32, or keras.Model

    Raises
    ------
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.
    UnknownNameError
        If the plan has no tensor of that name.
    PlanError
        If the model is not compressed, or the first argument is neither plan nor model.

    Examples
    --------
    >>> import keras
    >>> from smh.backends import tensorflow as smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> smh.materialize(plan, smh.initialize(plan))["fc"].shape
    TensorShape([20, 5])
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100)])
    >>> smh.materialize(smh.compress(model, ratio=0.1)).count_params()
    6500
    """
    if isinstance(plan, Plan):
        return _api.materialize(plan, _given("variables", variables), names)
    if variables is not None or names is not None:
        raise PlanError(f"variables and names go with a Plan as the first argument; got {type(plan).__name__}")
    return models.plain(plan)


def digest(plan: Plan | Any, variables: Mapping[str, Array] | None = None) -> str:
    """Return the SHA-256 of all weights of a plan, or of a compressed model: equal digests are equal bits.

    Parameters
    ----------
    plan : Plan or keras.Model
        The plan, or a compressed model.
    variables : mapping of str to tf.Tensor, tf.Variable or keras.Variable, float32
        With a plan: all its variables, by name.

    Returns
    -------
    str
        64 hexadecimal digits. Names, views and the plan's arithmetic do not count.

    Raises
    ------
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.
    PlanError
        If the model is not compressed, or the first argument is neither plan nor model.

    Examples
    --------
    >>> from smh.backends import tensorflow as smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> len(smh.digest(plan, smh.initialize(plan)))
    64
    """
    if isinstance(plan, Plan):
        return _api.digest(plan, _given("variables", variables))
    if variables is not None:
        raise PlanError(f"variables go with a Plan as the first argument; got {type(plan).__name__}")
    return models.digest(_api, plan)


def save(
    path: str | os.PathLike[str],
    plan: Plan | Any,
    variables: Mapping[str, Array] | None = None,
    dense: Mapping[str, Array] | None = None,
) -> str:
    """Write a checkpoint: one safetensors file with the plan, the variables and the digest of the weights.

    The file is written beside its destination and moved there when it is complete.

    Parameters
    ----------
    path : str or path-like
        Where to.
    plan : Plan or keras.Model
        The plan, or a compressed model, whose kept weights are stored with its variables. States of optimizers and of
        random generators are not.
    variables : mapping of str to tf.Tensor, tf.Variable or keras.Variable, float32
        With a plan: all its variables, by name.
    dense : mapping of str to array, optional
        With a plan: tensors that are kept as they are, such as biases and norms.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    VariableError
        If an array cannot be stored, or does not fit the plan. Nothing is written then.
    PlanError
        If the model is not compressed, or the second argument is neither plan nor model.

    Examples
    --------
    >>> import os, tempfile
    >>> import keras
    >>> from smh.backends import tensorflow as smh
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100)])
    >>> small = smh.compress(model, ratio=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> smh.save(path, small) == smh.digest(smh.load(path, model))
    True
    """
    if isinstance(plan, Plan):
        return _api.save(path, plan, _given("variables", variables), dense)
    if variables is not None or dense is not None:
        raise PlanError(f"variables and dense go with a Plan as the second argument; got {type(plan).__name__}")
    return models.save(_api, path, plan)


def load(path: str | os.PathLike[str], model: Any = None, device: Any = None) -> Any:
    """Read a checkpoint, trusting nothing in it, and put it into a model if there is one.

    Parameters
    ----------
    path : str or path-like
        The file.
    model : keras.Model, optional
        A compressed model with the plan of the file, which gets its values; or a plain built model, of which a
        compressed one is made by the plan of the file. Names may differ in the numbers that Keras gives to layers.
        Anything else is taken for a device.
    device : optional
        Without a model: a device for the arrays.

    Returns
    -------
    Checkpoint or keras.Model
        Without a model, the plan, and variables and dense tensors as ``tf.Tensor``; its ``digest`` is what the file
        says: compare it with :func:`digest` for proof that the weights here are the same. Else the compressed model.

    Raises
    ------
    CheckpointError
        If the file is cut, changed, or not an honest checkpoint of a known version, or if its dense tensors are not
        those of the model.
    PlanError
        If the plan does not fit the model.
    BackendError
        If there is no such device.

    Notes
    -----
    After an error the model is as it was.

    Examples
    --------
    >>> from smh.backends import tensorflow as smh
    >>> smh.load("/nowhere.safetensors")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: '/nowhere.safetensors'
    """
    if isinstance(model, keras.Model):
        if device is not None:
            raise BackendError(f"a model has its variables where they are: leave out the device; got {device!r}")
        return models.load(path, model)
    return _api.load(path, model if device is None else device)


def _given(what: str, value: Any) -> Any:
    if value is None:
        raise VariableError(f"a plan goes with its {what}: give them as the next argument; got None")
    return value
