"""What a compressed model checks about itself: layers may have been moved or frozen, or be trained without the pool."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smh.backends.torch.copies import NAMES, STORE
from smh.backends.torch.saved import traced
from smh.core.plan import Plan
from smh.core.warning import warn
from smh.errors import PlanError, VariableError
from smh.models import compression, poison
from smh.text import some

if TYPE_CHECKING:
    from smh.backends.torch.store import Store

_FREEZE = (
    "the pool, from which its weights are generated, is trained by all layers together, so they would change. Freeze "
    "layers before smh.compress, which then keeps them as they are; or freeze all that is generated, such as by "
    "model.requires_grad_(False)"
)


def check_places(store: Store) -> None:
    """Raise :class:`~smh.PlanError` if a layer was replaced, removed or moved, so that files would name it wrongly."""
    places: dict[str, list[str]] = {}
    for prefix, module in store.root.named_modules(remove_duplicate=False):
        if module.__dict__.get(STORE) is store:
            for attribute, weight in module.__dict__.get(NAMES, {}).items():
                places.setdefault(weight, []).append(f"{prefix}.{attribute}" if prefix else attribute)
    gone = [name for name in store.weights if not any(_is_at(place, name) for place in places.get(name, ()))]
    if gone:
        raise PlanError(
            f"the plan generates {some(gone)}, but since compression these layers were replaced, removed or moved, so "
            "no model could read a file or a state_dict of this one. Edit a model before smh.compress; or turn this "
            "one back with smh.materialize_(model), which keeps the edits, and start again with smh.fit or smh.compress"
        )


def _is_at(place: str, name: str) -> bool:
    """Say whether a place is that of a name, perhaps within layers that were put around it, as by adapters."""
    first, *rest = name.split(".")
    now, *inner = place.split(".")
    steps = iter(inner)
    return first == now and all(step in steps for step in rest)


def not_compressed(model: Any) -> PlanError:
    """Return the error for a model that is not compressed, which names compressed models inside it."""
    kind = type(model).__name__
    if STORE in getattr(model, "__dict__", ()):
        whole = type(model.__dict__[STORE].root).__name__
        return PlanError(f"this {kind} is a part of a compressed {whole}, which owns the pool: pass the whole model")
    if isinstance(model, nn.Module) and (inside := compressed_parts(model)):
        return PlanError(
            f"this {kind} is not compressed itself, but has compressed models in it: {some(inside)}. Pass one of them, "
            f"for example model.get_submodule({inside[0]!r})"
        )
    return compression.not_compressed(model)


def compressed_parts(model: nn.Module) -> list[str]:
    """Return the names of the compressed models inside of a model, in order."""
    modules = list(model.named_modules())
    return [name for name, module in modules if (store := module.__dict__.get(STORE)) and store.root is module]


def trains(store: Store) -> bool:
    """Say whether the pool of a model is not frozen."""
    return any(x.requires_grad for x in _pool(store))


def check_freezing(store: Store, module: nn.Module, requires_grad: bool) -> None:
    """Raise :class:`~smh.VariableError` before a part is frozen whose weights would change; warn of the opposite."""
    what = f"a part of a compressed model, {type(module).__name__},"
    if not requires_grad and trains(store):
        raise VariableError(f"{what} cannot be frozen by itself: {_FREEZE}")
    if requires_grad and not trains(store):
        text = (
            f"{what} is unfrozen, but the pool is not: of its weights only scales are trained. Unfreeze the whole model"
        )
        warn(text)


def check_pass(store: Store, traced: bool) -> None:
    """Check at the start of a pass with gradients that the right parameters are trained."""
    if trains(store):
        _check_frozen(store)
        if not traced:
            _check_padding(store)
            if "training" not in store.told:
                _check_training(store)


def _check_frozen(store: Store) -> None:
    """Raise :class:`~smh.VariableError` if parameters say that a weight is frozen, while the pool is not."""
    scales = {name: x for name, x in store.parameters().items() if name.startswith("scale/")}
    fixed = [
        name.removeprefix("scale/") for name, x in scales.items() if type(x) is nn.Parameter and not x.requires_grad
    ]
    if fixed:
        raise VariableError(
            f"the scales of {some(fixed)} are frozen, but {_FREEZE}. learn_scale=False fixes scales only"
        )
    if len(scales) == len(store.compression.plan.tensors):
        return
    for module in store.order:  # of tensors without a scale only what lies beside them tells
        own = {name: x for name, x in module._parameters.items() if x is not None}
        if NAMES in module.__dict__ and own and not any(x.requires_grad for x in own.values()):
            prefix = next(name for name, x in store.root.named_modules() if x is module)
            before = {tensor.name for tensor in store.compression.tensors if "frozen" in tensor.kept}
            if not {f"{prefix}.{name}" for name in own} <= before:
                raise VariableError(
                    f"all parameters of the {type(module).__name__} {prefix!r} are frozen, but {_FREEZE}. To freeze "
                    "biases alone, freeze them before smh.compress"
                )


def _check_padding(store: Store) -> None:
    """Warn of rows for padding that are generated, which do not stay as they are."""
    for module in store.order if "padding" not in store.told else ():
        row = getattr(module, "padding_idx", None)
        if row is not None and module.__dict__.get(NAMES):
            text = (
                f"row {row} of {type(module).__name__} is generated (padding_idx={row}): it is not zero, and changes "
                "with the pool. Mask padded positions, or do not include the embedding"
            )
            _warn_once(store, "padding", text)
    store.told.add("padding")


def _check_training(store: Store) -> None:
    """Warn if gradients reach the pool but only other parameters are trained; check ever more rarely."""
    due, before = store.seen
    if store.backwards < due:
        return
    marks = {id(x): _mark(x) for x in store.root.parameters() if type(x) is nn.Parameter and not x.is_meta}
    changed = {key for key, mark in (before or {}).items() if marks.get(key, mark) != mark}
    pool = {id(x) for x in _pool(store)}
    if not pool.isdisjoint(changed) or not pool.issubset(marks):
        store.told.add("training")
    elif changed:
        text = (
            f"parts of a compressed {type(store.root).__name__} are trained, but not the pool of their weights: "
            "gradients arrive there, and no optimizer changes it. It belongs to the model: give the optimizer "
            "model.parameters() of that, or use layers of smh.materialize(model)"
        )
        _warn_once(store, "training", text)
    store.seen = (2 * store.backwards if before else store.backwards + 1), before or marks


def _mark(x: torch.Tensor) -> tuple[int, list[float]]:
    """Return a key that shows whether an optimizer changed a parameter; fused ones raise no version."""
    return 0 if x.is_inference() else x._version, x.detach().reshape(-1)[:8].tolist()


def check_finite(
    plan: Plan, variables: Callable[[], Mapping[str, torch.Tensor]], weights: Sequence[torch.Tensor]
) -> None:
    """Raise :class:`~smh.VariableError` if variables are poisoned; not where one would have to wait for a device.

    A poisoned variable makes whole weights NaN, so one number of each tells.
    """
    if traced() or any(type(w) is not torch.Tensor or w.device.type != "cpu" for w in weights):
        return
    with torch.no_grad():
        if any(math.isnan(w.as_strided((), ()).item()) for w in weights):
            poison.check(plan, {name: x.numpy(force=True) for name, x in variables().items()})


def check_whole(store: Store, what: str) -> None:
    """Warn of a call of one part alone, unless the whole model is running."""
    if threading.get_ident() not in store.whole:
        _warn_once(store, what, f"{what}: use the whole model, or a part of smh.materialize(model)")


def _warn_once(store: Store, what: str, text: str) -> None:
    """Warn, once for each model and kind of warning."""
    if what not in store.told:
        store.told.add(what)
        warn(text)


def _pool(store: Store) -> list[torch.Tensor]:
    return [x for name, x in store.parameters().items() if name.startswith("pool/")]
