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
from smh.models import poison
from smh.models.adapter import ModelAdapter, check_keras
from smh.models.compression import (
    Compression,
    ModelTensor,
    check_gradients,
    check_residency,
    plan_for,
)
from smh.models.fit import FitReport, fit_variables
from smh.models.report import Report, make_report
from smh.models.roles import structure_of
from smh.models.sweep import RATIOS, Sweep, make_sweep

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
        """Return what compression did to a model: print it, plot it, or take its numbers.

        Parameters
        ----------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model.

        Returns
        -------
        smh.models.report.Report
            ``print`` gives a summary by kind of layer and the reasons of kept tensors, rich a line for each tensor;
            also ``to_dict()``, ``to_pandas()`` and ``plot()``.

        Raises
        ------
        PlanError
            If the model is not compressed.

        Warns
        -----
        UserWarning
            If training has diverged: variables are not finite or too large, and weights are NaN.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> print(smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1)))  # doctest: +NORMALIZE_WHITESPACE
        1,200 weights (1 tensor) are generated from 71 variables (pool ratio 0.05833, asked 0.1); 30 numbers (1 tensor)
        are kept. 101 numbers are trained instead of 1,230. A file takes 194 bytes instead of 4,920 (3.9%); residency
        'full', gradients 'exact'.
        <BLANKLINE>
        layer   tensors  generated numbers  kept numbers  bytes before  bytes after
        ---------------------------------------------------------------------------
        Linear        2              1,200            30         4,920          194
        <BLANKLINE>
        Kept tensors:
          biases: 1 tensor, 30 numbers ('bias')
        """
        compression, adapter = self._compression(model), self._adapter_of(model)
        named = adapter.variables(model)
        variables = {name: adapter.backend.to_numpy(x) for name, x in named.items() if not getattr(x, "is_meta", False)}
        if variables.keys() == compression.plan.variable_shapes.keys():
            if message := poison.describe(compression.plan, variables):
                warnings.warn(message, UserWarning, stacklevel=2)
        return make_report(compression, {name: float(x) for name, x in variables.items() if name.startswith("scale/")})

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

    @_named_options
    def sweep(
        self,
        model: Model,
        ratios: Iterable[float | Fraction] = RATIOS,
        *,
        bits: int | None = None,
        pool: Pool | str | None = None,
        layout: str | None = None,
        learn_scale: bool | None = None,
        views: Mapping[str, Any] | None = None,
        include: Selector | None = None,
        exclude: Selector | None = None,
    ) -> Sweep:
        """Return the sizes that a model would have at several ratios, without compressing it.

        Parameters
        ----------
        model : torch.nn.Module, keras.Model or pytree of jax.Array
            The plain model; it is neither copied nor changed.
        ratios : iterable of float or Fraction
            The ratios to try.
        bits, pool, layout, learn_scale, views, include, exclude : optional
            As for :func:`compress`. Its other options do not change sizes.

        Returns
        -------
        smh.models.sweep.Sweep
            For each ratio the number of variables, bytes in a file and their share of the dense model, or why the ratio
            is refused.

        Raises
        ------
        PlanError
            If every ratio is refused, or the model is compressed already.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> print(smh.sweep(torch.nn.Linear(300, 200), ratios=[0.01, 0.1]))
        60,000 weights are generated, 200 numbers are kept; the dense model takes 240,800 bytes in a file.
        <BLANKLINE>
        ratio  variables  bytes in a file  of dense
        -------------------------------------------
         0.01        491            1,294      0.5%
          0.1      5,881            6,684      2.8%
        """
        return make_sweep(
            self._adapter_of(model).tensors(model),
            ratios,
            bits=bits,
            pool=pool,
            layout=layout,
            learn_scale=learn_scale,
            views=views,
            include=include,
            exclude=exclude,
        )

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
