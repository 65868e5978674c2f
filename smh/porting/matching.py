"""Matching: proposes a mapping from hints, shapes, names and, if allowed, the order of layers."""

from __future__ import annotations

import collections.abc
import importlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from smh.core.arguments import explained_in
from smh.core.checks import check_flag
from smh.errors import PlanError, PortError, near_names
from smh.files.checkpoint import CARRIED
from smh.models.frameworks import check_keras
from smh.porting.entries import Entry, Shape, Source
from smh.porting.features import OPTIONS, check_answers, feature_axes, layout, turned
from smh.porting.layers import DEFAULTS, Layer, Slot, Structure, numbered
from smh.porting.mapping import Mapping
from smh.porting.pairing import certain_pairs, rest

if TYPE_CHECKING:  # imported only for type checking: it slows down the import of the library
    from rich.console import Group

_DESCRIBERS = {"keras": "smh.backends.tensorflow.structure", "torch": "smh.backends.torch.structure"}
_OTHERS = "smh.backends.jax.structure"  # any pytree


@dataclass(frozen=True)
class Ambiguity:
    """An ambiguity of a match.

    Attributes
    ----------
    targets : tuple of str
        Layers, or tensors, of the target.
    sources : tuple of str
        Their possible sources.
    why : str
        The reason, and a way to resolve it.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{', '.join(self.targets) or 'nothing'} <- {' or '.join(self.sources) or 'nothing'}: {self.why}"


@dataclass(frozen=True)
class Match:
    """The result of :func:`match`, printed by rich as a table.

    Attributes
    ----------
    proposed : Mapping
        The unambiguous part of the mapping.
    ambiguous : tuple of Ambiguity
        The ambiguities. While there are any, :attr:`mapping` raises an error.
    notes : tuple of str
        Settings that differ but must agree in both models, such as the epsilon of a normalization.
    """

    proposed: Mapping
    ambiguous: tuple[Ambiguity, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        """The mapping.

        Raises
        ------
        PortError
            If anything is ambiguous.
        """
        if self.ambiguous:
            cases = "; ".join(map(str, self.ambiguous[:5]))
            more = f"; and {len(self.ambiguous) - 5} more" if len(self.ambiguous) > 5 else ""
            raise PortError(f"the match is ambiguous: pass hints for {cases}{more}")
        return self.proposed

    def __str__(self) -> str:
        """Return the mapping and the ambiguities."""
        return "\n".join([*([str(self.proposed)] if self.proposed.tensors else []), *self._remarks()])

    def __rich__(self) -> Group:
        """Return a table and the ambiguities."""
        from rich.console import Group
        from rich.text import Text

        styles = ["bold red"] * len(self.ambiguous) + [""] * len(self.notes)
        return Group(self.proposed.__rich__(), *map(Text, self._remarks(), styles))

    def _remarks(self) -> list[str]:
        return [f"ambiguous: {case}" for case in self.ambiguous] + [f"note: {note}" for note in self.notes]


@explained_in("smh.porting")
def match(
    source: Any,
    target: Any,
    *,
    hints: collections.abc.Mapping[str, Any] | None = None,
    in_order: bool = False,
    flatten: collections.abc.Mapping[str, Shape | None] | None = None,
    unflatten: collections.abc.Mapping[str, Shape | None] | None = None,
) -> Match:
    """Propose the mapping from one model to another, of any frameworks.

    Layers match if they have the same kind and the same shape in a neutral layout. Among several such layers, names
    decide, and a single remaining pair matches. All other cases are listed as ambiguous; nothing is guessed.

    Parameters
    ----------
    source, target : torch.nn.Module, keras.Model, flax.nnx.Module, or a pytree such as an Equinox module
        Models, or parameters, compressed or not. Keras models must be built. An ``nnx.Module`` stands for
        ``nnx.state(module, (nnx.Param, nnx.BatchStat))``.
    hints : mapping of str, optional
        For layers of the target, layers of the source; for tensors of the target, values as in :meth:`Mapping.build`.
        Hints take precedence.
    in_order : bool
        Whether layers that neither shapes nor names distinguish have the same order in both models. Not allowed if the
        order may be alphabetical, as in a state or a copy of a Flax module, unless Flax Linen numbered the layers, as
        in ``Conv_0`` and ``Conv_1``.
    flatten : mapping of str to tuple of int or None, optional
        By layer of either model, the channels and sizes ``(c, h, w)`` of the flattened image at its input; None if the
        pixels have the same order in both models. Needed if images have channels first in one model and last in the
        other, and no graph gives the shape, unlike in Keras models.
    unflatten : mapping of str to tuple of int or None, optional
        The same for outputs that are reshaped to an image.

    Returns
    -------
    Match
        Its ``mapping`` is available if nothing is ambiguous.

    Raises
    ------
    PortError
        If a hint has an unknown name or does not fit, or ``flatten`` or ``unflatten`` has no effect.
    BackendError
        If a Keras model runs on a backend other than TensorFlow.

    Examples
    --------
    >>> import numpy as np
    >>> source = {name: {"kernel": np.ones((3, 4))} for name in ("first", "second", "out")}
    >>> target = {name: {"kernel": np.ones((3, 4))} for name in ("a", "b", "out")}
    >>> print(match(source, target))  # doctest: +ELLIPSIS
    out/kernel <- out/kernel
    ambiguous: a, b <- first or second: these have the same shape, and their names leave open which is which: ...
    >>> print(match(source, target, hints={"a": "first"}))
    a/kernel <- first/kernel
    b/kernel <- second/kernel
    out/kernel <- out/kernel
    """
    check_flag("in_order", in_order)
    for what, given in (("hints", hints), ("flatten", flatten), ("unflatten", unflatten)):
        if not isinstance(given, collections.abc.Mapping | None):
            raise PortError(f"{what} must be a mapping by the names of layers; got {type(given).__name__}")
    answers = {"reads": flatten or {}, "gives": unflatten or {}}
    finder = _Finder(describe(source), describe(target), answers)
    finder.pair_layers(*finder.take_hints(hints or {}), in_order)
    return finder.result()


def describe(model: Any) -> Structure:
    """Return the structure of a model, by the backend of its framework; raises PortError for any other object."""
    check_keras(model, "tensorflow")
    roots = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    module = next((name for root, name in _DESCRIBERS.items() if root in roots), _OTHERS)
    try:
        structure: Structure = importlib.import_module(module).describe(model)
    except PlanError as error:
        raise PortError(f"the model has no tensors, or its kind is not supported: {error}") from error
    if not structure.layers:
        raise PortError(f"the model has no tensors; got {type(model).__name__}")
    return structure


@dataclass
class _Finder:
    """A search for a mapping: first pairs of layers, then the entries of their tensors."""

    source: Structure
    target: Structure
    answers: collections.abc.Mapping[str, collections.abc.Mapping[str, Shape | None]]  # by option
    pairs: list[tuple[Layer, Layer]] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    parts: dict[str, dict[tuple[int, int], Entry]] = field(default_factory=lambda: defaultdict(dict))
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    ambiguous: list[Ambiguity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for which, answers in self.answers.items():
            check_answers(which, answers, self.source, self.target)

    def take_hints(self, hints: collections.abc.Mapping[str, Any]) -> tuple[list[Layer], list[Layer]]:
        """Apply the hints, and return the remaining layers of both models."""
        sources = {layer.name: layer for layer in self.source.layers}
        targets = {layer.name: layer for layer in self.target.layers}
        tensors = {}
        for name, value in hints.items():
            if name in self.target.shapes:
                tensors[name] = value
            elif name not in targets:
                names = [*targets, *self.target.shapes]
                raise PortError(f"the target has no layer or tensor {name!r}: {near_names(name, names)}")
            elif not isinstance(value, str) or value not in sources:
                raise PortError(f"the source has no layer {value!r} for {name!r}: {near_names(str(value), sources)}")
            elif not targets[name].fits(sources[value]):
                one, other = _told(targets[name]), _told(sources[value])
                raise PortError(f"{name!r} cannot come from {value!r}: the target is {one}, the source is {other}")
            else:
                self.pairs.append((sources[value], targets[name]))
        mapping = Mapping.build(tensors, self.source.shapes)
        mapping.check(target={name: self.target.shapes[name] for name in tensors})
        self.entries |= mapping.tensors
        hinted = {id(layer) for pair in self.pairs for layer in pair}
        left, right = (
            [rest for layer in layers if id(layer) not in hinted and (rest := layer.without(names))]
            for layers, names in ((self.source.layers, mapping.source_shapes), (self.target.layers, mapping.shapes))
        )
        return left, right

    def pair_layers(self, sources: Sequence[Layer], targets: Sequence[Layer], in_order: bool) -> None:
        """Pair layers by shapes, names and, if allowed, order."""
        groups: dict[Any, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
        for layer in sources:
            if layer.kind == "state":
                self._carry(layer.slots.values())
            else:
                groups[layer.signature][0].append(layer)
        for layer in targets:
            if layer.kind == "state":
                self.entries |= {slot.name: _default(slot, 0.0) for slot in layer.slots.values()}
            else:
                groups[layer.signature][1].append(layer)
        lonely: list[Layer] = []
        for ones, others in groups.values():
            if not others:
                lonely += ones
            elif not ones:
                self._ask(others, (), others[0].problem or f"the source has no such layer: {_told(others[0])}")
            else:
                certain = certain_pairs(ones, others)
                left, right = rest(ones, others, certain)
                why = self._why_no_order(left, right, in_order) if left or right else ""
                self.pairs += certain if why else [*certain, *zip(left, right, strict=True)]
                if why:
                    self._ask(right, left, why)
        if lonely:
            self._ask((), lonely, lonely[0].problem or f"the target has no such layer: {_told(lonely[0])}")

    def _ask(self, targets: Iterable[Layer | Slot], sources: Iterable[Layer | Slot], why: str) -> None:
        self.ambiguous.append(Ambiguity(tuple(x.name for x in targets), tuple(x.name for x in sources), why))

    def _why_no_order(self, sources: Sequence[Layer], targets: Sequence[Layer], in_order: bool) -> str:
        """Return why the order of layers does not determine the pairs, or an empty string."""
        if not in_order:
            return (
                "these have the same shape, and their names leave open which is which: give hints={target: source}, "
                "or in_order=True if they have the same order in both models"
            )
        if len(sources) != len(targets) or not all(x.fits(y) for x, y in zip(sources, targets, strict=True)):
            return "the models have different numbers of these layers: give hints={target: source}"
        for what, structure, layers in (("source", self.source, sources), ("target", self.target, targets)):
            for one, other in pairwise(layers):
                parts = [layer.name.split("/") for layer in (one, other)]
                path = os.path.commonprefix([names[:-1] for names in parts])
                if "/".join(path) in structure.alphabetical and not numbered(*(names[len(path)] for names in parts)):
                    return (
                        f"the {what} lists {one.name!r} and {other.name!r} in alphabetical order, which may not be "
                        "that of the layers, as in a state or a copy of a Flax module: give hints={target: source} for "
                        "one of them, or more"
                    )
        return ""

    def result(self) -> Match:
        """Return the match, with the entries of all pairs in the order of the target."""
        for source, target in self.pairs:
            self._connect(source, target)
        for name, parts in self.parts.items():
            entries = [parts[k] for k in sorted(parts)]
            if len(entries) == 1:
                self.entries[name] = entries[0]
            elif any(entry.join for entry in entries):
                self.ambiguous.append(Ambiguity((name,), (), "one of its parts has no single source: give a hint"))
            else:
                self.entries[name] = Entry(tuple(entry.sources[0] for entry in entries), "concat")
        order = [*(name for name in self.target.shapes if name in self.entries), *self.entries]
        proposed = Mapping({name: self.entries[name] for name in order}, self.settings)
        if not self.ambiguous:
            proposed.check(self.source.shapes, self.target.shapes)
        return Match(proposed, tuple(self.ambiguous), tuple(self.notes))

    def _connect(self, source: Layer, target: Layer) -> None:
        """Add the entries of all tensors of a layer."""
        if problem := target.problem or source.problem:
            self._ask([target], [source], problem)
            return
        left = dict(source.slots)
        try:
            images = self._images(source, target)
            if source.separate != target.separate:
                source, target = (layer if layer.separate else layer.cut() for layer in (source, target))
                left = dict(source.slots)
            for role, slot in target.slots.items():
                roles = _roles(source, target, role)
                used = [source.slots[name] for name in roles if name in source.slots]
                left = {name: rest for name, rest in left.items() if name not in roles}
                if used:
                    rank, letters = len(slot.viewed_shape), source.letters(role)
                    turn = turned(rank, images.get(role.partition(".")[0], {}), self.target.channels_last)
                    sources = tuple(Source(x.name, x.shape, x.to(slot, turn, letters), x.part) for x in used)
                    entry = Entry(sources, "sum" if len(sources) > 1 else "")
                elif (base := role.partition(".")[0]) in DEFAULTS:
                    entry = _default(slot, DEFAULTS[base])
                else:
                    self._ask([slot], (), f"{source.name!r} has no {role}")
                    continue
                self.parts[slot.name][slot.part or (0, 1)] = entry
        except (PlanError, PortError) as error:
            self._ask([target], [source], str(error))
            return
        if "count" in left:
            self._carry([left.pop("count")])
        if left:
            self._ask([target], left.values(), "the layer of the target does not use these")
        self._compare_settings(source, target)

    def _images(self, source: Layer, target: Layer) -> dict[str, dict[int, Shape]]:
        """Return by role the axes of the neutral layout that are flattened images. Records questions as ambiguities."""
        images: dict[str, dict[int, Shape]] = defaultdict(dict)
        for which in OPTIONS:
            image, question = layout(which, source, target, (self.source, self.target), self.answers)
            if question:
                self._ask([target], [source], question)
            if image:
                for role, axis in feature_axes(target, which).items():
                    images[role.partition(".")[0]][axis] = image
        return images

    def _compare_settings(self, source: Layer, target: Layer) -> None:
        for key, own in target.settings.items():
            theirs = source.settings.get(key)
            if theirs is None:
                continue
            wanted = own.translated(theirs)
            self.settings.setdefault(target.name, {})[own.own] = wanted
            if not math.isclose(own.value, wanted, rel_tol=1e-6, abs_tol=1e-12):
                said = f"{theirs.own}={theirs.value:g} of {source.name!r}"
                self.notes.append(f"{target.name!r} has {own.own}={own.value:g}; {said} is {own.own}={wanted:g} there")

    def _carry(self, slots: Iterable[Slot]) -> None:
        self.entries |= {f"{CARRIED}{slot.name}": Entry((Source(slot.name, slot.shape),)) for slot in slots}


def _roles(source: Layer, target: Layer, role: str) -> tuple[str, ...]:
    """Return the roles of the source tensors whose sum is the target tensor of a role."""
    base, dot, gate = role.partition(".")
    first, second, both = (f"{name}{dot}{gate}" for name in ("bias_input", "bias_hidden", "bias"))
    alone = target.separate and second not in target.slots  # all gates of Flax Linen's GRU except the last
    if first in source.slots and (base == "bias" or (base == "bias_input" and alone)):
        return first, second
    return (both,) if base == "bias_input" and both in source.slots else (role,)


def _default(slot: Slot, value: float) -> Entry:
    part = "" if slot.part is None else f"[{slot.part[0]}]"
    return Entry((Source(f"{CARRIED}{slot.name}{part}", slot.part_shape, default=(value, slot.dtype)),))


def _told(layer: Layer) -> str:
    kind, *shapes = layer.signature
    return f"{kind} {' and '.join(' x '.join(map(str, shape)) for shape in shapes if shape)}"
