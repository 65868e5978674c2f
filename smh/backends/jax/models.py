"""Compressing the parameters of a model: what :mod:`smh.backends.jax.pytrees` is made from, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from smh.backends.jax.pytrees import Compressed, assemble, checked, describe, flatten
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.models.compression import Report, check_residency, make_report, plan_for
from smh.models.fit import FitReport, fit_variables


def compress(
    params: Any,
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
    """Compress the parameters of a model: their weights are generated from a small pool of trained variables.

    Parameters
    ----------
    params : pytree of jax.Array
        A Flax state or dict of parameters, an Equinox module, or any other pytree. Leaves are named by their path, such
        as ``layers/0/kernel``. An array that is at several places is generated once, and is one array again afterwards.
        Arrays that are not generated, and leaves that are no arrays, stay as they are.
    ratio : float or Fraction
        Upper bound on pool variables per generated weight.
    size : int or str
        In the place of ``ratio``: what all arrays of the file may take, in bytes or as ``"500 kB"``.
    plan : Plan, optional
        A plan for these parameters, in the place of ``ratio``, ``size`` and the options.
    residency : str
        When weights are built; the bits of weights and gradients are the same. ``"full"``: all of them by each call of
        :func:`smh.backends.jax.materialize`, as one function. ``"cached"``: outside of JAX's transformations, a call
        with the same arrays as before returns the same weights, as long as these arrays live; else as ``"full"``.
        ``"layer"``: each of them by a function of its own, so that a compiler that saves memory can build it where it
        is used, and free it; gradients of weights arrive together all the same.
    bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, views, include, exclude : optional
        As for :meth:`smh.Plan.build`. By default float32 arrays of two or more axes but biases are generated.
        ``scale="match"`` takes the present values.
    axes : mapping of str to str, optional
        What axes mean, where JAX's convention (``i o``, ``h w i o`` and so on, by rank) does not hold.
    allow_expansion : bool
        Whether a ratio of 1 or more is taken.

    Returns
    -------
    Compressed
        With fresh variables.

    Raises
    ------
    PlanError
        If there is nothing to generate, the plan does not fit, two leaves have one name, a leaf is neither an array nor
        hashable, or the parameters are compressed already.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from smh.backends import jax as smh
    >>> smh.compress({"kernel": jnp.ones((40, 30)), "bias": jnp.zeros(30)}, ratio=0.1)
    Compressed(1,200 weights from 71 variables, 1 kept arrays, residency 'full')
    """
    check_residency(residency)
    treedef, named = flatten(params)
    tensors = describe(named)
    values = {t.name: np.asarray(named[t.name]) for t in tensors if not t.kept} if "match" in str(scale) else None
    chosen = plan_for(
        tensors,
        ratio=ratio,
        size=size,
        plan=plan,
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
        values=values,
    )
    variables = {name: jnp.array(x) for name, x in initial_variables(chosen).items()}
    return assemble(treedef, named, chosen, variables, residency, None if ratio is None else float(ratio))


def fit(
    params: Any,
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
    """Compress trained parameters, with variables whose weights are close to them (warm start).

    Parameters
    ----------
    params, ratio, size, plan, residency, bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes
        As for :func:`smh.backends.jax.compress`.
    views, include, exclude, allow_expansion
        As for :func:`smh.backends.jax.compress`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    compressed : Compressed
        The compressed parameters.
    report : smh.models.fit.FitReport
        Relative errors, by tensor and of all, with and without rounding to integers.

    Raises
    ------
    PlanError
        As :func:`smh.backends.jax.compress`, and where a pool cannot be fitted.
    VariableError
        If the parameters are not finite.

    Examples
    --------
    >>> import jax
    >>> from smh.backends import jax as smh
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (40, 30))}
    >>> compressed, report = smh.fit(params, ratio=0.9)
    >>> 0 < report.error < 0.5
    True
    """
    compressed = compress(
        params,
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
    _, named = flatten(params)
    values = {tensor.name: np.asarray(named[tensor.name]) for tensor in compressed.plan.tensors}
    variables, errors = fit_variables(compressed.plan, values, progress=progress)
    fitted = {name: jnp.array(x) for name, x in variables.items()}
    return dataclasses.replace(compressed, variables=fitted), errors


def plan_of(compressed: Compressed) -> Plan:
    """Return the plan of compressed parameters; raises :class:`~smh.PlanError` if they are not compressed."""
    return checked(compressed).plan


def report(compressed: Compressed) -> Report:
    """Return what compression did to the parameters: print it, or look at its table with rich.

    Parameters
    ----------
    compressed : Compressed
        The compressed parameters.

    Returns
    -------
    smh.models.compression.Report

    Raises
    ------
    PlanError
        If they are not compressed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from smh.backends import jax as smh
    >>> compressed = smh.compress({"kernel": jnp.ones((40, 30)), "bias": jnp.zeros(30)}, ratio=0.1)
    >>> print(smh.report(compressed))  # doctest: +NORMALIZE_WHITESPACE
    1,200 weights (1 tensor) are generated from 71 variables (pool ratio 0.05833, asked 0.1); 30 numbers (1 tensor) are
    kept. A file takes 194 bytes instead of 4,920 (3.9%); residency 'full'.
    """
    structure, variables = checked(compressed).structure, compressed.variables
    scales = {name: float(x) for name, x in variables.items() if name.startswith("scale/")}
    return make_report(
        structure.tensors,
        structure.plan,
        scales,
        ratio_asked=structure.ratio_asked,
        residency=structure.residency,
    )
