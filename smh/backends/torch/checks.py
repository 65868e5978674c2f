"""What a compressed model checks about itself: its layers may have been moved, frozen, or trained without the pool."""

from __future__ import annotations

from typing import Any

from torch import nn

from smh.backends.torch.copies import NAMES, STORE
from smh.backends.torch.store import Store
from smh.errors import PlanError
from smh.models import compression
from smh.text import some


def check_places(store: Store) -> None:
    """Raise :class:`~smh.PlanError` if a layer was replaced, removed or moved, so that a file would name it wrongly."""
    places: dict[str, list[str]] = {}
    for prefix, module in store.root.named_modules(remove_duplicate=False):
        if module.__dict__.get(STORE) is store:
            for attribute, weight in module.__dict__.get(NAMES, {}).items():
                places.setdefault(weight, []).append(f"{prefix}.{attribute}" if prefix else attribute)
    gone = [name for name in store.weights if not any(_is_at(place, name) for place in places.get(name, ()))]
    if gone:
        raise PlanError(
            f"the plan generates {some(gone)}, but since compression these layers were replaced, removed or moved, so "
            "no model could read a file of this one. Edit a model before smh.compress; or turn this one back with "
            "smh.materialize_(model), which keeps the edits, and start again with smh.fit or smh.compress"
        )


def _is_at(place: str, name: str) -> bool:
    """Say whether a place is that of a name, perhaps within layers that were put around it, as by adapters."""
    first, *rest = name.split(".")
    now, *inner = place.split(".")
    steps = iter(inner)
    return first == now and all(step in steps for step in rest)


def not_compressed(model: Any) -> PlanError:
    """Return the error for what is no compressed model, which says where one is."""
    kind = type(model).__name__
    if STORE in getattr(model, "__dict__", ()):
        whole = type(model.__dict__[STORE].root).__name__
        return PlanError(f"this {kind} is a part of a compressed {whole}, which owns the pool: give the whole model")
    if isinstance(model, nn.Module) and (inside := compressed_parts(model)):
        return PlanError(
            f"this {kind} is not compressed itself, but has compressed models in it: {some(inside)}. Give one of these, "
            f"for example model.get_submodule({inside[0]!r})"
        )
    return compression.not_compressed(model)


def compressed_parts(model: nn.Module) -> list[str]:
    """Return the names of the compressed models inside of a model, in order."""
    modules = list(model.named_modules())
    return [name for name, module in modules if (store := module.__dict__.get(STORE)) and store.root is module]
