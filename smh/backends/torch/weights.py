"""Generated weights as tensors: they can be read, and refuse to be changed.

Code outside of a pass gets a :class:`GeneratedWeight`, whose memory is its own. Layers in a pass get a
:class:`PassWeight`, which costs nothing to use, and whose memory all passes may share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from smh.errors import VariableError

ADVICE = "smh.materialize_(model) first turns generated weights into parameters, which can be changed"
_OPERATORS = "add|sub|mul|div|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift|matmul"
CHANGES = re.compile(rf"__(set|delete|setitem|delitem|i({_OPERATORS}))__|(?!__).*_")
"""Names of functions that change their first argument."""
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")


def refused(what: str) -> VariableError:
    """Return the error for an operation that takes a generated weight for a parameter."""
    return VariableError(f"{what}: a generated weight is a result, computed anew from the model's variables. {ADVICE}")


class GeneratedWeight(torch.Tensor):
    """A generated weight as code outside of the model sees it: for reading.

    A change in place would be lost, so it is refused, also through ``.data`` and other views; so are hooks. Results of
    reading it are plain tensors; gradients flow through it to the variables.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function on plain tensors, unless it would change a generated weight."""
        kwargs = kwargs or {}
        first = args[0] if args else next(iter(kwargs.values()), None)
        name = func.__name__.partition(".")[0]  # without the overload
        if name == "__set__":
            name = f"setting .{func.__self__.__name__}"
        changed = (first if CHANGES.fullmatch(func.__name__.partition(".")[0]) else None, kwargs.get("out"))
        if any(True for _ in _weights(changed)):
            raise refused(f"{name} cannot change a generated weight in place")
        if name in _HOOKS:
            raise refused(f"{name} does nothing for a generated weight")
        with torch._C.DisableTorchFunctionSubclass():
            before = [(x, x._version) for x in _weights((args, tuple(kwargs.values())))]
            result = func(*args, **kwargs)
            if any(x._version != version for x, version in before):
                raise refused(f"{name} cannot change a generated weight in place")
            if isinstance(result, np.ndarray):
                result.flags.writeable = False
            elif isinstance(result, torch.Tensor) and isinstance(first, cls):
                views = result.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
                return result.as_subclass(cls) if views else result
        return result


class PassWeight(torch.Tensor):
    """A generated weight as layers read it: PyTorch takes it for a plain tensor, and its methods change nothing.

    What changes it otherwise, such as ``out=``, is seen at the end of the pass by its version.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> torch.Tensor:
        """Return it as code outside of the model sees it."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        raise refused("setting .data cannot change a generated weight in place")

    def detach(self) -> torch.Tensor:
        """Return the weight for code outside of the model: it shares the memory, but not the version."""
        return super().detach().as_subclass(GeneratedWeight)


def _refusal(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise refused(f"{name} cannot change a generated weight in place")

    return refuse


for _name in dir(torch.Tensor):
    if CHANGES.fullmatch(_name):  # some of these never come to __torch_function__
        setattr(PassWeight, _name, _refusal(_name))
        setattr(GeneratedWeight, _name, _refusal(_name))


def _weights(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """Yield the generated weights among values, which may be lists of more."""
    for x in values:
        if isinstance(x, GeneratedWeight):
            yield x
        elif isinstance(x, list | tuple):
            yield from _weights(x)
