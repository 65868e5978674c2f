"""Tensors of a plan: shape, offset, scale, modifiers and view (specification, sections 6, 9 and 10)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from smh.core import rules
from smh.core.checks import check_keys, whole_number
from smh.core.pools.base import LIMIT
from smh.core.views import MAX_AXES, View
from smh.errors import PlanError

MAX_MODIFIERS = 16
"""The maximum number of modifiers of a tensor. Each takes time for every weight, and there are only two kinds."""


def checked_shape(name: Any, shape: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, or raise :class:`~smh.PlanError` for an invalid name or shape."""
    if not isinstance(name, str) or not name:
        raise PlanError(f"a tensor's name must be a string that is not empty; got {name!r}")
    try:
        sizes = tuple(shape)
    except TypeError as error:
        raise PlanError(f"the shape of {name!r} must be a sequence of integers; got {shape!r}") from error
    if len(getattr(shape, "shape", "1")) != 1:
        raise PlanError(f"the shape of {name!r} must be a sequence of integers; got an array: give its shape")
    each = f"every size in the shape {sizes} of tensor {name!r}"
    return tuple(whole_number(each, size, 1, LIMIT - 1) for size in sizes)


@dataclass(frozen=True)
class TensorSpec:
    """One generated tensor.

    Parameters
    ----------
    name : str
        Its name in the model.
    shape : tuple of int
        The canonical shape, of at most 64 axes.
    offset : int
        The cell of its first element.
    scale : str or float
        The rule of its initial scale, or a number.
    learn_scale : bool
        Whether the scale is learned.
    kappa : int
        The scale is ``2**-kappa`` times its variable; 0 if it is not learned.
    modifiers : tuple of str
        Applied in order after the scale; at most 16.
    axes : str
        The meaning of its axes, for fans: ``o`` out, ``i`` in, ``s`` a stack, any other letter spatial.
    view : View or None
        The conversion to the shape in the model.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    scale: str | float
    learn_scale: bool
    kappa: int
    modifiers: tuple[str, ...]
    axes: str
    view: View | None

    @cached_property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @cached_property
    def stop(self) -> int:
        """The cell after its last element."""
        return self.offset + self.size

    @cached_property
    def scale_variable(self) -> str:
        """The name of its scale variable."""
        return f"scale/{self.name}"

    @cached_property
    def initial_scale(self) -> float:
        """The initial scale, which is final unless the scale is learned; a float32 value."""
        return rules.initial(self.scale, self.shape, self.axes)

    @cached_property
    def viewed_shape(self) -> tuple[int, ...]:
        """The shape after the view."""
        return self.view.shape(self.shape) if self.view else self.shape

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a plan."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        view = self.view.to_dict() if self.view else None
        return {**fields, "shape": list(self.shape), "modifiers": list(self.modifiers), "view": view}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> TensorSpec:
        """Read a tensor from the JSON object of a plan, or raise :class:`~smh.PlanError`."""
        if not isinstance(data, dict):
            raise PlanError(f"{where} must be an object; got {type(data).__name__}")
        check_keys(where, data, [field.name for field in dataclasses.fields(cls)])
        for key in ("shape", "modifiers"):
            if not isinstance(data[key], list):
                raise PlanError(f"{where}.{key} must be a list; got {data[key]!r}")
        view = View.from_dict(data["view"], f"{where}.view")
        return cls(**{**data, "shape": tuple(data["shape"]), "modifiers": tuple(data["modifiers"]), "view": view})

    def check(self) -> None:
        """Raise :class:`~smh.PlanError` unless all fields are valid and consistent."""
        checked_shape(self.name, self.shape)
        what = f"tensor {self.name!r}"
        if len(self.shape) > MAX_AXES:
            raise PlanError(f"{what} must have at most {MAX_AXES} axes; got {len(self.shape)}")
        if self.size >= LIMIT:
            raise PlanError(
                f"{what} is too large: shape {self.shape} has {self.size} elements, the limit is {LIMIT - 1}"
            )
        if not isinstance(self.learn_scale, bool):
            raise PlanError(f"learn_scale of {what} must be true or false; got {self.learn_scale!r}")
        whole_number(f"kappa of {what}", self.kappa, 0, rules.MAX_KAPPA if self.learn_scale else 0)
        letters = self.axes.split() if isinstance(self.axes, str) else [""]
        plain = all(len(letter) == 1 and letter.isalpha() for letter in letters)
        own = [letter for letter in letters if letter != "s"]
        if not plain or len(set(own)) != len(own) or len(letters) != len(self.shape):
            raise PlanError(
                f"axes of {what} must be {len(self.shape)} different letters separated by spaces, one per axis of "
                f"{self.shape}, s also for several stacks; got {self.axes!r}"
            )
        if len(self.modifiers) > MAX_MODIFIERS:
            raise PlanError(f"{what} must have at most {MAX_MODIFIERS} modifiers; got {len(self.modifiers)}")
        for modifier in self.modifiers:
            if modifier not in rules.MODIFIERS:
                raise PlanError(f"modifiers must be among {', '.join(rules.MODIFIERS)}; got {modifier!r}")
        _ = self.initial_scale, self.viewed_shape, self.scale_variable
