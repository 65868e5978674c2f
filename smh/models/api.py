"""The public functions that make compressed models and tell of them, once for all frameworks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from typing import Any, Generic, TypeVar

from smh.core.arguments import explained_calls
from smh.core.checks import check_flag
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.core.sizes import parse_ratio
from smh.core.warning import warn
from smh.files.kept import check_bits
from smh.models import poison
from smh.models.adapter import ModelAdapter
from smh.models.compression import (
    Compression,
    check_gradients,
    check_plan,
    check_residency,
    check_selectors,
    check_trains,
    plan_for,
)
from smh.models.fit import FitReport, fit_variables
from smh.models.frameworks import check_framework, check_model
from smh.models.report import Report, make_report
from smh.models.roles import structure_of
from smh.models.share import warn_of_little
from smh.models.sweep import RATIOS, Sweep, make_sweep

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
        check_model(model)
        check_framework(model, adapter.backend.name)
        return adapter

    @explained_calls
    def compress(
        self,
        model: Model,
        ratio: float | Fraction | str | None = None,
        *,
        size: int | str | None = None,
        plan: Plan | None = None,
        residency: str = "full",
        gradients: str = "exact",
        bits: int | None = None,
        exponents: str | None = None,
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

        Generated weights start from the initial values of the pool; :func:`fit` starts from the values of the model.
        Everything else keeps its values. Create the optimizer afterwards, with the parameters of the new model.

        Parameters
        ----------
        model : torch.nn.Module, keras.Model or pytree of jax.Array
            The model, which does not change. A Keras model must be built. A pytree can be a Flax state or dict of
            parameters, an Equinox module, or any other; the path of a leaf is its name, such as ``layers/0/kernel``.
        ratio : float, Fraction or str
            Upper bound on pool variables per generated weight, also as ``"10%"``.
        size : int or str
            Instead of ``ratio``: the largest size of all arrays, kept ones included, in a file of :func:`save`, in
            bytes or as ``"500 kB"``. The header of the file, with the plan, comes on top.
        plan : Plan, optional
            A plan for this model, instead of ``ratio``, ``size`` and all options of plans.
        residency : str
            When weights are built, which changes no bit of weights or gradients. ``"full"``: all weights, once per
            forward pass. ``"cached"``: without gradients, once until a variable changes. ``"layer"``: those of a layer
            just before it runs; they are freed after it. The guide to residency has the details for each framework.
        gradients : str
            How gradients are computed, which changes no bit of weights and is not stored. ``"exact"``: with the bits of
            the specification, the same in every framework. ``"fast"``: by float32 products of the framework, without a
            promise of bits.
        bits, exponents, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views : optional
            As for :meth:`smh.Plan.build`, with the same defaults. Layers determine the meaning of axes, and
            ``scale="match"`` uses the standard deviations of the model's weights.
        include, exclude : selector or list of selectors, optional
            Tensors to generate and to keep: names of tensors or modules, globs, classes of layers, ``re.compile(...)``
            or functions of a name; see :func:`smh.core.selection.select`. By default trainable weight matrices are
            generated; :func:`report` gives the reasons for kept tensors.
        allow_expansion : bool
            Whether to allow a ratio of 1 or more, which does not compress.
        init_seed : int, optional
            Seed of the initial values, for restarts and ensembles with the same plan; see :func:`initialize`.

        Returns
        -------
        torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model, with initial values. In PyTorch it has the same class and layers, and
            ``model.conv1.weight`` is the generated tensor. In Keras it is a model of the same class, not compiled. In
            JAX it is a pytree of variables and kept arrays, for :func:`materialize`.

        Raises
        ------
        PlanError
            If there is nothing to generate, options contradict each other, the plan does not fit, or the model would
            not get smaller, cannot be copied, or is already compressed.

        Warns
        -----
        UserWarning
            If less than half of the model is generated by default, or if an optimizer of PyTorch holds parameters of
            the model.

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
        if plan is not None:
            check_plan(plan)
        adapter = self._adapter_of(model)
        check_residency(residency)
        check_gradients(gradients)
        tensors, values = adapter.tensors(model, plan), adapter.values(model)
        check_selectors(partial(adapter.place_of, model), include=include, exclude=exclude)
        chosen = plan_for(
            tensors,
            plan=plan,
            allow_expansion=allow_expansion,
            layers=partial(adapter.layers, model),
            ratio=ratio,
            size=size,
            bits=bits,
            exponents=exponents,
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
        asked = None if ratio is None else float(parse_ratio(ratio))
        notes = {tensor.name: structure_of(values[tensor.name]) for tensor in chosen.tensors if tensor.name in values}
        noted = tuple(dataclasses.replace(tensor, note=notes.get(tensor.name, "")) for tensor in tensors)
        compression = Compression(chosen, noted, residency, asked, gradients)
        target = adapter.copy(model)
        with adapter.restored_on_error(target, values=False):
            made: Compressed = adapter.assign(
                adapter.install(target, compression), initial_variables(chosen, init_seed=init_seed), {}
            )
            return made

    @explained_calls
    def fit(
        self,
        model: Model,
        ratio: float | Fraction | str | None = None,
        *,
        size: int | str | None = None,
        plan: Plan | None = None,
        residency: str = "full",
        gradients: str = "exact",
        bits: int | None = None,
        exponents: str | None = None,
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
        progress: bool | None = None,
    ) -> tuple[Compressed, FitReport]:
        """Return a compressed copy of a pretrained model whose weights are close to the model's (warm start).

        Parameters
        ----------
        model, ratio, size, plan, residency, gradients, bits, exponents, optimizer, pool, layout, scale, learn_scale, \
        modifiers, seed, axes, views, include, exclude, allow_expansion
            As for :func:`compress`.
        progress : bool, optional
            Whether to show progress on stderr. By default on a terminal, for work of more than two seconds.

        Returns
        -------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model.
        report : smh.models.fit.FitReport
            Relative errors, per tensor and overall, with and without rounding to integers.

        Raises
        ------
        PlanError
            As :func:`compress`, and if a pool cannot be fitted.
        VariableError
            If a weight of the model is not finite.
        SmhError
            If SciPy is not installed.

        Warns
        -----
        UserWarning
            If the error is above 0.5: most of the model is lost, and it must be trained.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model, report = smh.fit(torch.nn.Linear(40, 30), ratio=0.9)
        >>> 0 < report.error < 0.5
        True
        """
        check_flag("progress", progress, optional=True)
        compressed = self.compress(
            model,
            ratio,
            size=size,
            plan=plan,
            residency=residency,
            gradients=gradients,
            bits=bits,
            exponents=exponents,
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

    @explained_calls
    def plan_of(self, model: Compressed) -> Plan:
        """Return the plan of a compressed model; raises :class:`~smh.PlanError` if it is not compressed."""
        return self._compression(model).plan

    @explained_calls
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
        are kept. 101 numbers are trained instead of 1,230. The arrays of a file take 194 bytes instead of 4,920 (3.9%);
        residency 'full', gradients 'exact'.
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
                warn(message)
        return make_report(compression, {name: float(x) for name, x in variables.items() if name.startswith("scale/")})

    @explained_calls
    def rate(self, model: Compressed, kept_bits: int | None = None) -> Any:
        """Return the bits that the integers of a model are estimated to take in a packed file, to train for small ones.

        Add it to the loss, times a weight: ``loss + 1e-6 * smh.rate(model)``. The value counts the integers that the
        variables are rounded to. The gradient is that of a prior for each array, which is fitted to the variables at
        every step. The bits of the result are not promised.

        Parameters
        ----------
        model : torch.nn.Module, smh.keras.Compressed or smh.jax.Compressed
            The compressed model, with fixed exponents: ``smh.compress(model, ratio=0.1, exponents="fixed")``.
        kept_bits : int, optional
            8 or 16, as for :func:`save`: kept tensors of floats also count, with the bits that they take when they are
            rounded and packed, or as they are if rounding would take too much from them. Those with 128 values or more
            and some below 0 have gradients: fewer values are not coded, and without negative ones all would get smaller
            together, which saves nothing. Integers do not count. By default, no kept tensors count.

        Returns
        -------
        torch.Tensor, tf.Tensor or jax.Array
            The estimate, float32, shape (), with gradients of the variables and, with ``kept_bits``, of kept tensors;
            NaN if a variable, or a kept tensor to round, is not finite.

        Raises
        ------
        PlanError
            If the model is not compressed, is frozen, or its exponents are not fixed, or ``kept_bits`` is another
            number.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1, exponents="fixed")
        >>> loss = model(torch.ones(1, 40)).square().mean() + 1e-4 * smh.rate(model)
        >>> loss.backward()
        >>> (smh.rate(model, kept_bits=8) - smh.rate(model)).item()  # 30 biases
        240.0
        """
        check_bits(kept_bits)
        check_trains(self._compression(model), "has no rate with gradients")
        return self._adapter_of(model).rate(model, kept_bits)

    @explained_calls
    def built(self, model: Compressed) -> AbstractContextManager[None]:
        """Build all weights once for all code in this context, with any residency.

        A call of the model builds its weights once. So does, in PyTorch, a call of one of its modules or of a public
        method such as ``generate``, and in Keras a call of one of its layers. This context covers several of these
        calls: parts that run one after another, code that reads weights, or many calls without gradients.

        Weights are never stale: they are built again after a change of a variable, after a backward pass through them,
        or when gradients are needed for the first time. The context applies to the thread that enters it.

        Parameters
        ----------
        model : torch.nn.Module or smh.keras.Compressed
            The compressed model. Compressed pytrees of JAX are refused, because :func:`materialize` returns weights
            that are built once.

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
        ...     y = model[1](hidden)
        """
        self._compression(model)
        return self._adapter_of(model).built(model)

    @explained_calls
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
        adapter = self._adapter_of(model)
        check_selectors(partial(adapter.place_of, model), include=include, exclude=exclude)
        return make_sweep(
            adapter.tensors(model),
            ratios,
            layers=partial(adapter.layers, model),
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
