"""Matching: proposing the mapping between two models, from kinds of layers, shapes and names."""

from __future__ import annotations

import collections.abc
import importlib
from collections import defaultdict
from typing import Any

from smh.v2.errors import PortError
from smh.v2.porting.finder import Finder
from smh.v2.porting.found import Match
from smh.v2.porting.layers import Shape, Structure, words
from smh.v2.porting.mapping import Mapping

_DESCRIBERS = {"torch": "smh.v2.backends.torch.structure", "keras": "smh.v2.backends.tensorflow.structure"}
_OTHERS = "smh.v2.backends.jax.structure"  # any pytree


def match(
    source: Any,
    target: Any,
    *,
    hints: collections.abc.Mapping[str, Any] | None = None,
    in_order: bool = False,
    flatten: collections.abc.Mapping[str, Shape | None] | None = None,
) -> Match:
    """Propose the mapping from one model to another, in whatever frameworks they are.

    Layers match if they are of one kind and of one shape in a neutral layout. Where several are, their names decide,
    if every one of them has exactly one counterpart; what they leave open is listed, not guessed.

    Parameters
    ----------
    source, target : torch.nn.Module, keras.Model, flax.nnx.Module, or a pytree such as an Equinox module
        Models, or parameters, compressed or not. Keras models must be built. An ``nnx.Module`` stands for
        ``nnx.state(module, (nnx.Param, nnx.BatchStat))``.
    hints : mapping of str, optional
        For layers of the target, layers of the source. For tensors of the target, tensors of the source, tuples with a
        pattern and sizes, or whole entries, as in :meth:`Mapping.build`. They come before everything else.
    in_order : bool
        Layers that neither shapes nor names tell apart come in the same order in both models. Not taken for an answer
        where the order may be that of the alphabet, as in a state or a copy of a Flax module.
    flatten : mapping of str to tuple of int or None, optional
        By dense layer, of either model: channels and sizes ``(c, h, w)`` of the image whose flattened pixels are its
        inputs; None if they are no image. Needed where images have channels first in one model and last in the other,
        and the target does not show the shape itself, as a Keras model with a ``Flatten`` layer does.

    Returns
    -------
    Match
        Its ``mapping`` is there if nothing is ambiguous.

    Raises
    ------
    PortError
        If a hint names what is not there, or does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> source = {"first": {"kernel": np.ones((3, 4))}, "second": {"kernel": np.ones((3, 4))}}
    >>> target = {"a": {"kernel": np.ones((3, 4))}, "second": {"kernel": np.ones((3, 4))}}
    >>> print(match(source, target))  # doctest: +ELLIPSIS
    ambiguous: a, second <- first or second: these have the same shape, and their names leave open which is which: ...
    >>> print(match(source, target, hints={"a": "first"}))
    a/kernel <- first/kernel
    second/kernel <- second/kernel
    """
    finder = Finder(describe(source), describe(target), dict(flatten or {}))
    finder.take_hints(hints or {})
    finder.pair_layers(in_order)
    return finder.result()


def describe(model: Any) -> Structure:
    """Return the structure of a model, by the backend of its framework.

    Raises
    ------
    PortError
        If it is no model.
    """
    if isinstance(model, Structure):
        return model
    roots = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    module = next((name for root, name in _DESCRIBERS.items() if root in roots), _OTHERS)
    structure: Structure = importlib.import_module(module).describe(model)
    if not structure.layers:
        raise PortError(f"there are no tensors in what should be a model; got {type(model).__name__}")
    return structure


def doubts(mapping: Mapping) -> list[str]:
    """Return what in a mapping looks like an exchange: names that would fit better the other way round.

    Examples
    --------
    >>> shapes = {"up.weight": (4, 4), "down.weight": (4, 4)}
    >>> doubts(Mapping.build({"up/kernel": "down.weight", "down/kernel": "up.weight"}, shapes))
    ["'up/kernel' comes from 'down.weight', though there is 'up.weight' of the same shape"]
    """
    groups: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for target, entry in mapping.tensors.items():
        if entry.whole:
            source = entry.sources[0]
            groups[source.shape, source.view].append((target, source.name))
    found = []
    for pairs in groups.values():
        sources = {words(_layer_of(name)): name for _, name in pairs}
        exchanged: set[str] = set()
        for target, name in pairs:
            better = sources.get(words(_layer_of(target)), name)
            if better != name and words(_layer_of(target)) != words(_layer_of(name)) and better not in exchanged:
                found.append(f"{target!r} comes from {name!r}, though there is {better!r} of the same shape")
                exchanged |= {name}
    return found


def _layer_of(name: str) -> str:
    return name.replace(".", "/").rpartition("/")[0]
