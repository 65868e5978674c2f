"""Entries of mappings: where one tensor of a target model comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smh.core.checks import check_keys
from smh.core.pools.base import LIMIT
from smh.core.views import View
from smh.errors import PlanError, PortError, near_names
from smh.files.header import DTYPES, FOREIGN

Shape = tuple[int, ...]

_DTYPES = tuple(name for name in DTYPES.values() if name not in FOREIGN and name != "complex64")  # JSON has numbers


@dataclass(frozen=True)
class Part:
    """A tensor of a model, or one of equal parts of it along the first axis, turned by a view."""

    name: str
    shape: Shape  # of the whole tensor
    view: View | None = None
    part: tuple[int, int] | None = None  # (k, n): part k of n

    @property
    def part_shape(self) -> Shape:
        """The shape before the view."""
        return self.shape if self.part is None else (self.shape[0] // self.part[1], *self.shape[1:])

    @property
    def viewed_shape(self) -> Shape:
        """The shape after the view."""
        return self.view.shape(self.part_shape) if self.view else self.part_shape


@dataclass(frozen=True)
class Source(Part):
    """A tensor of the source model, or a part of one, as an entry reads it.

    Attributes
    ----------
    name : str
        The tensor.
    shape : tuple of int
        That of the whole tensor, as the source model sees it.
    view : View or None
        How it, or the part of it, is turned.
    part : tuple of int or None
        ``(k, n)``: part ``k`` of ``n`` equal parts along the first axis.
    default : tuple or None
        Value and dtype of all elements if the tensor does not exist.
    """

    default: tuple[float, str] | None = None

    def __str__(self) -> str:
        """Return the name, the part and the default."""
        part = "" if self.part is None else f" [{self.part[0] + 1}/{self.part[1]}]"
        return f"{self.name}{part}" + ("" if self.default is None else f" or {self.default[0]:g}")

    def read(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the tensor, or the part of it, turned; raises PortError if the source lacks it."""
        if self.name in tensors:
            x = np.asarray(tensors[self.name])
        elif self.default is not None:
            x = np.full(self.shape, self.default[0], dtype=self.default[1])
        else:
            raise PortError(f"the source tensor {self.name!r} is missing: {near_names(self.name, tensors)}")
        if x.shape != self.shape:
            raise PortError(f"the source tensor {self.name!r} must have the shape {self.shape}; got {x.shape}")
        if self.part is not None:
            x = np.split(x, self.part[1])[self.part[0]]
        return self.view.apply(np, x) if self.view else x

    def check(self, target: str) -> None:
        """Raise :class:`~smh.PortError` unless all fields make sense."""
        what = f"the source of {target!r}"
        if not isinstance(self.name, str) or not self.name:
            raise PortError(f"{what} must be named by a string that is not empty; got {self.name!r}")
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in self.shape):
            raise PortError(f"{what} must have a shape of whole numbers; got {self.shape!r}")
        if math.prod(self.shape) >= LIMIT:
            raise PortError(f"{what} must have fewer than {LIMIT} elements; got the shape {self.shape}")
        if self.part is not None:
            if len(self.part) != 2 or not all(isinstance(number, int) for number in self.part):
                raise PortError(f"{what} must be a part (k, n) of whole numbers; got {self.part!r}")
            k, n = self.part
            if not (self.shape and 0 <= k < n and n > 1 and self.shape[0] % n == 0):
                raise PortError(f"{what} must be one of at least two equal parts of {self.shape}; got part {k} of {n}")
        try:
            _ = self.viewed_shape
        except PlanError as error:
            raise PortError(f"{what}, {self.name!r}, cannot be turned: {error}") from error
        if self.default is not None:
            try:
                value, dtype = self.default
                valid = isinstance(value, int | float) and dtype in _DTYPES  # NumPy would read text as a program
                with np.errstate(over="ignore"):
                    valid = valid and bool(np.isfinite(np.asarray(value, dtype=dtype)))
            except (TypeError, ValueError, OverflowError) as error:
                raise PortError(f"the default of {what} must be a number and its dtype: {error}") from error
            if not valid:
                raise PortError(
                    f"the default of {what} must be bool, an integer or a finite float; got {value!r} as {dtype!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the source."""
        return {
            "default": None if self.default is None else list(self.default),
            "name": self.name,
            "part": None if self.part is None else list(self.part),
            "shape": list(self.shape),
            "view": self.view.to_dict() if self.view else None,
        }

    @classmethod
    def from_dict(cls, data: Any, target: str) -> Source:
        """Read a source from JSON; :meth:`check` has yet to see it."""
        check_keys(f"the source of {target!r}", data, ["default", "name", "part", "shape", "view"])
        default, part = (None if data[key] is None else tuple(data[key]) for key in ("default", "part"))
        return cls(
            data["name"], tuple(data["shape"]), View.from_dict(data["view"], f"the view of {target!r}"), part, default
        )


@dataclass(frozen=True)
class Entry:
    """Where one tensor of the target model comes from.

    Attributes
    ----------
    sources : tuple of Source
        One, as a rule.
    join : str
        How several become one: ``"concat"`` along the first axis, or ``"sum"``. Empty for a single one.
    """

    sources: tuple[Source, ...]
    join: str = ""

    @property
    def shape(self) -> Shape:
        """The shape of the target tensor."""
        shapes = [source.viewed_shape for source in self.sources]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if self.join == "concat" else shapes[0]

    @property
    def origin(self) -> str:
        """The sources, for people."""
        return (" + " if self.join == "sum" else ", ").join(map(str, self.sources))

    @property
    def turn(self) -> str:
        """How they are turned, for people."""
        return "; ".join(dict.fromkeys(str(source.view) for source in self.sources if source.view))

    def __str__(self) -> str:
        """Return both."""
        return f"{self.origin} ({self.turn})" if self.turn else self.origin

    @property
    def whole(self) -> bool:
        """Whether it is one whole tensor, turned, as a generated tensor must be."""
        return not self.join and self.sources[0].part is None

    def read(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the target tensor, given the source tensors."""
        parts = [source.read(tensors) for source in self.sources]
        if self.join == "sum":
            return np.asarray(sum(parts[1:], start=parts[0]))
        return np.concatenate(parts) if self.join else parts[0]

    def check(self, target: str) -> None:
        """Raise :class:`~smh.PortError` unless the sources can be joined."""
        if not self.sources or self.join not in ("", "concat", "sum") or bool(self.join) != (len(self.sources) > 1):
            raise PortError(
                f"{target!r} must have one source, or several that are joined by 'concat' or 'sum'; "
                f"got {len(self.sources)} and {self.join!r}"
            )
        for source in self.sources:
            source.check(target)
        shapes = [source.viewed_shape for source in self.sources]
        first = 1 if self.join == "concat" else 0
        if any(len(shape) < first or shape[first:] != shapes[0][first:] for shape in shapes):
            raise PortError(f"the sources of {target!r} do not fit one another: their shapes are {shapes}")
