"""The functions that take a plan and arrays, or a compressed model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from smh.api import Api
from smh.backends.tensorflow import models
from smh.backends.tensorflow.adapter import as_written, backend
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import BackendError, PlanError, VariableError

_api = Api(lambda: backend)
initialize = _api.initialize
vjp = as_written(_api.vjp)


@as_written
def materialize(
    plan: Plan | Any,
    variables: Mapping[str, Array] | None = None,
    names: Iterable[str] | None = None,
    *,
    max_bytes: int | None = None,
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
    max_bytes : int, optional
        With a plan that came from elsewhere: the most bytes of weights to build; see :func:`smh.files.limits.default`.
        By default there is no limit.

    Returns
    -------
    dict of str to tf.Tensor, float32, or keras.Model

    Raises
    ------
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.
    UnknownNameError
        If the plan has no tensor of that name.
    LimitError
        If the weights are larger than ``max_bytes``.
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
        return _api.materialize(plan, _given("variables", variables), names, max_bytes=max_bytes)
    if variables is not None or names is not None or max_bytes is not None:
        what = "variables, names and max_bytes go with a Plan as the first argument"
        raise PlanError(f"{what}; got {type(plan).__name__}")
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
        64 hexadecimal digits. Names and views do not count.

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
    *,
    training: bool = False,
) -> str:
    """Write a checkpoint: one safetensors file with plan, integers of the pool, scales, kept tensors and digest.

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
    training : bool
        Whether to store float32 values of the pool as well, so that training can go on where it stopped. The pool takes
        five times as many bytes then.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    VariableError
        If an array cannot be stored, does not fit the plan, or is not finite. Nothing is written then.
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
        return _api.save(path, plan, _given("variables", variables), dense, training=training)
    if variables is not None or dense is not None:
        raise PlanError(f"variables and dense go with a Plan as the second argument; got {type(plan).__name__}")
    return models.save(_api, path, plan, training)


def load(path: str | os.PathLike[str], model: Any = None, device: Any = None, *, max_bytes: int | None = None) -> Any:
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
    max_bytes : int, optional
        The most bytes of weights that the plan of the file may ask to be built. By default 1 GiB, or 1,024 times what
        the file stores, whichever is more; see :func:`smh.files.limits.default`.

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
    LimitError
        If its weights would be larger than the limit.
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
        return models.load(path, model, max_bytes)
    return _api.load(path, model if device is None else device, max_bytes=max_bytes)


def _given(what: str, value: Any) -> Any:
    if value is None:
        raise VariableError(f"a plan goes with its {what}: give them as the next argument; got None")
    return value
