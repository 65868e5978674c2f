"""Compressing Keras models: a model in, a model of the same kind whose weights are generated out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import keras

from smh.api import Api
from smh.backends.tensorflow import keras_tensors
from smh.backends.tensorflow.keras_model import Compressed
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.core.tensors import TensorSpec
from smh.errors import BackendError, PlanError
from smh.files import checkpoint as files
from smh.files.checkpoint import Checkpoint
from smh.files.limits import check_file
from smh.models import compression
from smh.models.compression import ModelTensor, Report
from smh.models.fit import FitReport, fit_variables


def compress(
    model: keras.Model,
    ratio: float | Fraction | None = None,
    *,
    size: int | str | None = None,
    plan: Plan | None = None,
    residency: str = "full",
    bits: int | None = None,
    optimizer: str | None = None,
    pool: Pool | str | None = None,
    layout: str | None = None,
    scale: str | float | Mapping[str, str | float] | None = None,
    learn_scale: bool | None = None,
    modifiers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
    axes: Mapping[str, str] | None = None,
    views: Mapping[str, Any] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    allow_expansion: bool = False,
) -> Compressed:
    """Return a model whose weights are generated from a small pool of trained variables; the given one does not change.

    The new model is made from the configuration of the given one and is not compiled, also where that one was.
    Generated weights start from the initial values of the pool, not from those that they had (:func:`fit` starts from
    these); everything else keeps its values. Trainable float32 weights of two or more axes are generated, except
    biases, weights of quantized layers and those that have a constraint; a report says why others are kept.

    Parameters
    ----------
    model : keras.Model
        Functional, Sequential or subclassed, and built.
    ratio : float or Fraction
        Upper bound on pool variables per generated weight.
    size : int or str
        In the place of ``ratio``: what the tensors of the model may take in a file of ``smh.save``, in bytes or as
        ``"500 kB"``, kept ones included.
    plan : Plan, optional
        A plan for this model, in the place of ``ratio``, ``size`` and all options of plans. Its tensors are named by
        layers and variables, as ``dense/kernel``.
    residency : str
        When weights are built; their bits and those of gradients are the same. ``"full"``: all of them at the start of
        each call. ``"cached"``: eager calls, ``predict`` and ``evaluate`` keep them until the bits of a variable
        change, of which a copy is kept, too; in training, and in functions of your own, it is as full. ``"layer"``:
        each layer's weights before it runs, and freed after it. That saves memory in eager inference only: a gradient
        tape holds what the backward pass needs, and compilers are free to build earlier.
    bits : int, optional
        Bits of the integers that generate weights, 2 to 16, for pools that do not say; 8 by default.
    optimizer : str, optional
        ``"sgd"``, the default, or ``"adam"``, for Adam and its relatives: variables are stored so that its usual
        learning rate fits.
    pool : Pool or str, optional
        ``"matmul"``, the default, ``"kronecker"``, ``"hash"``, or a specification from ``smh.pools``.
    layout : str, optional
        ``"basic"``, the default, ``"cyclic"`` or ``"padding"``.
    scale : str, float or mapping, optional
        ``"fan_in"``, the default, ``"fan_out"``, ``"he"``, ``"glorot"``, ``"match"`` (the standard deviation of the
        model's weights) or a number; or one of these for each generated tensor.
    learn_scale : bool, optional
        Whether scales are trained, as by default.
    modifiers : sequence of str or mapping, optional
        ``"relu"`` and ``"sign"``, for all tensors or by name.
    seed : int, optional
        In ``[0, 2**32)``, 0 by default; decides hash functions and initial variables.
    axes : mapping of str to str, optional
        What the axes of weights mean, where layer and rank do not tell; see :meth:`smh.Plan.build`.
    views : mapping, optional
        Einops patterns, or pairs (pattern, sizes), from canonical shapes to those that layers use.
    include, exclude : str, iterable of str or callable, optional
        Which weights to generate: a regular expression, names, or a function of the name.
    allow_expansion : bool
        Whether to take a ratio of 1 or more, with which nothing gets smaller.

    Returns
    -------
    Compressed
        A ``keras.Model`` with ``pool``, ``inner`` and ``residency``.

    Raises
    ------
    PlanError
        If the model is not built, is compressed already, has nothing to generate, or cannot be made from its
        configuration; and for options that do not work.
    BackendError
        If Keras runs on another framework.

    Examples
    --------
    >>> import keras
    >>> from smh.backends import tensorflow as smh
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100), keras.layers.Dense(10)])
    >>> small = smh.compress(model, ratio=0.1)
    >>> model.count_params(), small.count_params()
    (7510, 808)
    >>> small(keras.ops.ones((2, 64))).shape
    TensorShape([2, 10])
    """
    options = {
        "ratio": ratio,
        "size": size,
        "bits": bits,
        "optimizer": optimizer,
        "pool": pool,
        "layout": layout,
        "scale": scale,
        "learn_scale": learn_scale,
        "modifiers": modifiers,
        "seed": seed,
        "axes": axes,
        "views": views,
        "include": include,
        "exclude": exclude,
    }
    residency = compression.check_residency(residency)
    tensors = _tensors(model)
    if plan is None and "match" in str(scale):
        options["values"] = {t.name: x.numpy() for t, x in zip(tensors, model.weights, strict=True)}
    chosen = compression.plan_for(tensors, plan=plan, allow_expansion=allow_expansion, **options)
    return _compressed(model, chosen, tensors, residency, ratio)


def fit(
    model: keras.Model,
    ratio: float | Fraction | None = None,
    *,
    size: int | str | None = None,
    plan: Plan | None = None,
    residency: str = "full",
    bits: int | None = None,
    optimizer: str | None = None,
    pool: Pool | str | None = None,
    layout: str | None = None,
    scale: str | float | Mapping[str, str | float] | None = None,
    learn_scale: bool | None = None,
    modifiers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
    axes: Mapping[str, str] | None = None,
    views: Mapping[str, Any] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    allow_expansion: bool = False,
    progress: bool = False,
) -> tuple[Compressed, FitReport]:
    """Return a compressed copy of a pretrained model whose weights are close to the model's (warm start).

    Parameters
    ----------
    model : keras.Model
        The pretrained model, built; it does not change.
    ratio, size, plan, residency, bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views, \
    include, exclude, allow_expansion
        As for :func:`compress`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    model : Compressed
        The compressed model, to be trained further.
    report : FitReport
        Relative errors, per tensor and overall.

    Raises
    ------
    PlanError
        As :func:`compress` does, and for pools for which there is no such fit.

    Warns
    -----
    UserWarning
        If the error is above 0.5: most of the model is lost, and training must follow.

    Examples
    --------
    >>> import keras
    >>> from smh.backends import tensorflow as smh
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100)])
    >>> small, report = smh.fit(model, ratio=0.9)
    >>> 0 < report.error < 0.5
    True
    """
    small = compress(
        model,
        ratio=ratio,
        size=size,
        plan=plan,
        residency=residency,
        bits=bits,
        optimizer=optimizer,
        pool=pool,
        layout=layout,
        scale=scale,
        learn_scale=learn_scale,
        modifiers=modifiers,
        seed=seed,
        axes=axes,
        views=views,
        include=include,
        exclude=exclude,
        allow_expansion=allow_expansion,
    )
    parts = small.parts
    present = {tensor.name: x for tensor, x in zip(parts.tensors, model.weights, strict=True)}
    values = {name: present[name].numpy() for name in parts.source.names}
    variables, found = fit_variables(parts.source.plan, values, progress=progress)
    for name, variable in parts.variables.items():
        variable.assign(variables[name])
    return small, found


def plan_of(model: keras.Model) -> Plan:
    """Return the plan of a compressed model.

    Raises
    ------
    PlanError
        If the model is not compressed.
    """
    return _checked(model).parts.source.plan


def report(model: keras.Model) -> Report:
    """Return what compression did to a model.

    Raises
    ------
    PlanError
        If the model is not compressed.

    Examples
    --------
    >>> import keras
    >>> from smh.backends import tensorflow as smh
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100, name="a")])
    >>> [(line.name, line.generated) for line in smh.report(smh.compress(model, ratio=0.1)).tensors]
    [('a/kernel', True), ('a/bias', False)]
    """
    parts = _checked(model).parts
    variables = parts.variables
    scales = {name: float(x.numpy()) for name, x in variables.items() if name.startswith("scale/")}
    return compression.make_report(
        parts.tensors, parts.source.plan, scales, ratio_asked=parts.ratio_asked, residency=model.residency
    )


def plain(model: keras.Model, names: Iterable[str] | None = None) -> keras.Model:
    """Return a model with real variables that hold the generated weights; see `materialize` of this backend."""
    if names is not None:
        raise PlanError("a model is materialized whole: leave out names, or give a plan and its variables")
    parts = _checked(model).parts
    dense = keras_tensors.rebuild(model.inner)
    with parts.source.passing("full"):
        keras_tensors.copy_state(model.inner, parts.weights, dense)
    return dense


def digest(api: Api, model: keras.Model) -> str:
    """Return the digest of a compressed model's generated weights."""
    parts = _checked(model).parts
    return api.digest(parts.source.plan, parts.variables)


def save(api: Api, path: str | os.PathLike[str], model: keras.Model, training: bool) -> str:
    """Write a checkpoint of a compressed model: its plan, its variables, and the weights that it keeps."""
    parts = _checked(model).parts
    kept = {name: variable.numpy() for name, variable in parts.kept.items()}
    return api.save(path, parts.source.plan, parts.variables, kept, training=training)


def load(path: str | os.PathLike[str], model: keras.Model, max_bytes: int | None = None) -> Compressed:
    """Return a model with the plan and the values of a checkpoint; see :func:`smh.backends.tensorflow.load`."""
    found = files.read(path)
    check_file(found, max_bytes)
    parts = model.parts if isinstance(model, Compressed) else None
    tensors = _tensors(model) if parts is None else parts.tensors
    found = _renamed(found, _names(tensors))
    if parts is None:
        compression.check_fit(tensors, found.plan)
    weights = zip(_names(tensors), model.weights if parts is None else parts.weights, strict=True)
    generated = set(_names(found.plan.tensors))
    kept = {name: (tuple(x.shape), str(x.dtype)) for name, x in weights if name not in generated}
    compression.check_loaded(found, kept, None if parts is None else parts.source.plan)
    small = _compressed(model, found.plan, tensors, "full", None) if parts is None else _checked(model)
    for name, variable in small.parts.variables.items():
        variable.assign(found.variables[name])
    for name, variable in small.parts.kept.items():
        variable.assign(found.dense[name])
    return small


def _compressed(
    model: keras.Model,
    plan: Plan,
    tensors: tuple[ModelTensor, ...],
    residency: str,
    ratio: float | Fraction | None,
) -> Compressed:
    """Return a compressed model beside a plain one."""
    inner = keras_tensors.rebuild(model)
    generated = {tensor.name for tensor in plan.tensors}
    places = frozenset(place for place, name in enumerate(_names(tensors)) if name in generated)
    keras_tensors.copy_state(model, model.weights, inner, leave=places)
    return Compressed(inner, plan, tensors, residency, None if ratio is None else float(ratio))


def _tensors(model: Any) -> tuple[ModelTensor, ...]:
    """Return the tensors of a plain model, or say why it cannot be compressed."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(f"Keras must run on TensorFlow: set KERAS_BACKEND=tensorflow; got {keras.backend.backend()}")
    if not isinstance(model, keras.Model):
        raise PlanError(f"only a keras.Model can be compressed; got {type(model).__name__}")
    if any(isinstance(layer, Compressed) for layer in model._flatten_layers()):
        raise PlanError("the model is compressed already: make a plain one by smh.materialize(model) first")
    if not model.built:
        raise PlanError(f"model {model.name!r} is not built, so it has no weights yet: build it, or call it once")
    return keras_tensors.tensors_of(model)


def _checked(model: Any) -> Compressed:
    """Return a compressed model, or say what is none."""
    if not isinstance(model, Compressed):
        raise PlanError(f"only a model that smh.compress made has a plan; got {type(model).__name__}")
    return model


def _names(tensors: Iterable[ModelTensor | TensorSpec]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _renamed(found: Checkpoint, names: tuple[str, ...]) -> Checkpoint:
    """Return a checkpoint in the names of a model, if they differ only in the numbers that Keras gave to layers."""
    stored = [*_names(found.plan.tensors), *(name for name in found.dense if not name.startswith(files.CARRIED))]
    plain_names = keras_tensors.without_numbers(names)
    known = {value: name for name, value in plain_names.items()}
    renamed = {name: known.get(value, name) for name, value in keras_tensors.without_numbers(stored).items()}
    if set(stored) == set(names) or set(renamed.values()) != set(names):
        return found
    tensors = tuple(dataclasses.replace(tensor, name=renamed[tensor.name]) for tensor in found.plan.tensors)
    scales = {tensor.scale_variable: f"scale/{renamed[tensor.name]}" for tensor in found.plan.tensors}
    return dataclasses.replace(
        found,
        plan=dataclasses.replace(found.plan, tensors=tensors),
        variables={scales.get(name, name): x for name, x in found.variables.items()},
        dense={renamed.get(name, name): x for name, x in found.dense.items()},
    )
