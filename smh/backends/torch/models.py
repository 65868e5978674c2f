"""Compressed ``torch.nn.Module``: the user's own classes, with generated weights in the place of parameters."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from smh.backends.torch.discovery import Values, discover
from smh.backends.torch.generated import NAMES, STORE, plain_class
from smh.backends.torch.install import assign, install, store_of
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool
from smh.core.selection import Selector
from smh.errors import PlanError
from smh.models.compression import Report, check_residency, make_report, plan_for
from smh.models.fit import FitReport, fit_variables


def compress(
    model: nn.Module,
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
) -> nn.Module:
    """Return a copy of a model whose weights are generated from a small pool of trained variables.

    The copy is of the model's own class, with the same layers: ``model.conv1.weight`` reads as the generated tensor.
    Its parameters are the pool, one scale of shape (1,) per generated tensor, and what is kept, so build the optimiser
    afterwards. Its ``state_dict`` names the plan: that of a model with another plan is refused.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it does not change.
    ratio : float or Fraction
        Upper bound on pool variables per generated weight.
    size : int or str
        In the place of ``ratio``: what the tensors of the model may take in a file of :func:`save`, in bytes or as
        ``"500 kB"``, kept ones included.
    plan : Plan, optional
        A plan for this model, in the place of ``ratio``, ``size`` and all options of plans.
    residency : str
        When weights are built: ``"full"``, all of them once per forward pass; ``"cached"``, once, and again only after
        a variable changed, where no gradient is needed (else, and in ``torch.compile``, as ``"full"``); ``"layer"``,
        each layer's just before it runs, and freed after it, in the forward and in the backward pass.
        See :func:`set_residency`.
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
        What axes of tensors mean, where the layer does not tell; see :meth:`smh.Plan.build`.
    views : mapping, optional
        Einops patterns, or pairs (pattern, sizes), from canonical shapes to those that layers use.
    include, exclude : str, iterable of str or callable, optional
        Which tensors to generate: a regular expression, names, or a function of the name. By default trainable
        floating parameters of two or more axes.
    allow_expansion : bool
        Whether to take a ratio of 1 or more, with which nothing gets smaller.

    Returns
    -------
    torch.nn.Module
        The compressed model, with fresh variables.

    Raises
    ------
    PlanError
        If there is nothing to generate, options contradict each other, the plan does not fit, or the model is
        compressed already.

    Warns
    -----
    UserWarning
        If an optimiser holds parameters that are generated from now on.

    Examples
    --------
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> model = smh.compress(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU()), ratio=0.1)
    >>> list(model.state_dict())
    ['pool_left', 'pool_right', '_extra_state', '0.bias', '0.weight_scale']
    >>> model[0].weight.shape
    torch.Size([30, 40])
    """
    _warn_of_optimizers(model, copied=True)
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise PlanError(f"the model cannot be copied, smh.compress_ compresses it in place: {error}") from error
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
    return _compress(copied, plan, residency, allow_expansion, options)


def compress_(
    model: nn.Module,
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
) -> nn.Module:
    """Do what :func:`compress` does with the model itself, and return it. If it fails, the model has not changed.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It changes, and is returned.
    ratio, size, plan, residency, bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views, \
    include, exclude, allow_expansion
        As for :func:`compress`.

    Returns
    -------
    torch.nn.Module
        The compressed model, with fresh variables.

    Raises
    ------
    PlanError
        As :func:`compress`.

    Warns
    -----
    UserWarning
        If an optimiser holds parameters that are generated from now on.

    Examples
    --------
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> model = torch.nn.Linear(40, 30)
    >>> smh.compress_(model, size="1 kB") is model
    True
    """
    _warn_of_optimizers(model, copied=False)
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
    return _compress(model, plan, residency, allow_expansion, options)


def materialize_(model: nn.Module) -> nn.Module:
    """Turn a compressed model back into a plain one: generated weights become parameters with the same bits.

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
        If the model is not compressed.

    Examples
    --------
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
    >>> list(smh.materialize_(model).state_dict())
    ['weight', 'bias']
    """
    store = store_of(model)
    with torch.no_grad():
        weights = store.build()
    parameters = {name: nn.Parameter(weight) for name, weight in weights.items()}
    slots = set(store.slots.values())
    for module, order in store.order.items():
        names = module.__dict__.pop(NAMES, {})
        del module.__dict__[STORE]
        module.__class__ = plain_class(module)
        own = {name: x for name, x in module._parameters.items() if (module, name) not in slots}
        own |= {attribute: parameters[name] for attribute, name in names.items()}
        module._parameters.clear()
        module._parameters.update({name: own[name] for name in dict.fromkeys((*order, *own))})
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    return model


def set_residency(model: nn.Module, residency: str) -> None:
    """Change when the weights of a compressed model are built; their bits stay the same.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model.
    residency : str
        ``"full"``, ``"cached"`` or ``"layer"``; see :func:`compress`. With ``"cached"``, a change of variables is
        noticed by identity, address and version, which what writes through ``parameter.data`` does not raise: set the
        residency again after that. With ``"layer"``, gradients of weights still arrive together, as those of a plain
        model do; ``torch.compile`` plans memory itself.

    Raises
    ------
    PlanError
        If there is no such residency, or the model is not compressed.
    """
    store = store_of(model)
    store.residency = check_residency(residency)
    store.forget()


def plan_of(model: nn.Module) -> Plan:
    """Return the plan of a compressed model; raises :class:`~smh.PlanError` if it is not compressed."""
    return store_of(model).plan


def report(model: nn.Module) -> Report:
    """Return what compression did to a model: print it, or look at its table with rich.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model.

    Returns
    -------
    smh.compression.Report

    Raises
    ------
    PlanError
        If the model is not compressed.

    Examples
    --------
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> print(smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1)))  # doctest: +NORMALIZE_WHITESPACE
    1,200 weights (1 tensor) are generated from 71 variables (pool ratio 0.05833, asked 0.1); 30 numbers (1 tensor) are
    kept. A file takes 194 bytes instead of 4,920 (3.9%); residency 'full'.
    """
    store = store_of(model)
    found = store.parameters()
    scales = {name: x.item() for name, x in found.items() if name.startswith("scale/")}
    return make_report(store.tensors, store.plan, scales, ratio_asked=store.ratio_asked, residency=store.residency)


def fit(
    model: nn.Module,
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
) -> tuple[nn.Module, FitReport]:
    """Return a compressed copy of a pretrained model whose weights are close to the model's (warm start).

    Parameters
    ----------
    model : torch.nn.Module
        The pretrained model; it does not change.
    ratio, size, plan, residency, bits, optimizer, pool, layout, scale, learn_scale, modifiers, seed, axes, views, \
    include, exclude, allow_expansion
        As for :func:`compress`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    model : torch.nn.Module
        The compressed model.
    report : smh.fit.FitReport
        Relative errors, per tensor and overall.

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
        If an optimiser holds parameters of the model, or most of the model is lost: then training must follow.

    Examples
    --------
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> model, report = smh.fit(torch.nn.Linear(40, 30), ratio=0.9)
    >>> 0 < report.error < 0.5
    True
    """
    compressed = compress(
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
    chosen = plan_of(compressed)
    before = Values(discover(model, chosen)[1])
    variables, errors = fit_variables(chosen, {t.name: before[t.name] for t in chosen.tensors}, progress=progress)
    assign(compressed, variables)
    return compressed, errors


def _compress(
    model: nn.Module, plan: Plan | None, residency: str, allow_expansion: bool, options: Mapping[str, Any]
) -> nn.Module:
    check_residency(residency)
    if not isinstance(model, nn.Module):
        raise PlanError(f"smh.compress takes a torch.nn.Module; got {type(model).__name__}")
    compressed = [prefix or "it" for prefix, module in model.named_modules() if STORE in module.__dict__]
    if compressed:
        raise PlanError(f"the model is compressed already ({compressed[0]}): smh.materialize_(model) first")
    tensors, sites = discover(model, plan)
    if plan is None and "match" in str(options["scale"]):
        options = {**options, "values": Values(sites)}
    chosen = plan_for(tensors, plan=plan, allow_expansion=allow_expansion, **options)
    ratio = options["ratio"]
    install(model, chosen, tensors, sites, residency, None if ratio is None else float(ratio))
    assign(model, initial_variables(chosen))
    return model


def _warn_of_optimizers(model: Any, copied: bool) -> None:
    """Warn where an optimiser holds parameters that it could take for those of the compressed model."""
    if not isinstance(model, nn.Module):
        return
    own = {id(x) for x in model.parameters() if x.ndim >= 2}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), torch.optim.Optimizer) and any(
            id(x) in own for group in candidate.param_groups for x in group["params"]
        ):
            whose = "the model from which this one is made" if copied else "this model before it was compressed"
            warnings.warn(
                f"{type(candidate).__name__} holds parameters of {whose}, and will not train the compressed model: "
                "build the optimiser after smh.compress, with the parameters of the compressed model",
                UserWarning,
                stacklevel=3,
            )
