"""Generated weights in the place of parameters: what layers read, and how it refuses to be changed.

The class of a layer with generated weights is a subclass of its own class, with a property for every such weight. The
property asks the model's :class:`~smh.backends.torch.store.Store`, so a layer reads ``self.weight`` as before.
The model also gets a subclass: calling the model tells the store that a forward pass begins and ends,
and its ``state_dict`` names the plan.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import pickle
import threading
from typing import Any

import torch
from torch import nn

from smh.backends.torch import frozen
from smh.backends.torch.checks import check_freezing, check_places, check_whole
from smh.backends.torch.copies import NAMES, STORE, copied, is_whole, plain_class
from smh.backends.torch.restoring import restored_on_error
from smh.backends.torch.sharded import is_cut
from smh.backends.torch.weights import ADVICE, GeneratedWeight, PassWeight, refused
from smh.core.warning import warn
from smh.errors import PlanError
from smh.models.compression import check_trains
from smh.models.report import one_line

_RESETS = ("reset_parameters", "_reset_parameters", "init_weights")
"""Methods that give parameters new values. Others are refused where they meet a generated weight."""
_BY_PLAN = (
    "compress the model by the plan of that state, smh.compress(model, plan=...), or load a file of smh.save, which "
    "brings its plan"
)


class Registered(dict[str, Any]):
    """The parameters of a layer. Libraries that look there for one that is generated, to replace it, are told why."""

    def __init__(self, parameters: dict[str, Any], generated: frozenset[str]) -> None:
        super().__init__(parameters)
        self.generated = generated

    def __contains__(self, name: object) -> bool:
        self._check(name)
        return super().__contains__(name)

    def __missing__(self, name: str) -> Any:
        self._check(name)
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        self._check(name)
        super().__delitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        super().__setitem__(name, value)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a parameter."""
        self._check(name)
        return super().pop(name, *default)

    def _check(self, name: object) -> None:
        if name in self.__dict__.get("generated", ()):
            raise refused(f"{name!r} is not a parameter and cannot be replaced, parametrized, pruned or quantized")

    def __reduce__(self) -> Any:
        return Registered, (dict(self), self.generated)


class _Generated:
    """What the classes of compressed models, and of their layers with generated weights, have in common."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Be a plain module: one that a model's code makes anew, such as a slice, has nothing that is generated."""
        self.__class__ = plain_class(self)
        self.__init__(*args, **kwargs)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        store = self.__dict__[STORE]
        if not store.watches(self):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        store.enter(self)
        complete = False
        try:
            result = super().__call__(*args, **kwargs)  # type: ignore[misc]
            complete = True
            return result
        finally:
            store.leave(complete)

    def __setattr__(self, name: str, value: Any) -> None:
        names = self.__dict__.get(NAMES, ())
        if name in names:
            raise refused(f"{name!r} cannot be assigned")
        if name == "qconfig" and names:
            raise refused(f"a layer cannot be quantized ({', '.join(names)})")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__.get(NAMES, ()):
            raise refused(f"{name!r} cannot be deleted")
        super().__delattr__(name)

    def extra_repr(self) -> str:
        """Return what the layer's own class tells of it, and which weights are generated."""
        parts = [super().extra_repr(), *(f"{name}=generated" for name in self.__dict__.get(NAMES, ()))]  # type: ignore[misc]
        return ", ".join(filter(None, parts))

    def get_parameter(self, target: str) -> Any:
        """Return a parameter by its name, or a generated weight, which reads as one."""
        path, _, attribute = target.rpartition(".")
        module = self.get_submodule(path)  # type: ignore[attr-defined]
        if attribute in module.__dict__.get(NAMES, ()):
            return getattr(module, attribute)
        return super().get_parameter(target)  # type: ignore[misc]

    def register_parameter(self, name: str, param: Any) -> None:
        """Register a parameter, unless it is or replaces a generated weight, as pruning's would."""
        store: Any = self.__dict__.get(STORE)
        if store is not None and (self, name) in store.slots.values():  # as what shards parameters replaces them
            store.cut |= is_cut(param)
        else:
            self._check_free(name, param)
        super().register_parameter(name, param)  # type: ignore[misc]

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Register a buffer, unless it is or replaces a generated weight."""
        self._check_free(name, tensor)
        super().register_buffer(name, tensor, persistent)  # type: ignore[misc]

    def _check_free(self, name: str, tensor: Any) -> None:
        if name in self.__dict__.get(NAMES, ()) or isinstance(tensor, GeneratedWeight | PassWeight):
            raise refused(f"{name!r} cannot be registered")

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Freeze or unfreeze the whole model; a part cannot be frozen by itself."""
        if requires_grad:
            check_trains(self.__dict__[STORE].compression, "has no gradients")
        if not is_whole(self):
            check_freezing(self.__dict__[STORE], self, requires_grad)
        return super().requires_grad_(requires_grad)  # type: ignore[misc]

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the model or of a part; a frozen one stays in evaluation mode."""
        if mode:
            check_trains(self.__dict__[STORE].compression, "cannot be trained")
        return super().train(mode)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        """Copy the whole model, or its part into a plain module: a part without the pool could not be trained."""
        return copied(self, memo)

    def __prepare_scriptable__(self) -> Any:
        raise PlanError(f"torch.jit does not take compressed models, torch.export does: {ADVICE}")

    def __reduce_package__(self, exporter: Any) -> Any:
        raise PlanError(f"torch.package does not take compressed models, torch.save does: {ADVICE}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_whole(self):
            self.__dict__[STORE].whole.add(threading.get_ident())
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        make, args, *rest = reduced
        if make is not copyreg.__newobj__ or args[0] is not type(self):  # type: ignore[attr-defined]
            raise pickle.PicklingError(f"{type(self).__name__} has its own way of pickling: {ADVICE}")
        return (_revive, (type(self)._smh_made_of, *args[1:]), *rest)  # type: ignore[attr-defined]

    def _save_to_state_dict(self, *args: Any) -> None:
        if NAMES in self.__dict__:
            check_whole(self.__dict__[STORE], "the state_dict of a part of a compressed model lacks the pool")
        super()._save_to_state_dict(*args)  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        *_, unexpected, errors = args
        for attribute in self.__dict__.get(NAMES, ()):
            if (x := state_dict.get(prefix + attribute)) is None:
                continue
            if isinstance(x, torch.Tensor) and x.shape == (0,):  # of save_pretrained, see huggingface.py
                unexpected[:] = [name for name in unexpected if name != prefix + attribute]
            else:
                errors.append(
                    f"{prefix + attribute!r} is generated and cannot be loaded: load the variables, or fit new ones "
                    "to a pretrained plain model with smh.fit"
                )


class _Root(_Generated):
    """A compressed model, whose state names the plan."""

    def extra_repr(self) -> str:
        """Return what the model's own class tells of it, and a line on the plan."""
        lines = (super().extra_repr(), f"smh: {one_line(self.__dict__[STORE].compression)}")
        return "\n".join(filter(None, lines))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the whole model, unless layers were moved, whose weights it would name wrongly."""
        store = self.__dict__[STORE]
        check_places(store)
        store.whole.add(threading.get_ident())
        try:
            return super().state_dict(*args, **kwargs)  # type: ignore[misc]
        finally:
            store.whole.discard(threading.get_ident())

    def get_extra_state(self) -> Any:
        """Return the fingerprint of the plan, and what the model's own class stores besides."""
        own = super().get_extra_state() if _has_extra_state(self) else None  # type: ignore[misc]
        plan = self.__dict__[STORE].compression.plan
        named = frozen.state(plan, self.__dict__[STORE].exponents or {})
        return named if own is None else {"plan": named, "own": own}

    def set_extra_state(self, state: Any) -> None:
        """Give the model's own class what it stored; the fingerprint has been compared before."""
        store, named = self.__dict__[STORE], state.get("plan") if isinstance(state, dict) else state
        if store.compression.frozen:
            store.exponents = frozen.exponents_of(store.compression.plan, named)
        if _has_extra_state(self):
            super().set_extra_state(state.get("own") if isinstance(state, dict) else None)  # type: ignore[misc]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state, or leave the model as it was."""
        store = self.__dict__[STORE]
        before = store.exponents
        try:
            with restored_on_error(self):
                return super().load_state_dict(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            store.exponents = before
            raise

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        store, key = self.__dict__[STORE], f"{prefix}_extra_state"
        check_places(store)
        _, first = next(iter(store.slots.values()))
        if key in state_dict:
            state = state_dict[key]
            x: Any = state.get("plan") if isinstance(state, dict) else state
            frozen.check_state(store.compression.plan, store.compression.frozen, x, _BY_PLAN)
        elif f"{prefix}{first}" in state_dict:  # else there is nothing to name a plan for
            if store.compression.frozen:
                frozen.check_state(store.compression.plan, True, None, _BY_PLAN)
            warn(
                f"the state_dict does not say by which plan it generates weights ({key!r} is missing): under "
                f"another plan than this model's, they would differ. If in doubt, {_BY_PLAN}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Recurrent(_Generated):
    """A recurrent layer, which keeps a list of its weights, too."""

    @property
    def _flat_weights(self) -> list[Any]:
        places = getattr(self.__dict__.get(STORE), "slots", {}).values()
        if not places or any("_parameters" not in module.__dict__ for module, _ in places):  # a copy is put together
            return []
        return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore[attr-defined]

    @_flat_weights.setter
    def _flat_weights(self, weights: Any) -> None:
        """Keep nothing: the list is made when it is read."""

    def _update_flat_weights(self) -> None:
        """Do nothing: the list is always made anew."""

    def flatten_parameters(self) -> None:
        """Do nothing: what cuDNN would lay out anew is built anew."""


class _List(_Generated):
    """A list of parameters, whose slices hold generated weights themselves, and no parameters of their values."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)  # type: ignore[misc]
        found = plain_class(self)()
        for i in range(len(self))[index]:  # type: ignore[arg-type]
            if str(i) in self.__dict__.get(NAMES, ()):
                found.__dict__[str(len(found))] = self[i]
                found._size += 1
            else:
                found.append(self[i])
        return found


def _reader(attribute: str) -> property:
    def read(module: Any) -> Any:
        try:
            return module.__dict__[STORE].weight(module.__dict__[NAMES][attribute])
        except AttributeError as error:  # which would be taken for a missing attribute
            raise RuntimeError(f"{attribute!r} cannot be generated: {error}") from error

    return property(read, doc="A generated weight.")


@functools.cache
def generated_class(base: type, attributes: tuple[str, ...], root: bool) -> type:
    """Return a subclass of a module's class with generated weights as attributes; ``root`` is the model itself."""
    from smh.backends.torch import huggingface

    mixins: list[type] = [_Root] if root else []
    mixins += [_Recurrent] if issubclass(base, nn.RNNBase) else [_List] if issubclass(base, nn.ParameterList) else []
    members: dict[str, Any] = {attribute: _reader(attribute) for attribute in attributes}
    members |= {name: _no_reset(name) for name in _RESETS if hasattr(base, name)}
    if hasattr(base, "__deepcopy__"):  # it would copy the module as it knows it
        members["__deepcopy__"] = _no_copy
    members |= (own := huggingface.members(base))
    if root:
        members |= {name: _keeping(method) for name, method in {**_methods(base), **own}.items()}
    about = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    members["_smh_made_of"] = base, attributes, root
    return type(base.__name__, (*(mixins or [_Generated]), base), {**about, **members})


def _methods(base: type) -> dict[str, Any]:
    """Return the public methods that a model's classes have besides those of every module."""
    found: dict[str, Any] = {}
    for cls in base.__mro__:
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            found = {**vars(cls), **found}
    return {
        name: x
        for name, x in found.items()
        if inspect.isfunction(x) and not name.startswith("_") and name != "forward" and not hasattr(nn.Module, name)
    }


def _keeping(method: Any) -> Any:
    """Return a method whose passes and readings share weights: so ``generate`` builds them once."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        store = self.__dict__.get(STORE)
        if store is None or not store.keep():
            return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        finally:
            store.leave()

    return run


def _no_reset(name: str) -> Any:
    def reset(module: Any, *args: Any, **kwargs: Any) -> None:
        raise refused(f"{type(module).__name__}.{name} cannot set values")

    return reset


def _no_copy(module: Any, memo: Any) -> Any:
    raise PlanError(f"{type(module).__name__} has its own way of copying, which knows no generated weights: {ADVICE}")


def _has_extra_state(module: Any) -> bool:
    """Say whether a module's own class stores more than tensors."""
    return plain_class(module).get_extra_state is not nn.Module.get_extra_state


def _revive(made_of: tuple[type, tuple[str, ...], bool], *args: Any) -> Any:
    cls = generated_class(*made_of)
    return cls.__new__(cls, *args)
