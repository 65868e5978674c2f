"""The public functions that make compressed models and tell of them, once for all frameworks."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, Generic, ParamSpec, TypeVar

from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.errors import PlanError, near_names
from smh.models.adapter import ModelAdapter, check_keras
from smh.models.compression import (
    Compression,
    ModelTensor,
    Report,
    check_gradients,
    check_residency,
    make_report,
    plan_for,
)
from smh.models.fit import FitReport, fit_variables
from smh.models.roles import structure_of

Model = TypeVar("Model")
Compressed = TypeVar("Compressed")
P = ParamSpec("P")
_FEW = 10_000  # models of fewer numbers are toys, which nobody compresses to save bytes


def _named_options(function: Callable[P, Model]) -> Callable[P, Model]:
    """Let a mistaken name of an option be an error that says which one is near."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> Model:
        for name in options:
            if name not in known:
                raise PlanError(f"{function.__name__} has no option {name!r}; {near_names(name, known)}")
        return function(*args, **options)

    return run


class ModelApi(Generic[Model, Compressed]):
    """The public functions of models.

    Parameters
    ----------
    adapter_of : callable
        Returns the adapter for a model.
    """

    def __init__(self, adapter_of: Callable[[Any], ModelAdapter]) -> None:
        self._find_adapter = adapter_of

    def _adapter_of(self, model: Any) -> ModelAdapter:
        adapter = self._find_adapter(model)
        check_keras(model, adapter.backend.name)
        return adapter

    @_named_options
    def compress(
        self,
        model: Model,
        ratio: float | Fraction | None = None,
        *,
        size: int | str | None = None,
        plan: Plan | None = None,
        residency: str = "full",
        gradients: str = "exact",
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
        """Return a copy of a model whose weights are generated from a small pool of trained variables.

        Generated weights start from the initial values of the pool, not from those that they had (:func:`fit` starts
        from these); all else keeps its values. Build the optimiser afterwards, with what the new model trains.

        Parameters
        ----------
        model : torch.nn.Module, keras.Model or pytree of jax.Array
            The model; it does not change. A Keras model must be built. A pytree is a Flax state or dict of parameters,
            an Equinox module, or any other; its leaves are named by their path, such as ``layers/0/kernel``.
        ratio : float or Fraction
            Upper bound on pool variables per generated weight.
        size : int or str
            In the place of ``ratio``: what the tensors of the model may take in a file of :func:`save`, in bytes or as
            ``"500 kB"``, kept ones included.
        plan : Plan, optional
            A plan for this model, in the place of ``ratio``, ``size`` and all options of plans.
        residency : str
            When weights are built; their bits and those of gradients are the same. ``"full"``: all of them, once per
            forward pass. ``"cached"``: once, and again only after a variable changed, where no gradient is needed.
            ``"layer"``: each layer's just before it runs, and freed after it. The guide to residency tells what that
            means in each framework.
        gradients : str
            How gradients are computed; weights have the same bits either way, and neither the plan nor files store the
            choice. ``"exact"``: with the bits of the specification, the same in every framework. ``"fast"``: by the
            framework's own float32 products, without a promise of bits.
        bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views, include, exclude : optional
            As for :meth:`smh.Plan.build`, with the same defaults. The framework and its layers tell what axes mean, and
            ``scale="match"`` takes the deviations of the model's weights. By default trainable float32 weight
            matrices are generated; a :func:`report` says why others are kept.
        allow_expansion : bool
            Whether to take a ratio of 1 or more, with which nothing gets smaller.

        Returns
        -------
        torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model, with fresh variables. In PyTorch of the model's own class and with the same layers:
            ``model.conv1.weight`` reads as the generated tensor. In Keras a copy of the same class, not compiled. In
            JAX a pytree of what is trained, for :func:`materialize`.

        Raises
        ------
        PlanError
            If there is nothing to generate, options contradict each other, the plan does not fit, the model would not
            get smaller, cannot be copied, or is compressed already.

        Warns
        -----
        UserWarning
            If less than half of the model is generated, though nothing was selected, or an optimiser of PyTorch holds
            parameters of the model.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU()), ratio=0.1)
        >>> list(model.state_dict())
        ['pool_left', 'pool_right', '_extra_state', '0.bias', '0.weight_scale']
        >>> model[0].weight.shape
        torch.Size([30, 40])
        """
        adapter = self._adapter_of(model)
        check_residency(residency)
        check_gradients(gradients)
        tensors, values = adapter.tensors(model, plan), adapter.values(model)
        chosen = plan_for(
            tensors,
            plan=plan,
            allow_expansion=allow_expansion,
            layers=adapter.layers(model),
            ratio=ratio,
            size=size,
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
            values=values if plan is None and "match" in str(scale) else None,
        )
        if plan is None and include is None and exclude is None:
            _warn_of_little(tensors, chosen)
        asked = None if ratio is None else float(ratio)
        notes = {tensor.name: structure_of(values[tensor.name]) for tensor in chosen.tensors if tensor.name in values}
        noted = tuple(dataclasses.replace(tensor, note=notes.get(tensor.name, "")) for tensor in tensors)
        compression = Compression(chosen, noted, residency, asked, gradients)
        target = adapter.copy(model)
        with adapter.restored_on_error(target, values=False):
            made: Compressed = adapter.assign(adapter.install(target, compression), initial_variables(chosen), {})
            return made

    @_named_options
    def fit(
        self,
        model: Model,
        ratio: float | Fraction | None = None,
        *,
        size: int | str | None = None,
        plan: Plan | None = None,
        residency: str = "full",
        gradients: str = "exact",
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
        model, ratio, size, plan, residency, gradients, bits, optimizer, pool, layout, scale, learn_scale, modifiers, \
        seed, axes, views, include, exclude, allow_expansion
            As for :func:`compress`.
        progress : bool
            Whether to show progress bars.

        Returns
        -------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model.
        report : smh.models.fit.FitReport
            Relative errors, per tensor and overall, with and without rounding to integers.

        Raises
        ------
        PlanError
            As :func:`compress`, and where a pool cannot be fitted.
        VariableError
            If a weight of the model is not finite.
        SmhError
            If SciPy is not installed.

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
        compressed = self.compress(
            model,
            ratio,
            size=size,
            plan=plan,
            residency=residency,
            gradients=gradients,
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
        adapter, chosen = self._adapter_of(model), self.plan_of(compressed)
        values = adapter.values(model, chosen)
        variables, report = fit_variables(chosen, {t.name: values[t.name] for t in chosen.tensors}, progress=progress)
        return adapter.assign(compressed, variables, {}), report

    def plan_of(self, model: Compressed) -> Plan:
        """Return the plan of a compressed model; raises :class:`~smh.PlanError` if it is not compressed."""
        return self._compression(model).plan

    def report(self, model: Compressed) -> Report:
        """Return what compression did to a model: print it, or look at its table with rich.

        Parameters
        ----------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model.

        Returns
        -------
        smh.models.compression.Report

        Raises
        ------
        PlanError
            If the model is not compressed.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> print(smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1)))  # doctest: +NORMALIZE_WHITESPACE
        1,200 weights (1 tensor) are generated from 71 variables (pool ratio 0.05833, asked 0.1); 30 numbers (1 tensor)
        are kept. A file takes 194 bytes instead of 4,920 (3.9%); residency 'full', gradients 'exact'.
        """
        compression, adapter = self._compression(model), self._adapter_of(model)
        variables = adapter.variables(model)
        scales = {
            name: float(adapter.backend.to_numpy(x))
            for name, x in variables.items()
            if name.startswith("scale/") and not getattr(x, "is_meta", False)
        }
        return make_report(compression, scales)

    def built(self, model: Compressed) -> AbstractContextManager[None]:
        """Build all weights once, for all that runs within this context, whatever the residency.

        A call of the model is a forward pass, which builds weights once by itself. So are, in PyTorch, a call of one of
        its modules and one of its public methods, such as ``generate``; in Keras a call of one of its layers. This
        context joins several: calls of parts one after another, code that reads weights, many calls without gradients.

        Within the context weights are right: they are built again after a variable changed, after a backward pass went
        through them, or if gradients are wanted where they were not before. It counts in the thread that enters it.

        Parameters
        ----------
        model : torch.nn.Module or smh.keras.Compressed
            The compressed model. Compressed pytrees of JAX are refused: what :func:`materialize` returns is what it
            builds once.

        Returns
        -------
        context manager

        Raises
        ------
        PlanError
            If the model is not compressed, or a pytree.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20)), ratio=0.1)
        >>> with smh.built(model):
        ...     hidden = model[0](torch.ones(1, 40))
        ...     y = model[1](hidden)  # of the same building
        """
        self._compression(model)
        return self._adapter_of(model).built(model)

    def _compression(self, model: Any) -> Compression:
        compression = self._adapter_of(model).compression(model)
        if compression is None:
            raise self._adapter_of(model).not_compressed(model)
        return compression


def with_signature_of(other: Callable[P, Model]) -> Callable[[Callable[..., Model]], Callable[P, Model]]:
    """Give a function that passes its arguments on the signature of another one, for editors and ``help``."""

    def decorate(fn: Callable[..., Model]) -> Callable[P, Model]:
        fn.__signature__ = inspect.signature(other)  # type: ignore[attr-defined]
        return fn

    return decorate


def _warn_of_little(tensors: Iterable[ModelTensor], plan: Plan) -> None:
    """Warn if less than half of the numbers of a model are generated, and say what keeps the others."""
    generated = {tensor.name for tensor in plan.tensors}
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name not in generated:
            sizes[tensor.why_kept] += math.prod(tensor.shape)
    total = plan.num_weights + sizes.total()
    if 2 * plan.num_weights < total and total >= _FEW:
        reasons = "; ".join(f"{size:,} ({why})" for why, size in sizes.most_common(3))
        warnings.warn(
            f"only {plan.num_weights:,} of {total:,} numbers are generated, so the model gets little "
            f"smaller. Kept are {reasons}; smh.report(model) lists them all",
            UserWarning,
            stacklevel=4,
        )
