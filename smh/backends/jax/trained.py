"""The nodes of a pytree, and the arrays that are not trained, by the type of a variable or by a collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

Path = tuple[Any, ...]
"""Keys of JAX that lead to a leaf."""


def walked(params: Any) -> Iterator[tuple[Path, tuple[tuple[Any, str], ...]]]:
    """Yield the path of each leaf of a pytree, and the nodes on the way, each with the name of the next one."""
    return _below(params, (), ())


def untrained(params: Any) -> dict[Path, str]:
    """Return the reasons why leaves are not trained, by their paths."""
    whys = {}
    for path, nodes in walked(params):
        if why := next(filter(None, (_kind(node) or _collection(node, name) for node, name in nodes)), ""):
            whys[path] = why
    return whys


def is_a(x: Any, package: str, *names: str) -> bool:
    """Say whether an object is of a class of a package, which need not be imported."""
    return any(cls.__name__ in names and cls.__module__.partition(".")[0] == package for cls in type(x).__mro__)


def _below(x: Any, path: Path, nodes: tuple[tuple[Any, str], ...]) -> Iterator[tuple[Path, Any]]:
    children, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    for key, child in children:
        if key:
            yield from _below(child, path + key, (*nodes, (x, jax.tree_util.keystr(key, simple=True))))
        else:
            yield path, nodes


def _kind(x: Any) -> str:
    """Return why nothing in an object is trained, or nothing."""
    if is_a(x, "flax", "Variable") and not is_a(x, "flax", "Param"):
        return f"it is a {type(x).__name__}, not a Param"
    if is_a(x, "equinox", "State", "StateIndex"):
        return "it is a state, not a parameter"
    if type(x).__module__.partition(".")[0] == "optax":
        return "it is the state of an optimizer"
    return ""


def _collection(x: Any, key: str) -> str:
    """Return why a child is not trained beside another one that is called ``params``, as in Flax Linen."""
    if key == "params":
        return ""
    if is_a(x, "flax", "TrainState"):
        return f"it is of {key!r} of a train state, not of its 'params'"
    if isinstance(x, Mapping) and not is_a(x, "flax", "State") and isinstance(x.get("params"), Mapping):
        return f"it is of the collection {key!r}, not of 'params'"
    return ""
