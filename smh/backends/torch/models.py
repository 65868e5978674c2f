"""Compressed ``torch.nn.Module``: the user's own classes, with generated weights in the place of parameters."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from smh.backends.torch import frozen
from smh.backends.torch.adapter import backend
from smh.backends.torch.checks import check_places, compressed_parts, not_compressed
from smh.backends.torch.copies import NAMES, STORE, plain_class, plain_parameters
from smh.backends.torch.discovery import discover, in_state
from smh.backends.torch.empty import allocate
from smh.backends.torch.generated import Registered, generated_class
from smh.backends.torch.narrow import kernels_for
from smh.backends.torch.references import check_alone, instances, left_behind
from smh.backends.torch.restoring import restored_on_error
from smh.backends.torch.sharded import check_uncut, cut_like, whole
from smh.backends.torch.store import Store, find_store
from smh.core.arguments import explained_in
from smh.core.plan import Plan
from smh.core.rate import kept_rate, rate
from smh.core.warning import warn
from smh.errors import CheckpointError, PlanError
from smh.files.checkpoint import Checkpoint
from smh.files.integers import Integers
from smh.models.adapter import ModelAdapter, Values
from smh.models.compression import Compression, ModelTensor, check_gradients, check_residency, check_trains
from smh.models.frameworks import check_framework, check_model
from smh.models.roles import complete

_FRESH = "_smh_fresh"
"""What a copy is marked with until it is compressed: no other module can hold a part of it."""


class TorchModels(ModelAdapter):
    """Modules; ``install`` and ``assign`` change the one that they are given."""

    backend = backend

    def compression(self, model: Any) -> Compression | None:
        """Return how a model was compressed, also if a wrapper holds the whole model."""
        return getattr(find_store(model), "compression", None)

    def not_compressed(self, model: Any) -> PlanError:
        """Return the error for a model that is not compressed itself, which says where to look."""
        return not_compressed(model)

    def tensors(self, model: Any, plan: Plan | None = None) -> tuple[ModelTensor, ...]:
        """Return all parameters and buffers, once each."""
        if not isinstance(model, nn.Module):
            raise PlanError(f"a model is a torch.nn.Module; got {type(model).__name__}")
        if STORE in model.__dict__:
            whole = find_store(model) is not None
            what = "compressed already" if whole else "a part of a model that is compressed already"
            raise PlanError(f"the model is {what}: turn the whole model back first, by smh.materialize_")
        if compressed := compressed_parts(model):
            raise PlanError(
                f"the model is compressed already ({', '.join(compressed)}): turn that back first, for example "
                f"smh.materialize_(model.get_submodule({compressed[0]!r}))"
            )
        if "_orig_mod" in model._modules:
            raise PlanError("the model comes from torch.compile: compress the original, then compile the result")
        return complete(found.tensor for found in discover(model, plan).values())

    def values(self, model: nn.Module, plan: Plan | None = None) -> Mapping[str, np.ndarray]:
        """Return present values, float32."""
        free = {name: one.x for name, one in discover(model, plan).items() if not one.tensor.kept}
        return Values(free, lambda x: backend.to_numpy(x.detach().to(torch.float32)), lambda x: not x.is_meta)

    def layers(self, model: nn.Module) -> Mapping[str, Collection[type]]:
        """Return the classes of modules, by the names of parameters and buffers in them."""
        classes: dict[int, set[type]] = defaultdict(set)
        for module in model.modules():
            for x in (*module.parameters(), *module.buffers()):
                classes[id(x)].add(type(module))
        found = discover(model).items()
        return {name: classes[id(getattr(*one.sites[0]))] for name, one in found}

    def place_of(self, model: nn.Module, part: Any) -> str | None:
        """Return the name of a module or parameter."""
        return next((name for name, x in (*model.named_modules(), *model.named_parameters()) if x is part), None)

    def restored_on_error(self, model: Any, values: bool = True) -> AbstractContextManager[Any]:
        """Return a context that undoes all changes if it ends in an error."""
        return restored_on_error(model, values)

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a deep copy."""
        _warn_of_optimizers(model, "the model from which this one is made")
        try:
            copied = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise PlanError(f"the model cannot be copied (smh.compress_ compresses it in place): {error}") from error
        for mine, its in zip(copied.parameters(), model.parameters(), strict=True):
            vars(mine).update(vars(its))  # which copying forgets
        if (left := left_behind(model, copied)) is not None:
            what = f"{left[0]!r} would go on using the {left[1]} of the original"
            raise PlanError(f"the model cannot be copied (smh.compress_ compresses it in place): {what}")
        vars(copied)[_FRESH] = True
        return copied

    def install(self, model: nn.Module, compression: Compression) -> nn.Module:
        """Put parameters for variables, all zero, in the place of those that are generated."""
        plan = compression.plan
        found = discover(model, plan)
        generated = {tensor.name: found[tensor.name] for tensor in plan.tensors}
        for name, holder in generated.items():
            if missing := [part for part in holder.parts if part not in generated]:
                parts = f"{len(holder.parts)} matrices, all of which are generated or none"
                has, lacks = name.rpartition(".")[2], ", ".join(map(repr, missing))
                raise PlanError(f"{holder.whole!r} is one parameter of {parts}; the plan has {has!r} and lacks {lacks}")
        slots = {f"pool/{name}": (model, re.sub("[/.]", "_", f"pool_{name}")) for name in plan.pool.variable_shapes()}
        for tensor in plan.tensors:
            holder = generated[tensor.name]
            module, attribute = holder.sites[0]
            part = tensor.name.removeprefix(holder.whole).replace(".", "_")
            if tensor.learn_scale:
                slots[tensor.scale_variable] = module, f"{attribute}{part}_scale"
        for module, attribute in slots.values():
            if hasattr(module, attribute):
                what = f"{type(module).__name__} has an attribute {attribute!r}, which a variable needs"
                raise PlanError(f"{what}: rename it, or exclude the tensor")
        read: dict[nn.Module, dict[str, str]] = {model: {}}
        for holder in generated.values():
            for module, attribute in holder.sites:
                read.setdefault(module, {})[attribute] = holder.whole
        if not vars(model).pop(_FRESH, False):
            check_alone(model, {module for module, names in read.items() if names})
        own_copy = {module for module in model.modules() if hasattr(module, "__deepcopy__")}
        for module in model.modules():  # those that hold them notice that they are called by themselves
            if module not in own_copy and any(part in read for part in module.modules()):
                read.setdefault(module, {})
        order = {module: tuple(module._parameters) for module in read}
        weights = {holder.whole: holder.parts for holder in generated.values()}
        store = Store(model, compression, slots, order, weights)
        like = next(iter(generated.values())).x.detach()
        for module, names in read.items():
            for attribute in names:
                store.attributes[names[attribute]] = vars(module._parameters[attribute])
                del module._parameters[attribute]
            module.__dict__.pop("_flat_weights", None)  # the list of parameters that a recurrent layer keeps
        held = frozen.buffers(plan, like) if compression.frozen else {}
        store.exponents = frozen.no_exponents(plan) if compression.frozen else None
        for name, (module, attribute) in slots.items():
            if name in held:
                module.register_buffer(attribute, held[name])
                continue
            shape = plan.variable_shapes[name] or (1,)  # libraries that shard parameters take none without axes
            module.register_parameter(attribute, nn.Parameter(like.new_zeros(shape)))
        for module, names in read.items():
            module.__dict__[STORE] = store
            if names:
                module.__dict__[NAMES] = names
                module.__dict__["_parameters"] = Registered(module._parameters, frozenset(names))
            cls: Any = type(module)
            module.__class__ = generated_class(cls, tuple(names), module is model)
        return frozen.finished(model) if compression.frozen else model

    def variables(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the variables, detached; they may alias the model's."""
        store = _store(model)
        check_places(store)
        found = {name: x.detach() for name, x in store.variables().items()}
        return copy.deepcopy(found) if store.cut else found  # a whole tensor is freed when it is sharded again

    def rate(self, model: nn.Module, kept_bits: int | None) -> torch.Tensor:
        """Return the rate, with gradients of the parameters."""
        store = _store(model)
        variables = store.variables()
        kernels = kernels_for(next(iter(variables.values())))
        total = rate(kernels, store.compression.plan, variables, torch.Tensor.detach)
        if kept_bits is None:
            return total
        own = {id(x) for x in store.parameters().values()}
        kept = [whole(x).to(total.device) for x, _ in in_state(store.root) if id(x) not in own]
        return total + kept_rate(kernels, kept, kept_bits, torch.Tensor.detach)

    def kept(self, model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
        """Return the tensors of ``state_dict`` besides variables, by first name; they alias the model's."""
        store = find_store(model)
        if store is not None:
            check_places(store)
            named = store.root.state_dict(keep_vars=True)
            seen = {id(x) for x in store.parameters().values()}
            state = named.pop("_extra_state")  # the fingerprint of the plan, which the file holds itself
            if isinstance(state, dict):
                named["_extra_state"] = state["own"]
        else:
            named, found = model.state_dict(keep_vars=True), discover(model, plan)
            places = [found[tensor.name].sites[0] for tensor in plan.tensors]
            seen = {id(module._parameters[attribute]) for module, attribute in places}
        stored = {}
        for name, x in named.items():
            if not isinstance(x, torch.Tensor):
                raise CheckpointError(f"a checkpoint holds tensors; the model's {name!r} is {type(x).__name__}")
            if is_lazy(x):
                raise PlanError(f"the shape of {name!r} is not known yet: call the model once")
            if id(x) not in seen:
                seen.add(id(x))
                stored[name] = x.detach()
        return stored

    def assign(
        self, model: nn.Module, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
    ) -> nn.Module:
        """Copy values into the parameters and buffers of a model."""
        store = _store(model)
        if kept:
            _load(store.root, kept)
        with torch.no_grad():
            for name, x in store.parameters().items():
                x.copy_(cut_like(x, backend.asarray(variables[name], "cpu").reshape(x.shape)))
        return model

    def fill(self, model: nn.Module, variables: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> nn.Module:
        """Copy values, for which a model on the meta device gets memory."""
        allocate(_store(model).root)
        return self.assign(model, variables, kept)

    def freeze(self, model: nn.Module, integers: Integers) -> nn.Module:
        """Return a copy with buffers."""
        store = _store(model)
        check_uncut(store.root, store.parameters().values(), "frozen")
        return frozen.frozen_copy(model, integers)

    def fill_frozen(self, model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
        """Copy the values of a file into buffers, for which a model on the meta device gets memory."""
        store, integers = _store(model), checkpoint.integers
        assert integers is not None  # of a file that was read for a frozen model
        allocate(store.root)
        if checkpoint.dense:
            _load(store.root, checkpoint.dense)
        frozen.fill(store, checkpoint.variables, integers)
        return model

    def materialize(self, model: nn.Module) -> nn.Module:
        """Return a copy with parameters."""
        store = _store(model)
        check_uncut(store.root, store.parameters().values(), "materialized")
        return materialize_(copy.deepcopy(model))

    def in_place(self, model: nn.Module) -> ModelAdapter:
        """Return the adapter for a model that may change."""
        return ModelsInPlace()

    def built(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which weights are built once."""
        return _store(model).built()


class ModelsInPlace(TorchModels):
    """Modules that are compressed themselves, and not a copy of them."""

    def copy(self, model: nn.Module) -> nn.Module:
        """Return the module."""
        _warn_of_optimizers(model, "this model before it was compressed")
        return model

    def materialize(self, model: nn.Module) -> nn.Module:
        """Return the module with parameters."""
        return materialize_(model)


adapter = TorchModels()


def materialize_(model: nn.Module) -> nn.Module:
    """Turn a compressed model back into a plain one; see :func:`smh.materialize_`."""
    store = _store(model)
    check_uncut(store.root, store.parameters().values(), "materialized")
    changed = [name for name, module in store.root.named_modules() if STORE in vars(module) and not _is_own(module)]
    if changed:
        raise PlanError(
            f"the class of {changed[0]!r} was changed after compression: undo that first, for example by "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    with torch.no_grad():
        weights = store.build()
    parameters = {name: nn.Parameter(weight, weight.requires_grad) for name, weight in weights.items()}
    for name, attributes in store.attributes.items():
        vars(parameters[name]).update(attributes)
    with restored_on_error(store.root, values=False):
        _turn_back(store, model, parameters)
    return model


def _turn_back(store: Store, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    own = {module: plain_parameters(module, parameters) for module in store.order}
    if store.exponents is not None:
        for module, attribute in store.slots.values():
            module._buffers.pop(attribute, None)
    for module in dict.fromkeys((*store.order, model)):  # the model itself may be a shallow copy
        module.__dict__.pop(NAMES, None)
        del module.__dict__[STORE]
        module.__class__ = plain_class(module)
        if module in own:
            module.__dict__["_parameters"] = own[module]
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    model.__dict__["_parameters"] = store.root._parameters


@explained_in("smh.torch")
def set_residency(model: nn.Module, residency: str) -> None:
    """Change when the weights of a compressed model are built; their bits stay the same.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model.
    residency : str
        ``"full"``, ``"cached"`` or ``"layer"``; see :func:`smh.compress`. With ``"cached"``, each pass compares the
        variables with those of the kept weights. With ``"layer"``, gradients of weights still arrive together, as those
        of a plain model do; ``torch.compile`` plans memory itself.

    Raises
    ------
    PlanError
        If the residency is unknown, or the model is not compressed.
    """
    store = _store(model)
    store.compression = replace(store.compression, residency=check_residency(residency))
    store.cache = store.packed = None


@explained_in("smh.torch")
def set_gradients(model: nn.Module, gradients: str) -> None:
    """Change how gradients of a compressed model are computed; its weights stay the same.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model.
    gradients : str
        ``"exact"`` or ``"fast"``; see :func:`smh.compress`.

    Raises
    ------
    PlanError
        If the kind of gradients is unknown, or the model is not compressed.

    Examples
    --------
    >>> import torch
    >>> from smh import torch as smh
    >>> model = smh.compress(torch.nn.Linear(40, 30), ratio=0.1)
    >>> smh.set_gradients(model, "fast")
    >>> smh.report(model).gradients
    'fast'
    """
    store = _store(model)
    check_trains(store.compression, "has no gradients")
    store.compression = replace(store.compression, gradients=check_gradients(gradients))


def _is_own(module: nn.Module) -> bool:
    """Say whether the class of a module is still the one that it got when it was compressed."""
    return "_smh_made_of" in vars(type(module))


def _load(root: nn.Module, kept: Mapping[str, np.ndarray]) -> None:
    """Load kept tensors by PyTorch's own method: some modules derive more from their state."""
    state = root.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, x in list(state.items()):
        source = first.setdefault(id(x), name)  # tied tensors are stored once
        if source in kept:
            state[name] = cut_like(x, backend.asarray(kept[source], "cpu"))
    if "_extra_state" in kept:
        state["_extra_state"] = {"plan": root.get_extra_state()["plan"], "own": state["_extra_state"]}
    try:
        root.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{type(root).__name__} does not load what the file holds: {error}") from error


def _store(model: Any) -> Store:
    store = find_store(model)
    if store is None:
        check_model(model)
        check_framework(model, backend.name)
        raise not_compressed(model)
    return store


def _warn_of_optimizers(model: nn.Module, whose: str) -> None:
    """Warn where an optimizer holds parameters that it could take for those of the compressed model."""
    own = {id(x) for x in model.parameters() if x.ndim >= 2}
    for candidate in instances(torch.optim.Optimizer):
        if any(id(x) in own for group in candidate.param_groups for x in group["params"]):
            warn(
                f"{type(candidate).__name__} holds parameters of {whose}, and will not train the compressed model: "
                "build the optimizer after smh.compress, with the parameters of the compressed model"
            )
