"""The public functions that make compressed models and tell of them, once for all frameworks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from typing import Any, Generic, TypeVar

from smh.core.arguments import explained_calls, with_signature_of
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.models.adapter import ModelAdapter, check_keras
from smh.models.compression import (
    Compression,
    Report,
    check_gradients,
    check_residency,
    make_report,
    plan_for,
)
from smh.models.fit import FitReport, fit_variables
from smh.models.roles import structure_of
from smh.models.share import warn_of_little

Model = TypeVar("Model")
Compressed = TypeVar("Compressed")


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

    @explained_calls
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
        init_seed: int | None = None,
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
        init_seed : int, optional
            As for :func:`initialize`: other initial values by the same plan, for restarts and ensembles.

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
            layers=partial(adapter.layers, model),
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
            warn_of_little(tensors, chosen)
        asked = None if ratio is None else float(ratio)
        notes = {tensor.name: structure_of(values[tensor.name]) for tensor in chosen.tensors if tensor.name in values}
        noted = tuple(dataclasses.replace(tensor, note=notes.get(tensor.name, "")) for tensor in tensors)
        compression = Compression(chosen, noted, residency, asked, gradients)
        target = adapter.copy(model)
        with adapter.restored_on_error(target, values=False):
            made: Compressed = adapter.assign(
                adapter.install(target, compression), initial_variables(chosen, init_seed=init_seed), {}
            )
            return made

    @with_signature_of(compress)
    def compress_(self, *args: Any, **options: Any) -> Compressed:
        """Do what :func:`smh.compress` does, with the same arguments, to the model itself, and return it.

        PyTorch only. If it fails, the model has not changed.

        Raises
        ------
        PlanError
            As :func:`smh.compress`, and for models that cannot change in place.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = torch.nn.Linear(40, 30)
        >>> smh.compress_(model, size="1 kB") is model
        True
        """
        in_place: ModelApi[Any, Compressed] = ModelApi(lambda model: self._adapter_of(model).in_place(model))
        return in_place.compress(*args, **options)

    @explained_calls
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

    def materialize_(self, model: Compressed) -> Any:
        """Turn a compressed model back into a plain one: generated weights become parameters with the same bits.

        PyTorch only.

        Parameters
        ----------
        model : torch.nn.Module
            The compressed model. It changes, and is returned.

        Returns
        -------
        torch.nn.Module
            The model, of its own class again; tied weights are tied.

        Raises
        ------
        PlanError
            If the model is not compressed, or cannot change in place.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
        >>> list(smh.materialize_(model).state_dict())
        ['weight', 'bias']
        """
        adapter = self._adapter_of(model).in_place(model)
        self._compression(model)
        return adapter.materialize(model)

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
