"""How a match is found: hints first, then shapes, then names, then the order if it may count."""

from __future__ import annotations

import collections.abc
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from smh.core.views import View
from smh.errors import PlanError, PortError, near_names
from smh.files.checkpoint import CARRIED
from smh.porting.entries import Entry, Source
from smh.porting.found import Ambiguity, Match
from smh.porting.layers import DEFAULTS, Layer, Shape, Slot, Structure, words
from smh.porting.mapping import Mapping


@dataclass
class Finder:
    """The state of a search."""

    source: Structure
    target: Structure
    flatten: dict[str, Shape | None]
    entries: dict[str, Entry] = field(default_factory=dict)
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    ambiguous: list[Ambiguity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: list[tuple[Layer, Layer]] = field(default_factory=list)
    parts: dict[str, dict[tuple[int, int], Entry]] = field(default_factory=lambda: defaultdict(dict))

    def __post_init__(self) -> None:
        self.sources = list(self.source.layers)
        self.targets = list(self.target.layers)
        known = {layer.name for layer in (*self.sources, *self.targets)}
        for name in self.flatten:
            if name not in known:
                raise PortError(f"flatten names {name!r}, which is a layer of neither model: {near_names(name, known)}")

    def take_hints(self, hints: collections.abc.Mapping[str, Any]) -> None:
        """Settle what the user says."""
        layers = {layer.name: layer for layer in self.targets}
        theirs = {layer.name: layer for layer in self.sources}
        tensors = {}
        for name, value in hints.items():
            if name in self.target.shapes:
                tensors[name] = value
            elif name not in layers:
                known = [*layers, *self.target.shapes]
                raise PortError(f"the target has no layer or tensor {name!r}: {near_names(name, known)}")
            elif not isinstance(value, str) or value not in theirs:
                raise PortError(f"the source has no layer {value!r} for {name!r}: {near_names(str(value), theirs)}")
            elif not layers[name].fits(theirs[value]):
                one, other = layers[name].signature, theirs[value].signature
                raise PortError(f"{name!r} cannot come from {value!r}: it is {_told(one)}, that is {_told(other)}")
            else:
                self._pair(theirs[value], layers[name])
        mapping = Mapping.build(tensors, self.source.shapes)
        mapping.check(target={name: self.target.shapes[name] for name in tensors})
        self.entries |= mapping.tensors
        self.sources = [rest for layer in self.sources if (rest := _without(layer, mapping.source_shapes))]
        self.targets = [rest for layer in self.targets if (rest := _without(layer, mapping.shapes))]

    def pair_layers(self, in_order: bool) -> None:
        """Settle what shapes and names tell, and the order if it may."""
        for layer in [x for x in self.sources if x.kind == "state"]:
            self.sources.remove(layer)
            self._carry(layer.slots.values())
        for layer in [x for x in self.targets if x.kind == "state"]:
            self.targets.remove(layer)
            self.entries |= {slot.name: _default(slot, 0.0) for slot in layer.slots.values()}
        groups: dict[Any, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
        for layer in self.sources:
            groups[layer.signature][0].append(layer)
        for layer in self.targets:
            groups[layer.signature][1].append(layer)
        lonely: list[Layer] = []
        for sources, targets in groups.values():
            if not sources or not targets:
                lonely += sources or targets
                if targets:
                    names = tuple(layer.name for layer in targets)
                    why = targets[0].problem or f"the source has no such layer: {_told(targets[0].signature)}"
                    self.ambiguous.append(Ambiguity(names, (), why))
                continue
            found, why = _pairs(sources, targets), _UNTOLD
            if found is None and in_order:
                why = self._disorder(sources, targets)
                found = None if why else list(zip(sources, targets, strict=True))
            if found is None:
                self.ambiguous.append(Ambiguity(_layer_names(targets), _layer_names(sources), why))
            for one, other in found or ():
                self._pair(one, other)
        left = [layer for layer in lonely if layer in self.sources]
        if left:
            why = left[0].problem or f"the target has no such layer: {_told(left[0].signature)}"
            self.ambiguous.append(Ambiguity((), _layer_names(left), why))

    def _disorder(self, sources: Sequence[Layer], targets: Sequence[Layer]) -> str:
        """Return why layers cannot be taken in order, or nothing."""
        if len(sources) != len(targets) or not all(x.fits(y) for x, y in zip(sources, targets, strict=True)):
            return "there are not as many of one kind in both models: give hints={target: source}"
        for what, structure, layers in (("source", self.source, sources), ("target", self.target, targets)):
            nodes = (_meeting(one.name, other.name) for one, other in itertools.pairwise(layers))
            node = next((node for node in nodes if node in structure.alphabetical), None)
            if node is not None:
                return (
                    f"their order in the {what} is that of the alphabet, in {node or 'the root'!r}, and need not be "
                    "that of the layers, as in a state or a copy of a Flax module: give hints={target: source}"
                )
        return ""

    def result(self) -> Match:
        """Return what was found, in the order of the target."""
        for source, target in self.pairs:
            self._connect(source, target)
        for name, parts in self.parts.items():
            entries = [parts[k] for k in sorted(parts)]
            if len(entries) == 1:
                self.entries[name] = entries[0]
            elif any(entry.join for entry in entries):
                self.ambiguous.append(Ambiguity((name,), (), "a part of it has no single source: give a hint"))
            else:
                self.entries[name] = Entry(tuple(entry.sources[0] for entry in entries), "concat")
        order = [*(name for name in self.target.shapes if name in self.entries), *self.entries]
        proposed = Mapping({name: self.entries[name] for name in dict.fromkeys(order)}, self.settings)
        if not self.ambiguous:
            proposed.check(self.source.shapes, self.target.shapes)
        return Match(proposed, tuple(self.ambiguous), tuple(self.notes))

    def _pair(self, source: Layer, target: Layer) -> None:
        self.pairs.append((source, target))
        self.sources = [layer for layer in self.sources if layer is not source]
        self.targets = [layer for layer in self.targets if layer is not target]

    def _connect(self, source: Layer, target: Layer) -> None:
        """Make the entries of all tensors of a layer."""
        if problem := target.problem or source.problem:
            self.ambiguous.append(Ambiguity((target.name,), (source.name,), problem))
            return
        used: set[str] = set()
        try:
            between = self._between(source, target)
            for role, slot in target.slots.items():
                entry = self._entry(source, slot, role, between if role == "weight" else None, used)
                if entry is not None:
                    self.parts[slot.name][slot.part or (0, 1)] = entry
        except PlanError as error:
            self.ambiguous.append(Ambiguity((target.name,), (source.name,), str(error)))
            return
        left = {role: slot for role, slot in source.slots.items() if role not in used}
        self._carry(slot for role, slot in left.items() if role == "count")
        lost = tuple(slot.name for role, slot in left.items() if role != "count")
        if lost:
            self.ambiguous.append(Ambiguity((target.name,), lost, "the layer of the target has no place for these"))
        self._compare_settings(source, target)

    def _entry(self, source: Layer, slot: Slot, role: str, between: View | None, used: set[str]) -> Entry | None:
        """Return the entry of one tensor, or of a part of one; note which roles of the source it uses."""
        roles = [role]
        if role == "bias" and "bias_input" in source.slots:
            roles = [name for name in ("bias_input", "bias_hidden") if name in source.slots]
        elif role == "bias_input" and "bias" in source.slots:
            roles = ["bias"]
        found = [source.slots[name] for name in roles if name in source.slots]
        used.update(roles)
        if found:
            letters = source.letters(role)
            sources = tuple(Source(x.name, x.shape, x.to(slot, between, letters), x.part) for x in found)
            return Entry(sources, "sum" if len(sources) > 1 else "")
        if role in DEFAULTS and role != "value":
            return _default(slot, DEFAULTS[role])
        self.ambiguous.append(Ambiguity((slot.name,), (), f"{source.name!r} has no {role} for it"))
        return None

    def _between(self, source: Layer, target: Layer) -> View | None:
        """Return what happens to the inputs of a dense layer if they are a flattened image, or None."""
        if (
            target.kind != "dense"
            or "weight" not in target.slots
            or self.source.channels_last == self.target.channels_last
        ):
            return None
        features = target.slots["weight"].neutral_shape[1]
        given = [self.flatten[name] for name in (target.name, source.name) if name in self.flatten]
        image = given[0] if given else target.image or source.image
        if not given and image is None:
            ordered, dense = (self.target, target) if self.source.channels_last else (self.source, source)
            channels = _channels(ordered.layers, dense, features)
            if channels:
                pixels = features // channels
                why = (
                    f"are its {features} inputs a flattened image of {channels} channels and {pixels} pixels? "
                    f"Say flatten={{{target.name!r}: ({channels}, height, width)}}, or None for no image"
                )
                self.ambiguous.append(Ambiguity((target.name,), (source.name,), why))
            return None
        if image is None:
            return None
        if math.prod(image) != features or len(image) < 2:
            raise PlanError(f"an image {image} of channels and sizes does not have the {features} inputs of the layer")
        letters = ["c", *(f"s{k}" for k in range(len(image) - 1))]
        first, last = " ".join(letters), " ".join([*letters[1:], "c"])
        before, after = (last, first) if self.source.channels_last else (first, last)
        return View(f"o ({before}) -> o ({after})", tuple(sorted(zip(letters, image, strict=True))))

    def _compare_settings(self, source: Layer, target: Layer) -> None:
        both = [key for key in target.settings if key in source.settings]
        for key in both:
            own, theirs = target.settings[key], source.settings[key]
            wanted = own.translated(theirs.neutral)
            self.settings.setdefault(target.name, {})[own.own] = wanted
            if not math.isclose(own.value, wanted, rel_tol=1e-6, abs_tol=1e-12):
                said = f"{theirs.own}={theirs.value:g} of {source.name!r}"
                self.notes.append(f"{target.name!r} has {own.own}={own.value:g}; {said} is {own.own}={wanted:g} there")

    def _carry(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self.entries[f"{CARRIED}{slot.name}"] = Entry((Source(slot.name, slot.shape),))


_UNTOLD = (
    "these have the same shape, and their names leave open which is which: give hints={target: source}, "
    "or in_order=True if they come in the same order in both models"
)


def _pairs(sources: Sequence[Layer], targets: Sequence[Layer]) -> list[tuple[Layer, Layer]] | None:
    """Return which layers of one signature belong together, if that can be told."""
    if len(sources) != len(targets):
        return None
    if len(sources) == 1:
        return [(sources[0], targets[0])] if sources[0].fits(targets[0]) else None
    by_name = [[x for x in sources if x.fits(y) and _same_words(x.name, y.name)] for y in targets]
    if all(len(found) == 1 for found in by_name) and len({found[0].name for found in by_name}) == len(sources):
        return [(found[0], y) for found, y in zip(by_name, targets, strict=True)]
    return None


def _meeting(one: str, other: str) -> str:
    """Return the innermost node that holds both of two layers."""
    pairs = zip(one.split("/")[:-1], other.split("/")[:-1], strict=False)
    return "/".join(x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _same_words(one: str, other: str) -> bool:
    """Say whether two names have the same numbers, and the words of one are the last words of the other."""
    (first, first_numbers), (second, second_numbers) = words(one), words(other)
    if first_numbers != second_numbers:
        return False
    short, long = sorted((first, second), key=len)
    return long[len(long) - len(short) :] == short and bool(short or not long)


def _without(layer: Layer, names: collections.abc.Container[str]) -> Layer | None:
    """Return a layer without some of its tensors, or None if there are no others."""
    slots = {role: slot for role, slot in layer.slots.items() if slot.name not in names}
    if len(slots) == len(layer.slots):
        return layer
    return Layer(layer.name, layer.kind, slots, layer.settings, layer.image, layer.problem) if slots else None


def _default(slot: Slot, value: float) -> Entry:
    part = "" if slot.part is None else f"[{slot.part[0]}]"
    return Entry((Source(f"{CARRIED}{slot.name}{part}", slot.part_shape, default=(value, slot.dtype)),))


def _channels(layers: Sequence[Layer], dense: Layer, features: int) -> int:
    """Return the channels of the image that a dense layer may read flattened, or 0.

    That is the image of the last convolution before it, if no other dense layer is between; of any convolution, if no
    other layer gives as many features.
    """
    images = {layer.name: _outputs(layer) for layer in layers if layer.kind in ("conv", "conv_transpose")}
    fed = any(_outputs(layer) == features for layer in layers)
    before = layers[: [layer.name for layer in layers].index(dense.name)]
    nearest = next((layer for layer in reversed(before) if layer.kind == "dense" or layer.name in images), None)
    candidates = [images[nearest.name]] if nearest is not None and nearest.name in images else []
    if features in candidates:  # every channel is one feature: the image was pooled
        return 0
    candidates += [] if fed else [*images.values()]
    return next((channels for channels in candidates if 0 < channels < features and features % channels == 0), 0)


def _outputs(layer: Layer) -> int:
    """Return how many features or channels a layer gives, or 0 where it does not tell."""
    weight = layer.slots.get("weight")
    if weight is None or layer.kind not in ("dense", "embedding", "conv", "conv_transpose"):
        return 0
    return weight.neutral_shape[1 if layer.kind in ("embedding", "conv_transpose") else 0]


def _layer_names(layers: Iterable[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)


def _told(signature: tuple[str, Shape, Shape]) -> str:
    kind, *shapes = signature
    return f"{kind} {' and '.join(' x '.join(map(str, shape)) for shape in shapes if shape)}"
