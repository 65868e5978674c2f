"""All or nothing: after an error a model is as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def restored_on_error(model: nn.Module, values: bool = True) -> Iterator[None]:
    """Undo all changes to a model if the context ends in an error; without ``values``, its numbers are safe."""
    modules = list(model.modules())
    before: list[tuple[nn.Module, Any, dict[str, Any]]] = [(x, type(x), dict(vars(x))) for x in modules]
    held = [x for _, _, own in before for x in own.values()]
    dicts = [(x, dict(x)) for x in held if isinstance(x, dict)]
    lists = [(x, list(x)) for x in held if isinstance(x, list)]
    tensors = {id(x): x for module in modules for x in (*module._parameters.values(), *module._buffers.values())}
    copies = [(x, x.detach().clone()) for x in tensors.values() if x is not None] if values else []
    extra = [(x, copy.deepcopy(x.get_extra_state())) for x in modules if values and _has_extra_state(x)]
    try:
        yield
    except BaseException:
        for module, cls, own in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(own)
        for mapping, items in dicts:
            mapping.clear()
            mapping.update(items)
        for sequence, content in lists:
            sequence[:] = content
        with torch.no_grad():
            for x, value in copies:
                x.copy_(value)
        for module, state in extra:
            module.set_extra_state(state)
        raise


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).set_extra_state is not nn.Module.set_extra_state
