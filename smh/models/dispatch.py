"""The public functions that take a model: each goes to the backend of the framework that the model is of.

No framework is imported for the question. Whoever has a model has imported its framework.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from smh.api import Api
from smh.backends.registry import get_backend
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError

if TYPE_CHECKING:
    from smh.core.pools import Pool
    from smh.core.selection import Selector
    from smh.models.fit import FitReport

_api = Api(get_backend)


def module_of(model: Any) -> Any:
    """Return the backend module, such as ``smh.torch``, that compresses models such as a given one.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or pytree of jax.Array
        A model, compressed or not. What is neither of the first two counts as a pytree, once JAX is imported.

    Raises
    ------
    PlanError
        If no framework that is imported has such models.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is not None and isinstance(model, torch.nn.Module):
        name = "torch"
    elif keras is not None and isinstance(model, keras.Layer):
        name = "tensorflow"
    elif "jax" in sys.modules:
        name = "jax"
    else:
        raise PlanError(
            "a model is a torch.nn.Module, a keras.Model or a pytree of JAX arrays; "
            f"got {type(model).__name__}: for a pytree of other arrays, use smh.jax"
        )
    return importlib.import_module(f"smh.backends.{name}")


def compress(
    model: Any,
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
) -> Any:
    """Return a copy of a model whose weights are generated from a small pool of trained variables.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or pytree of jax.Array
        The model; it does not change.
    ratio : float or Fraction
        Upper bound on pool variables per generated weight.
    size : int or str
        In the place of ``ratio``: what all arrays of the file may take, in bytes or as ``"500 kB"``.
    plan : Plan, optional
        A plan for this model, in the place of ``ratio``, ``size`` and the options.
    residency : str
        When weights are built: ``"full"``, ``"cached"`` or ``"layer"``.
    bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views, include, exclude : optional
        As for :meth:`smh.Plan.build`.
    allow_expansion : bool
        Whether a ratio of 1 or more is taken.

    Returns
    -------
    torch.nn.Module, keras.Model or smh.jax.Compressed
        The compressed model, with fresh variables; see ``compress`` of ``smh.torch``, ``smh.keras`` and ``smh.jax``.

    Raises
    ------
    PlanError
        If there is nothing to generate, the plan does not fit, or the model would not get smaller.

    Examples
    --------
    >>> import torch
    >>> import smh
    >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
    >>> model.weight.shape
    torch.Size([30, 40])
    """
    return module_of(model).compress(
        model,
        ratio,
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


def fit(
    model: Any,
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
) -> tuple[Any, FitReport]:
    """Return a compressed copy of a pretrained model whose weights are close to the model's (warm start).

    Parameters
    ----------
    model, ratio, size, plan, residency, bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes
        As for :func:`compress`.
    views, include, exclude, allow_expansion
        As for :func:`compress`.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    model : torch.nn.Module, keras.Model or smh.jax.Compressed
        The compressed model.
    report : smh.models.fit.FitReport
        Relative errors, per tensor and overall, with and without rounding to integers.

    Raises
    ------
    PlanError
        As :func:`compress`, and where a pool cannot be fitted.

    Warns
    -----
    UserWarning
        If the error is above 0.5: most of the model is lost, and training must follow.

    Examples
    --------
    >>> import torch
    >>> import smh
    >>> model, report = smh.fit(torch.nn.Linear(40, 30), ratio=0.9)
    >>> 0 < report.error < 0.5
    True
    """
    found: tuple[Any, FitReport] = module_of(model).fit(
        model,
        ratio,
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
        progress=progress,
    )
    return found


def digest(model: Any, variables: Mapping[str, Array] | None = None) -> str:
    """Return the SHA-256 of all generated weights: equal digests are equal bits, in every framework.

    Parameters
    ----------
    model : compressed model or Plan
        A compressed model of any framework, or a plan.
    variables : mapping of str to array, float32
        With a plan: all its variables, as arrays of the backend that ``SMH_BACKEND`` names.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    PlanError
        If the model is not compressed.
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.

    Examples
    --------
    >>> import smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> len(smh.digest(plan, smh.initialize(plan)))
    64
    """
    if isinstance(model, Plan):
        return _api.digest(model, variables or {})
    return str(module_of(model).digest(model))


def save(
    path: str | os.PathLike[str],
    model: Any,
    variables: Mapping[str, Array] | None = None,
    dense: Mapping[str, Array] | None = None,
    *,
    training: bool = False,
) -> str:
    """Write a checkpoint: one safetensors file with plan, integers of the pool, scales and digest of the weights.

    The file is written beside its destination and moved there when it is complete.

    Parameters
    ----------
    path : str or path-like
        Where to.
    model : compressed model or Plan
        A compressed model of any framework, or a plan.
    variables : mapping of str to array, float32
        With a plan: all its variables, as arrays of the backend that ``SMH_BACKEND`` names.
    dense : mapping of str to array, optional
        With a plan: tensors that are kept as they are. A model brings its own.
    training : bool
        Whether to store float32 values of the pool as well, so that training can go on where it stopped.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    PlanError
        If the model is not compressed.
    VariableError
        If an array cannot be stored, does not fit the plan, or is not finite. Nothing is written then.

    Examples
    --------
    >>> import os, tempfile
    >>> import smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> smh.save(path, plan, smh.initialize(plan)) == smh.load(path).digest
    True
    """
    if isinstance(model, Plan):
        return _api.save(path, model, variables or {}, dense, training=training)
    return str(module_of(model).save(path, model, training=training))


def load(path: str | os.PathLike[str], model: Any = None, *, device: Any = None, max_bytes: int | None = None) -> Any:
    """Read a checkpoint, trusting nothing in it, and put it into a model if there is one.

    Parameters
    ----------
    path : str or path-like
        The file.
    model : torch.nn.Module, keras.Model or pytree of jax.Array, optional
        What ``load`` of ``smh.torch``, ``smh.keras`` and ``smh.jax`` takes.
    device : optional
        Without a model: a device of the backend that ``SMH_BACKEND`` names.
    max_bytes : int, optional
        The most bytes of weights that the plan of the file may ask to be built. By default 1 GiB, or 1,024 times what
        the file stores, whichever is more.

    Returns
    -------
    model or smh.Checkpoint
        The model; without one, what the file holds. Its ``digest`` is what the file says: compare it with
        :func:`digest` for proof that the weights here are the same.

    Raises
    ------
    CheckpointError
        If the file is cut, changed, not an honest checkpoint of a known version, or does not fit the model.
    LimitError
        If its weights would be larger than the limit.

    Examples
    --------
    >>> import smh
    >>> smh.load("/nowhere.safetensors")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: '/nowhere.safetensors'
    """
    if model is None:
        return _api.load(path, device, max_bytes=max_bytes)
    if device is not None:
        raise PlanError(f"a model brings its own device: leave out device, or the model; got device={device!r}")
    return module_of(model).load(path, model, max_bytes=max_bytes)
