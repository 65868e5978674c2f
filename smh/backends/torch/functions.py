"""The functions that take a plan and arrays, or a compressed model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from smh.api import Api
from smh.backends.torch.adapter import backend
from smh.backends.torch.discovery import discover
from smh.backends.torch.fingerprint import KEY, own_part
from smh.backends.torch.install import find_store, install, store_of
from smh.core.plan import Plan
from smh.errors import CheckpointError
from smh.files.checkpoint import Checkpoint
from smh.models.compression import check_fit, check_loaded

_api = Api(lambda: backend)


def digest(model: nn.Module | Plan, variables: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of all generated weights: equal digests are equal bits, in every framework.

    Parameters
    ----------
    model : torch.nn.Module or Plan
        A compressed model, or a plan.
    variables : mapping of str to torch.Tensor, float32
        With a plan: all its variables.

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
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> len(smh.digest(smh.compress(torch.nn.Linear(40, 30), ratio=0.1)))
    64
    """
    if isinstance(model, Plan):
        return _api.digest(model, variables or {})
    return _api.digest(store_of(model).plan, _contents(model)[0])


def save(
    path: str | os.PathLike[str],
    model: nn.Module | Plan,
    variables: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
) -> str:
    """Write a checkpoint: one safetensors file with plan, integers of the pool, scales, kept tensors and digest.

    The file is written beside its destination and moved there when it is complete.

    Parameters
    ----------
    path : str or path-like
        Where to.
    model : torch.nn.Module or Plan
        A compressed model, or a plan.
    variables : mapping of str to torch.Tensor, float32
        With a plan: all its variables.
    dense : mapping of str to torch.Tensor, optional
        With a plan: tensors that are kept as they are. A model brings its own, those of its ``state_dict``.
    training : bool
        Whether to store float32 values of the pool as well, so that training can go on where it stopped. The pool takes
        five times as many bytes then.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    PlanError
        If the model is not compressed.
    VariableError
        If a tensor cannot be stored, does not fit the plan, or is not finite. Nothing is written then.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> from smh.backends import torch as smh
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> digest = smh.save(path, smh.compress(torch.nn.Linear(40, 30), ratio=0.1))
    >>> smh.digest(smh.load(path, torch.nn.Linear(40, 30))) == digest
    True
    """
    if isinstance(model, Plan):
        return _api.save(path, model, variables or {}, dense, training=training)
    return _api.save(path, store_of(model).plan, *_contents(model), training=training)


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: Any = None,
    max_bytes: int | None = None,
) -> Any:
    """Read a checkpoint, trusting nothing in it, and put it into a model if there is one.

    Parameters
    ----------
    path : str or path-like
        The file.
    model : torch.nn.Module, optional
        A compressed model with the plan of the file, or a plain one, which is compressed by that plan. Everything is
        checked before anything changes.
    device : optional
        Without a model: a device for the tensors.
    max_bytes : int, optional
        The most bytes of weights that the plan of the file may ask to be built. By default 1 GiB, or 1,024 times what
        the file stores, whichever is more; see :func:`smh.files.limits.default`.

    Returns
    -------
    torch.nn.Module or smh.Checkpoint
        The model; without one, what the file holds. Its ``digest`` is what the file says: compare it with
        :func:`digest` for proof that the weights here are the same.

    Raises
    ------
    CheckpointError
        If the file is cut, changed, or not an honest checkpoint of a known version, or does not fit the model: then
        the message names what is missing, unexpected or different. The model has not changed.
    PlanError
        If the plan of the file does not fit a plain model.
    LimitError
        If its weights would be larger than the limit.

    Examples
    --------
    >>> from smh.backends import torch as smh
    >>> smh.load("/nowhere.safetensors")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: '/nowhere.safetensors'
    """
    if model is None:
        return _api.load(path, device, max_bytes=max_bytes)
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"a checkpoint is loaded into a torch.nn.Module; got {type(model).__name__}")
    _put(model, _api.load(path, "cpu", max_bytes=max_bytes))
    return model


def _contents(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the variables of a compressed model, float32, and all else that it stores, by name; the tensors alias."""
    store = store_of(model)
    variables = {name: x.detach() for name, x in store.variables().items()}
    own = {id(x) for x in store.parameters().values()}
    return variables, _stored(store.root, own)


def _put(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put what a file holds into a model, compressed by the same plan or not at all; first see that all of it fits."""
    store = find_store(model)
    if store is not None:
        _, dense = _contents(model)
        check_loaded(checkpoint, _described(dense), store.plan)
    else:
        tensors, sites = discover(model, checkpoint.plan)
        check_fit(tensors, checkpoint.plan)
        places = [sites[tensor.name][0] for tensor in checkpoint.plan.tensors]
        generated = {id(module._parameters[attribute]) for module, attribute in places}
        check_loaded(checkpoint, _described(_stored(model, generated)))
        store = install(model, checkpoint.plan, tensors, sites, "full", None)
        _, dense = _contents(model)
    with torch.no_grad():
        for name, x in store.parameters().items():
            x.copy_(checkpoint.variables[name].reshape(x.shape))
        for name, x in dense.items():
            x.copy_(checkpoint.dense[name])


def _stored(model: nn.Module, without: set[int]) -> dict[str, torch.Tensor]:
    """Return what ``state_dict`` holds besides some parameters, under its first name; the tensors alias the model's."""
    named = model.state_dict(keep_vars=True)
    if find_store(model) is not None and own_part(named[KEY]) is None:
        del named[KEY]  # the fingerprint of the plan, which the file holds itself
    stored: dict[str, torch.Tensor] = {}
    seen = set(without)
    for name, x in named.items():
        if not isinstance(x, torch.Tensor):
            raise CheckpointError(f"a checkpoint holds tensors; the model's {name!r} is {type(x).__name__}")
        if id(x) not in seen:
            seen.add(id(x))
            stored[name] = x.detach()
    return stored


def _described(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in tensors.items()}
