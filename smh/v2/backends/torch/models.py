"""Compressed ``torch.nn.Module``: the user's own classes, with generated weights in the place of parameters."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from smh.v2.backends.torch.discovery import Values, discover, parts_of
from smh.v2.backends.torch.generated import NAMES, STORE, generated_class, plain_class
from smh.v2.backends.torch.store import Site, Store
from smh.v2.core.initial import initial_variables
from smh.v2.core.plan import Plan
from smh.v2.errors import PlanError
from smh.v2.models.compression import ModelTensor, Report, check_residency, make_report, plan_for
from smh.v2.models.fit import FitReport, fit_variables


def compress(
    model: nn.Module,
    ratio: float | Fraction | None = None,
    *,
    plan: Plan | None = None,
    residency: str = "full",
    axes: Mapping[str, str] | None = None,
    **options: Any,
) -> nn.Module:
    """Return a copy of a model whose weights are generated from a small pool of trained variables.

    The copy is of the model's own class, with the same layers: ``model.conv1.weight`` reads as the generated tensor.
    Its parameters are the pool, one scale per generated tensor, and what is kept, so build the optimiser afterwards.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it does not change.
    ratio : float or Fraction
        Upper bound on pool variables per generated weight.
    plan : Plan, optional
        A plan for this model, in the place of ``ratio`` and ``options``.
    residency : str
        When weights are built: ``"full"``, all of them once per forward pass; ``"cached"``, once, and again only after
        a variable changed, where no gradient is needed (else, and in ``torch.compile``, as ``"full"``); ``"layer"``,
        each layer's just before it runs, and freed after it, in the forward and in the backward pass.
        See :func:`set_residency`.
    axes : mapping of str to str, optional
        What axes of tensors mean, where the layer does not tell; see :meth:`smh.Plan.build`.
    **options
        Pool, layout, scale, seed, arithmetic, include, exclude and the rest, as for :meth:`smh.Plan.build`. By default
        trainable floating parameters of two or more axes are generated.

    Returns
    -------
    torch.nn.Module
        The compressed model, with fresh variables.

    Raises
    ------
    PlanError
        If there is nothing to generate, the plan does not fit, or the model is compressed already.

    Warns
    -----
    UserWarning
        If an optimiser holds parameters that are generated from now on.

    Examples
    --------
    >>> import torch
    >>> from smh.v2.backends import torch as smh
    >>> model = smh.compress(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU()), ratio=0.1)
    >>> list(model.state_dict())
    ['pool_left', 'pool_right', '0.bias', '0.weight_scale']
    >>> model[0].weight.shape
    torch.Size([30, 40])
    """
    _warn_of_optimizers(model, copied=True)
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise PlanError(f"the model cannot be copied, smh.compress_ compresses it in place: {error}") from error
    return _compress(copied, ratio, plan, residency, {"axes": axes, **options})


def compress_(
    model: nn.Module,
    ratio: float | Fraction | None = None,
    *,
    plan: Plan | None = None,
    residency: str = "full",
    axes: Mapping[str, str] | None = None,
    **options: Any,
) -> nn.Module:
    """Do what :func:`compress` does with the model itself, and return it. If it fails, the model has not changed."""
    _warn_of_optimizers(model, copied=False)
    return _compress(model, ratio, plan, residency, {"axes": axes, **options})


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
    >>> from smh.v2.backends import torch as smh
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
    >>> from smh.v2.backends import torch as smh
    >>> print(smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1)))  # doctest: +NORMALIZE_WHITESPACE
    1,200 weights (1 tensor) are generated from 71 variables (pool ratio 0.05833, asked 0.1); 30 numbers (1 tensor) are
    kept. The model stores 404 bytes instead of 4,920 (8.2%); residency 'full'.
    """
    store = store_of(model)
    found = store.parameters()
    scales = {t.name: found[t.scale_variable].item() for t in store.plan.tensors if t.learn_scale}
    return make_report(store.tensors, store.plan, scales, ratio_asked=store.ratio_asked, residency=store.residency)


def find_store(model: Any) -> Store | None:
    """Return the store of a compressed model, also from within what wraps a whole model, or None."""
    inner = model
    while isinstance(inner, nn.Module):
        store: Store | None = inner.__dict__.get(STORE)
        if store is not None and store.root is inner:
            return store
        wrapped = dict(inner.named_children())
        if len(wrapped) != 1 or next(iter(wrapped)) not in ("module", "_orig_mod"):
            break
        (inner,) = wrapped.values()
    return None


def store_of(model: Any) -> Store:
    """Return the store of a compressed model, or raise :class:`~smh.PlanError`."""
    store = find_store(model)
    if store is None:
        raise PlanError(f"the model is not compressed: smh.compress(model, ratio=0.1) is; got {type(model).__name__}")
    return store


def fit(
    model: nn.Module,
    ratio: float | Fraction | None = None,
    *,
    plan: Plan | None = None,
    residency: str = "full",
    axes: Mapping[str, str] | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[nn.Module, FitReport]:
    """Return a compressed copy of a pretrained model whose weights are close to the model's (warm start).

    Parameters
    ----------
    model, ratio, plan, residency, axes, **options
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

    Examples
    --------
    >>> import torch
    >>> from smh.v2.backends import torch as smh
    >>> model, report = smh.fit(torch.nn.Linear(40, 30), ratio=0.5)
    >>> 0 < report.error < 1
    True
    """
    compressed = compress(model, ratio, plan=plan, residency=residency, axes=axes, **options)
    chosen = plan_of(compressed)
    before = Values(discover(model)[1])
    variables, errors = fit_variables(chosen, {t.name: before[t.name] for t in chosen.tensors}, progress=progress)
    assign(compressed, variables)
    return compressed, errors


def assign(model: nn.Module, variables: Mapping[str, np.ndarray]) -> None:
    """Give the variables of a compressed model values."""
    with torch.no_grad():
        for name, x in store_of(model).parameters().items():
            x.copy_(torch.from_numpy(variables[name]))


def _compress(
    model: nn.Module,
    ratio: float | Fraction | None,
    plan: Plan | None,
    residency: str,
    options: Mapping[str, Any],
) -> nn.Module:
    check_residency(residency)
    if not isinstance(model, nn.Module):
        raise PlanError(f"smh.compress takes a torch.nn.Module; got {type(model).__name__}")
    compressed = [prefix or "it" for prefix, module in model.named_modules() if STORE in module.__dict__]
    if compressed:
        raise PlanError(f"the model is compressed already ({compressed[0]}): smh.materialize_(model) first")
    tensors, sites = discover(model, plan)
    if "match" in str(options.get("scale")):
        options = {"values": Values(sites), **options}
    chosen = plan_for(tensors, ratio=ratio, plan=plan, **options)
    install(model, chosen, tensors, sites, residency, None if ratio is None else float(ratio))
    assign(model, initial_variables(chosen))
    return model


def install(
    model: nn.Module,
    plan: Plan,
    tensors: tuple[ModelTensor, ...],
    sites: Mapping[str, list[Site]],
    residency: str,
    ratio_asked: float | None,
) -> Store:
    """Put parameters for variables, all zero, in the place of those that are generated."""
    first = {tensor.name: sites[tensor.name][0] for tensor in plan.tensors}
    slots = {
        f"pool/{name}": (model, f"pool_{name}".replace("/", "_").replace(".", "_"))
        for name in plan.pool.variable_shapes()
    }
    packed = _packed(plan, sites)
    whole = {part: name for name, parts in packed.items() for part in parts}
    for tensor in plan.tensors:
        module, attribute = first[tensor.name]
        part = f"_{tensor.name.rpartition('.')[2]}" if tensor.name in whole else ""
        if tensor.learn_scale:
            slots[tensor.scale_variable] = module, f"{attribute}{part}_scale"
    for module, attribute in slots.values():
        if hasattr(module, attribute):
            what = f"{type(module).__name__} has an attribute {attribute!r}, which a variable needs"
            raise PlanError(f"{what}: rename it, or exclude the tensor")
    read: dict[nn.Module, dict[str, str]] = {model: {}}
    for tensor in plan.tensors:
        for module, attribute in sites[tensor.name]:
            read.setdefault(module, {})[attribute] = whole.get(tensor.name, tensor.name)
    example = first[plan.tensors[0].name]
    like = example[0]._parameters[example[1]]
    store = Store(
        root=model,
        plan=plan,
        slots=slots,
        order={module: tuple(module._parameters) for module in read},
        packed=packed,
        tensors=tensors,
        residency=residency,
        ratio_asked=ratio_asked,
    )
    for module, names in read.items():
        for attribute in names:
            del module._parameters[attribute]
        module.__dict__.pop("_flat_weights", None)  # the list of parameters that a recurrent layer keeps
    for name, (module, attribute) in slots.items():
        module.register_parameter(attribute, nn.Parameter(like.detach().new_zeros(plan.variable_shapes[name])))
    for module, names in read.items():
        module.__dict__[STORE] = store
        if names:
            module.__dict__[NAMES] = names
        cls: Any = type(module)
        module.__class__ = generated_class(cls, tuple(names))
    return store


def _packed(plan: Plan, sites: Mapping[str, list[Site]]) -> dict[str, tuple[str, ...]]:
    """Return, for every parameter that holds several generated matrices, their names in its order."""
    planned = {tensor.name for tensor in plan.tensors}
    packed = {}
    for tensor in plan.tensors:
        name, _, part = tensor.name.rpartition(".")
        parts = tuple(f"{name}.{other}" for other in parts_of(*sites[tensor.name][0]))
        if tensor.name in parts:
            packed[name] = parts
            if missing := [other for other in parts if other not in planned]:
                what = f"{name!r} is one parameter of {len(parts)} matrices, all of which are generated or none"
                raise PlanError(f"{what}; the plan has {part!r} and lacks {', '.join(map(repr, missing))}")
    return packed


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
                stacklevel=4,
            )
