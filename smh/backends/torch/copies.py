"""Copies of compressed models, and of their parts, which are plain; and how both become plain again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

STORE, NAMES = "_smh_store", "_smh_names"
"""Where a module keeps the store of its model, and {attribute: tensor} of its generated weights."""


def plain_class(module: Any) -> Any:
    """Return the class that a module had before."""
    return type(module)._smh_made_of[0]


def is_whole(module: Any) -> bool:
    """Say whether a module is a compressed model, or a shallow copy of it, and not a part of one."""
    store = module.__dict__.get(STORE)
    return store is not None and module._modules is store.root._modules


def plain_parameters(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return the parameters of a module with weights in the place of variables, in the order that they had before."""
    store = module.__dict__[STORE]
    slots = set(store.slots.values())
    own = {name: x for name, x in module._parameters.items() if (module, name) not in slots}
    own |= {attribute: weights[name] for attribute, name in module.__dict__.get(NAMES, {}).items()}
    return {name: own[name] for name in dict.fromkeys((*store.order[module], *own)) if name in own}


def copied(module: Any, memo: dict[Any, Any]) -> Any:
    """Return a deep copy of a compressed model, or of a part; that of a part without the whole is plain."""
    store = module.__dict__[STORE]
    if is_whole(module):
        new = _whole(module, memo)
        for part in store.root.modules():  # already copied alone, for example as an attribute of another module
            if STORE in part.__dict__ and (found := memo.get(id(part))) is not None and STORE not in found.__dict__:
                _whole(part, memo, found)
        return new
    return _whole(module, memo) if id(store.root) in memo else _part(module, memo)


def _whole(module: Any, memo: dict[Any, Any], into: Any = None) -> Any:
    make, args, state = module.__reduce_ex__(4)[:3]
    new = make(*args)
    if into is not None:
        into.__dict__.clear()
        into.__class__, new = type(new), into
    memo[id(module)] = new
    new.__setstate__(copy.deepcopy(state, memo))
    return new


def _part(module: Any, memo: dict[Any, Any]) -> Any:
    store, cls = module.__dict__[STORE], plain_class(module)
    _, (_, *args), state = module.__reduce_ex__(4)[:3]
    new = memo[id(module)] = cls.__new__(cls, *args)
    weights = memo.setdefault((STORE, id(store)), {})  # once each, so that they stay tied
    for name in module.__dict__.get(NAMES, {}).values():
        if name not in weights:
            with torch.no_grad():
                weight = store.build([name])[name]
            weights[name] = nn.Parameter(weight, weight.requires_grad)
    state = {name: x for name, x in state.items() if name not in (STORE, NAMES)}
    state["_parameters"] = plain_parameters(module, weights)
    held = {attribute for holder, attribute in store.slots.values() if holder is module}
    state["_buffers"] = {name: x for name, x in module._buffers.items() if name not in held}
    recurrent = issubclass(cls, nn.RNNBase)
    new.__setstate__(copy.deepcopy({**state, "_flat_weights": []} if recurrent else state, memo))
    if recurrent:
        new._init_flat_weights()
    return new
