"""Mappings from the tensors of one model to the tensors of another."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smh.core.arguments import explained_in
from smh.core.checks import check_keys, members
from smh.core.views import View, compose, invert
from smh.errors import CheckpointError, PlanError, PortError, near_names
from smh.files.atomic import replacing
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.porting.entries import Entry, Shape, Source
from smh.porting.layers import words
from smh.strict_json import MAX_HEADER, check_limits, parse
from smh.text import some

if TYPE_CHECKING:  # imported only for type checking: it slows down the import of the library
    from rich.table import Table

VERSION = "1.0"
"""The version of the JSON of mappings."""

Shapes = collections.abc.Mapping[str, Shape]


@dataclass(frozen=True)
class Mapping:
    """The source, shape and rearrangement of every tensor of a target model.

    A mapping consists of names and shapes and does not depend on frameworks. Make one with :func:`smh.porting.match`,
    with :meth:`build`, or from JSON. :func:`smh.port` applies it to a checkpoint.

    Parameters
    ----------
    tensors : mapping
        The :class:`Entry` of each tensor of the target, with its sources.
    settings : mapping of str to mapping of str to float
        By layer of the target, the settings with which it computes the same function, such as ``epsilon``.

    Raises
    ------
    PortError
        If a tensor of the source is used twice, or a view does not fit.

    Examples
    --------
    >>> mapping = Mapping.build({"fc/kernel": ("fc.weight", "o i -> i o"), "fc/bias": "fc.bias"},
    ...                         {"fc.weight": (10, 64), "fc.bias": (10,)})
    >>> mapping.shapes
    {'fc/kernel': (64, 10), 'fc/bias': (10,)}
    >>> mapping.inverse().tensors["fc.weight"].sources[0].view.pattern
    'a b -> b a'
    """

    tensors: collections.abc.Mapping[str, Entry]
    settings: collections.abc.Mapping[str, collections.abc.Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything that does not need the models."""
        used: dict[str, list[tuple[str, Source]]] = defaultdict(list)
        for target, entry in self.tensors.items():
            if not isinstance(target, str) or not target:
                raise PortError(f"a tensor of the target must have a nonempty name; got {target!r}")
            entry.check(target)
            for source in entry.sources:
                used[source.name].append((target, source))
        for name, uses in used.items():
            parts = sorted(source.part or (0, 1) for _, source in uses)
            if parts != [(k, len(uses)) for k in range(len(uses))]:
                targets = ", ".join(repr(target) for target, _ in uses)
                raise PortError(
                    f"the source tensor {name!r} must be used once, whole or in all its parts; "
                    f"got parts {[f'{k + 1}/{n}' for k, n in parts]} for {targets}"
                )
            if len({source.shape for _, source in uses}) > 1:
                raise PortError(f"the source tensor {name!r} has several shapes: {[s.shape for _, s in uses]}")

    @classmethod
    @explained_in("smh.porting")
    def build(
        cls,
        tensors: collections.abc.Mapping[str, Any],
        source: Shapes | Checkpoint,
        settings: collections.abc.Mapping[str, collections.abc.Mapping[str, float]] | None = None,
    ) -> Mapping:
        """Make a mapping by hand.

        Parameters
        ----------
        tensors : mapping of str to str, tuple or Entry
            For each tensor of the target, the name of its source, or a tuple of name, einops pattern, and optional
            sizes and order of axes, as in :class:`smh.core.views.View`.
        source : mapping of str to tuple of int, or Checkpoint
            The shapes of all tensors of the source.
        settings : mapping, optional
            See the class.

        Raises
        ------
        PortError
            If a name is unknown, or an entry does not fit.
        """
        if not isinstance(tensors, collections.abc.Mapping):
            raise PortError(f"tensors must be a mapping from targets to sources; got {type(tensors).__name__}")
        if not isinstance(source, collections.abc.Mapping | Checkpoint):
            what = "source must be a Checkpoint, or a mapping from names to shapes"
            raise PortError(f"{what}; got {type(source).__name__}")
        shapes = tensor_shapes(source) if isinstance(source, Checkpoint) else source
        entries = {}
        for target, given in tensors.items():
            if isinstance(given, Entry):
                entries[target] = given
                continue
            name, *view = (given,) if isinstance(given, str) else members(given) or (None,)
            if not isinstance(name, str):
                raise PortError(
                    f"the entry of {target!r} must be the name of its source, or a tuple (name, pattern); got {given!r}"
                )
            if name not in shapes:
                raise PortError(
                    f"{target!r} comes from {name!r}, which the source does not have: {near_names(name, shapes)}"
                )
            try:
                turned = View.make(tuple(view) if len(view) > 1 else view[0] if view else None)
            except PlanError as error:
                raise PortError(f"the entry of {target!r} from {name!r} is invalid: {error}") from error
            entries[target] = Entry((Source(name, tuple(shapes[name]), turned),))
        return cls(entries, settings or {})

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the tensors of the target."""
        return {target: entry.shape for target, entry in self.tensors.items()}

    @property
    def source_shapes(self) -> dict[str, Shape]:
        """The shapes of the tensors of the source."""
        return {source.name: source.shape for entry in self.tensors.values() for source in entry.sources}

    def check(self, source: Shapes | None = None, target: Shapes | None = None) -> None:
        """Raise unless every source is used, every target is filled, and all shapes agree.

        Parameters
        ----------
        source, target : mapping of str to tuple of int, optional
            The shapes of all tensors of the source model or checkpoint, and of the target model.

        Raises
        ------
        PortError
            With the names of tensors that are missing, unused or of another shape.
        """
        if source is not None:
            optional = {s.name for e in self.tensors.values() for s in e.sources if s.default is not None}
            _compare("the source", self.source_shapes, source, "not used by the mapping", optional)
        if target is not None:
            carried = {name for name in self.tensors if name.startswith(CARRIED)}
            _compare("the target", self.shapes, target, "not filled by the mapping", carried)

    def apply(self, tensors: collections.abc.Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all tensors of the target, given the tensors of the source, as views of the arrays where possible.

        Raises
        ------
        PortError
            If a tensor is missing or has another shape.
        """
        return {target: entry.read(tensors) for target, entry in self.tensors.items()}

    def inverse(self) -> Mapping:
        """Return the inverse mapping, without settings.

        Raises
        ------
        PortError
            If the mapping has no inverse, because it adds tensors.
        """
        parts: dict[str, dict[int, Source]] = defaultdict(dict)
        for target, entry in self.tensors.items():
            if entry.join == "sum":
                raise PortError(f"the mapping has no inverse: {target!r} is a sum of {len(entry.sources)} tensors")
            if entry.join and len({source.viewed_shape[0] for source in entry.sources}) > 1:
                raise PortError(f"the mapping has no inverse: {target!r} is joined from unequal parts")
            for k, source in enumerate(entry.sources):
                part = (k, len(entry.sources)) if entry.join else None
                back = Source(target, entry.shape, invert(source.view, source.part_shape), part)
                parts[source.name][source.part[0] if source.part else 0] = back
        return Mapping(
            {
                name: Entry(tuple(pieces[k] for k in sorted(pieces)), "concat" if len(pieces) > 1 else "")
                for name, pieces in parts.items()
            }
        )

    def then(self, other: Mapping) -> Mapping:
        """Return the composition of this mapping with another from its target to a third model.

        Raises
        ------
        PortError
            If the other mapping reads a tensor that this mapping does not provide, or no single mapping has the same
            effect.
        """
        entries = {target: self._through(target, entry) for target, entry in other.tensors.items()}
        kept = [name for name in self.tensors if name.startswith(CARRIED) and name not in other.source_shapes]
        entries |= {name: self.tensors[name] for name in kept}
        return Mapping(entries, other.settings)

    def _through(self, target: str, entry: Entry) -> Entry:
        """Return an entry of another mapping in terms of the sources of this one."""
        sources: list[Source] = []
        join = entry.join
        for source in entry.sources:
            first = self.tensors.get(source.name)
            if first is None:
                if source.default is None:
                    what = f"{target!r} comes from {source.name!r}, which the first mapping does not provide"
                    raise PortError(f"{what}: {near_names(source.name, self.tensors)}")
                sources.append(source)
                continue
            if source.shape != first.shape:
                shapes = f"{first.shape} in the first mapping and {source.shape} in the second"
                raise PortError(f"{source.name!r} has the shape {shapes}")
            inner = first.sources
            try:
                joined = first.join == "concat" and {x.viewed_shape for x in inner} == {source.part_shape}
                if source.part and joined:
                    inner = (inner[source.part[0]],)
                elif source.part:
                    if first.join or inner[0].part or inner[0].view:
                        raise PlanError("it is a part of a rearranged tensor")
                    inner = (dataclasses.replace(inner[0], part=source.part),)
                elif first.join:
                    if source.view or entry.join:
                        raise PlanError("it is rearranged after joining")
                    join = first.join
                sources += [dataclasses.replace(x, view=compose(x.view, source.view, x.part_shape)) for x in inner]
            except PlanError as error:
                raise PortError(f"no single mapping gives {target!r}, because {error}: port in two steps") from error
        return Entry(tuple(sources), join)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the mapping."""
        return {
            "settings": {layer: dict(values) for layer, values in self.settings.items()},
            "tensors": {
                target: {"join": entry.join, "sources": [source.to_dict() for source in entry.sources]}
                for target, entry in self.tensors.items()
            },
            "version": VERSION,
        }

    def to_json(self) -> str:
        """Return the mapping as indented JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Mapping:
        """Read a mapping from JSON, or raise :class:`~smh.PortError`."""
        try:
            check_limits(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "a mapping")
            data = parse(text, "a mapping")
        except CheckpointError as error:  # its message is about a file
            raise PortError(f"a mapping must be JSON: {error}") from error.__cause__
        try:
            return cls._from_dict(data)
        except (PlanError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise PortError(f"the mapping does not have version {VERSION}: {error}") from error

    @classmethod
    def _from_dict(cls, data: Any) -> Mapping:
        if not isinstance(data, dict) or str(data.get("version")).split(".")[0] != VERSION.split(".")[0]:
            raise PortError(f"a mapping must be an object with the version {VERSION}; got {str(data)[:80]}")
        check_keys("the mapping", data, ["settings", "tensors", "version"])
        entries = {}
        for target, entry in data["tensors"].items():
            check_keys(f"the entry of {target!r}", entry, ["join", "sources"])
            entries[target] = Entry(
                tuple(Source.from_dict(source, target) for source in entry["sources"]), entry["join"]
            )
        for key, value in (pair for values in data["settings"].values() for pair in values.items()):
            if not isinstance(value, int | float):
                raise PortError(f"the setting {key!r} must be a number; got {value!r}")
        settings = {
            layer: {key: float(value) for key, value in values.items()} for layer, values in data["settings"].items()
        }
        return cls(entries, settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mapping as JSON, atomically."""
        with replacing(path) as temporary:
            Path(temporary).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mapping:
        """Read a mapping from a JSON file, or raise :class:`~smh.PortError`."""
        with open(path, "rb") as file:
            return cls.from_json(file.read(MAX_HEADER + 1))

    def _told_settings(self) -> list[str]:
        """Return one line per layer with settings."""
        return [
            f"{layer}: set {', '.join(f'{key}={value:g}' for key, value in values.items())}"
            for layer, values in self.settings.items()
        ]

    def __str__(self) -> str:
        """Return one line per tensor."""
        return "\n".join([*(f"{target} <- {entry}" for target, entry in self.tensors.items()), *self._told_settings()])

    def __rich__(self) -> Table:
        """Return a table."""
        from rich.table import Table

        caption = "\n".join(self._told_settings()) or None
        table = Table("target", "shape", "source", "view", caption=caption, caption_justify="left")
        for target, entry in self.tensors.items():
            table.add_row(target, " x ".join(map(str, entry.shape)) or "scalar", entry.origin, entry.turn)
        return table


def _compare(what: str, mapped: Shapes, given: Shapes, left_over: str, optional: set[str]) -> None:
    """Raise unless a mapping and one of its models have equal tensors. The model may lack ``optional`` tensors."""
    unknown = [name for name in mapped if name not in given and name not in optional]
    if unknown:
        raise PortError(f"{what} does not have {some(unknown)}: {near_names(unknown[0], given)}")
    missing = [name for name in given if name not in mapped and not name.startswith(CARRIED)]
    if missing:
        raise PortError(f"tensors of {what} are {left_over}: {some(missing)}")
    for name, shape in mapped.items():
        if name in given and tuple(given[name]) != shape:
            raise PortError(f"{name!r} of {what} has the shape {tuple(given[name])}; the mapping says {shape}")


def tensor_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Return the shapes of all tensors of a checkpoint, including carried tensors."""
    generated = {tensor.name: tensor.viewed_shape for tensor in checkpoint.plan.tensors}
    return generated | {name: tuple(x.shape) for name, x in checkpoint.dense.items()}


def doubts(mapping: Mapping) -> list[str]:
    """Return a line for each pair of tensors that looks swapped, judged by names.

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
    lines = []
    for pairs in groups.values():
        sources = {_layer_words(name): name for _, name in pairs}
        exchanged: set[str] = set()
        for target, name in pairs:
            better = sources.get(_layer_words(target))
            if better and _layer_words(target) != _layer_words(name) and better not in exchanged:
                lines.append(f"{target!r} comes from {name!r}, though there is {better!r} of the same shape")
                exchanged.add(name)
    return lines


def _layer_words(tensor: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return words(tensor.replace(".", "/").rpartition("/")[0])
