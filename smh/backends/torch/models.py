"""Compressed ``torch.nn.Module``: the user's own classes, with generated weights in the place of parameters."""

from __future__ import annotations

import copy
import dataclasses
import gc
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from smh.backends.torch.adapter import backend
from smh.backends.torch.discovery import Values, discover
from smh.backends.torch.fingerprint import KEY, own_part
from smh.backends.torch.generated import NAMES, STORE, plain_class
from smh.backends.torch.install import find_store, install
from smh.backends.torch.store import Store
from smh.core.plan import Plan
from smh.errors import CheckpointError, PlanError
from smh.models.adapter import ModelAdapter
from smh.models.compression import Compression, ModelTensor, check_residency, not_compressed


class TorchModels(ModelAdapter):
    """Modules; ``install`` and ``assign`` change the one that they are given."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how a model was compressed, also from within what wraps a whole model."""
        store = find_store(model)
        return None if store is None else store.compression

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all parameters and buffers, once each."""
        if not isinstance(model, nn.Module):
            raise PlanError(f"a model is a torch.nn.Module; got {type(model).__name__}")
        compressed = [prefix or "it" for prefix, module in model.named_modules() if STORE in module.__dict__]
        if compressed:
            raise PlanError(f"the model is compressed already ({compressed[0]}): smh.materialize_(model) first")
        return discover(model, plan)[0]

    def values(self, model: nn.Module, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return present values, read when they are asked for."""
        return Values(discover(model, plan)[1])

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a deep copy."""
        _warn_of_optimizers(model, "the model from which this one is made", stacklevel=4)
        try:
            return copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise PlanError(f"the model cannot be copied, smh.compress_ compresses it in place: {error}") from error

    def install(self, model: nn.Module, compression: Compression) -> nn.Module:
        """Put parameters for variables, all zero, in the place of those that are generated."""
        install(model, compression, discover(model, compression.plan)[1])
        return model

    def variables(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the variables, detached; they may alias the model's."""
        return {name: x.detach() for name, x in _store(model).variables().items()}

    def kept(self, model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
        """Return what ``state_dict`` holds besides variables, under its first name; the tensors alias the model's."""
        store = find_store(model)
        if store is not None:
            named = store.root.state_dict(keep_vars=True)
            seen = {id(x) for x in store.parameters().values()}
            if own_part(named[KEY]) is None:
                del named[KEY]  # the fingerprint of the plan, which the file holds itself
        else:
            named, sites = model.state_dict(keep_vars=True), discover(model, plan)[1]
            places = [sites[tensor.name][0] for tensor in plan.tensors]
            seen = {id(module._parameters[attribute]) for module, attribute in places}
        stored = {}
        for name, x in named.items():
            if not isinstance(x, torch.Tensor):
                raise CheckpointError(f"a checkpoint holds tensors; the model's {name!r} is {type(x).__name__}")
            if id(x) not in seen:
                seen.add(id(x))
                stored[name] = x.detach()
        return stored

    def assign(
        self, model: nn.Module, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
    ) -> nn.Module:
        """Copy values into the parameters and buffers of a model."""
        store = _store(model)
        own = self.kept(model, store.plan) if kept else {}
        with torch.no_grad():
            for name, x in store.parameters().items():
                x.copy_(backend.asarray(variables[name], "cpu").reshape(x.shape))
            for name, x in own.items():
                x.copy_(backend.asarray(kept[name], "cpu"))
        return model

    def materialize(self, model: nn.Module) -> nn.Module:
        """Return a copy with parameters."""
        return materialize_(copy.deepcopy(model))


class ModelsInPlace(TorchModels):
    """Modules that are compressed themselves, and not a copy of them."""

    def copy(self, model: nn.Module) -> nn.Module:
        """Return the module."""
        _warn_of_optimizers(model, "this model before it was compressed", stacklevel=5)
        return model


adapter = TorchModels()


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
    >>> from smh import torch as smh
    >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
    >>> list(smh.materialize_(model).state_dict())
    ['weight', 'bias']
    """
    store = _store(model)
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
        ``"full"``, ``"cached"`` or ``"layer"``; see :func:`smh.compress`. With ``"cached"``, a change of variables is
        noticed by identity, address and version, which what writes through ``parameter.data`` does not raise: set the
        residency again after that. With ``"layer"``, gradients of weights still arrive together, as those of a plain
        model do; ``torch.compile`` plans memory itself.

    Raises
    ------
    PlanError
        If there is no such residency, or the model is not compressed.
    """
    store = _store(model)
    store.compression = dataclasses.replace(store.compression, residency=check_residency(residency))
    store.forget()


def _store(model: Any) -> Store:
    store = find_store(model)
    if store is None:
        raise not_compressed(model)
    return store


def _warn_of_optimizers(model: nn.Module, whose: str, stacklevel: int) -> None:
    """Warn where an optimiser holds parameters that it could take for those of the compressed model."""
    own = {id(x) for x in model.parameters() if x.ndim >= 2}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), torch.optim.Optimizer) and any(
            id(x) in own for group in candidate.param_groups for x in group["params"]
        ):
            warnings.warn(
                f"{type(candidate).__name__} holds parameters of {whose}, and will not train the compressed model: "
                "build the optimiser after smh.compress, with the parameters of the compressed model",
                UserWarning,
                stacklevel=stacklevel,
            )
