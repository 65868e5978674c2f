"""Views: the shape of a tensor in a framework (specification, section 9).

A view is an einops pattern applied to the canonical tensor. It may also reorder the elements along an axis, as needed
for the gates of recurrent layers and the kernels of transposed convolutions. It only moves elements, so it changes no
bit. Einops validates the pattern when a plan is built. Applying the view takes a few array-API calls.

Views can be composed and inverted (:func:`compose`, :func:`invert`). The result is in normal form, with as few axes as
possible, named after the axes of the canonical tensor. Views that cancel compose to None, so a model ported through
other frameworks and back has its original plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import einops
import numpy as np

from smh.core.checks import check_keys
from smh.core.kernels import Array
from smh.errors import PlanError

MAX_ORDER = 256
"""The maximum number of elements along a reordered axis."""
MAX_PATTERN = 2000
"""The maximum number of characters of a pattern."""
MAX_AXES = 64
"""The maximum number of axes of a tensor, the limit of NumPy."""

_ARGUMENTS = ("tensor", "pattern", "reduction")  # arguments of einops functions, which take sizes as keywords
_TOKEN = re.compile(r"\([^()]*\)|\S+")

Order = tuple[int, ...]
_Orders = Sequence[tuple[str, Order]]
_Names = list[list[str]]  # of the axes of every dimension


@dataclass(frozen=True)
class View:
    """An einops pattern from the canonical shape to the shape that a layer uses.

    Parameters
    ----------
    pattern : str
        For example ``"h w i o -> o i h w"``.
    sizes : tuple of (str, int)
        Sizes of axes that the shape leaves open, as ``(("h", 4),)`` for ``"(h w) o -> o h w"``.
    order : tuple of (str, tuple of int)
        For reordered axes of the pattern, the position of each element in the canonical tensor: ``(("g", (1, 0, 2)),)``
        swaps the first two elements.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()
    order: tuple[tuple[str, Order], ...] = ()

    @classmethod
    def make(cls, view: Any) -> View | None:
        """Make a view from a pattern, a tuple (pattern, sizes) or (pattern, sizes, order), a View or None.

        Raises
        ------
        PlanError
            For any other value.
        """
        if view is None or isinstance(view, View):
            return view
        if isinstance(view, str):
            return cls(view)
        if isinstance(view, (tuple, list)) and len(view) in (2, 3) and all(isinstance(x, Mapping) for x in view[1:]):
            order = view[2] if len(view) == 3 else {}
            if not all(isinstance(axis, str) for axis in (*view[1], *order)):
                raise PlanError(f"sizes and orders of a view must be mappings from axis names; got {view[1:]!r}")
            if not all(isinstance(places, (tuple, list)) for places in order.values()):
                raise PlanError(f"the order of a view must map axis names to lists of positions; got {order!r}")
            ordered = tuple((axis, tuple(places)) for axis, places in sorted(order.items()))
            return cls(view[0], tuple(sorted(view[1].items())), ordered)
        raise PlanError(f"a view must be an einops pattern, (pattern, sizes) or (pattern, sizes, order); got {view!r}")

    @classmethod
    def from_dict(cls, data: Any, where: str) -> View | None:
        """Read a view from JSON, or raise :class:`~smh.PlanError`."""
        if data is None:
            return None
        if not isinstance(data, dict):
            raise PlanError(f"{where} must be an object or null; got {data!r}")
        keys = ["pattern", "sizes", *(["order"] if "order" in data else [])]
        check_keys(where, data, keys)
        for key in keys[1:]:
            if not isinstance(data[key], dict):
                raise PlanError(f"{where}.{key} must be an object; got {data[key]!r}")
        if data.get("order") == {}:
            raise PlanError(f"{where}.order must name an axis, or be omitted; got {{}}")
        return cls.make(tuple(data[key] for key in keys))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the view, with the key ``order`` only if an axis is reordered."""
        order = {"order": {axis: list(places) for axis, places in self.order}} if self.order else {}
        return {"pattern": self.pattern, "sizes": dict(self.sizes), **order}

    def __str__(self) -> str:
        """Return the pattern, the sizes, and the positions of reordered axes in brackets."""
        sizes = "".join(f", {axis}={size}" for axis, size in self.sizes)
        return self.pattern + sizes + "".join(f", {axis}[{' '.join(map(str, places))}]" for axis, places in self.order)

    def shape(self, canonical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the viewed shape of a tensor.

        Raises
        ------
        PlanError
            If the pattern is invalid, does not fit the shape, or does more than move elements.
        """
        self._check_pattern()
        for axis, size in self.sizes:
            if not isinstance(axis, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise PlanError(f"sizes of a view must map axis names to positive integers; got {dict(self.sizes)!r}")
            if axis in _ARGUMENTS:
                raise PlanError(
                    f"an axis with a size must not be named {axis!r}, which is an argument of einops: rename the axis"
                )
        # All strides are zero, so nothing as large as the tensor is allocated.
        stand_in = np.broadcast_to(np.zeros((), dtype=np.int8), canonical)
        try:
            shape = tuple(einops.rearrange(stand_in, self.pattern, **dict(self.sizes)).shape)
        except einops.EinopsError as error:
            raise PlanError(f"view {self.pattern!r} does not fit shape {canonical}: {error}") from error
        if self.order:
            self._check_order(canonical)
        return shape

    def apply(self, xp: Any, x: Array) -> Array:
        """Return the viewed tensor of a canonical tensor of a fitting shape. ``xp`` is its array-API namespace."""
        before, after = self._sides()
        return _rearrange(xp, x, before, after, self._axis_sizes(tuple(x.shape)), self.order)

    def invert(self, xp: Any, x: Array, canonical: tuple[int, ...]) -> Array:
        """Return the canonical tensor of a viewed tensor."""
        before, after = self._sides()
        order = [(axis, _inverse(places)) for axis, places in self.order]
        return _rearrange(xp, x, after, before, self._axis_sizes(canonical), order)

    def _sides(self) -> tuple[_Names, _Names]:
        """Return the named axes of every dimension on the left and on the right; a 1 names none."""
        left, right = (
            [[axis for axis in token.strip("()").split() if axis != "1"] for token in _TOKEN.findall(side)]
            for side in self.pattern.split("->")
        )
        return left, right

    def _axis_sizes(self, canonical: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of all named axes. In each dimension, at most one size is inferred."""
        sizes = dict(self.sizes)
        for group, size in zip(self._sides()[0], canonical, strict=True):
            product = math.prod([sizes[axis] for axis in group if axis in sizes])
            sizes.update({axis: size // product for axis in group if axis not in sizes})
        return sizes

    def _check_pattern(self) -> None:
        """Raise :class:`~smh.PlanError` unless einops and :meth:`apply` read the same axes in the pattern."""
        pattern = self.pattern
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN or pattern.count("->") != 1:
            raise PlanError(
                "a view must be an einops pattern like 'h w i o -> o i h w', without ellipsis and with at most "
                f"{MAX_PATTERN} characters; got {pattern!r}"
            )
        before, after = ([axis for group in side for axis in group] for side in self._sides())
        if max(len(before), len(after)) > MAX_AXES or not all(axis.isidentifier() for axis in (*before, *after)):
            raise PlanError(
                f"a view has at most {MAX_AXES} axes, with names like Python variables and no ellipsis; got {pattern!r}"
            )

    def _check_order(self, canonical: tuple[int, ...]) -> None:
        """Raise :class:`~smh.PlanError` unless every order is a permutation of an axis."""
        sizes = self._axis_sizes(canonical)
        for axis, places in self.order:
            if axis not in sizes:
                raise PlanError(f"the order of a view names {axis!r}, which is not an axis of {self.pattern!r}")
            numbers = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
            if not numbers or not 0 < sizes[axis] <= MAX_ORDER or sorted(places) != list(range(sizes[axis])):
                raise PlanError(
                    f"the order of axis {axis!r} in view {self.pattern!r} must contain each of 0 to {sizes[axis] - 1} "
                    f"once, and at most {MAX_ORDER} positions; got {places[:9]!r}{'...' if len(places) > 9 else ''}"
                )


def compose(first: View | None, second: View | None, shape: tuple[int, ...], axes: str = "") -> View | None:
    """Return the composition of two views in normal form.

    Parameters
    ----------
    first, second : View or None
        None is the identity.
    shape : tuple of int
        The shape of the input of ``first``.
    axes : str
        One letter per axis, separated by spaces, as the base of names; by default ``a b c ...``.

    Returns
    -------
    View or None
        None if no element moves.

    Raises
    ------
    PlanError
        If a view does not fit, or no single pattern has the same effect: if ``second`` splits an axis at a different
        place than ``first`` merged it, or splits a reordered axis.

    Examples
    --------
    >>> first = View("i o -> o i")
    >>> compose(first, View("o (c h w) -> (h w c) o", (("c", 2), ("h", 3))), (24, 5), "i o").pattern
    '(i1 i2) o -> (i2 i1) o'
    >>> compose(first, View("a b -> b a"), (24, 5)) is None
    True
    """
    left, joined = _axes_of(first, shape)
    cut, right = _axes_of(second, first.shape(shape) if first else shape)
    if not all(_divide(one, other) for one, other in zip(joined, cut, strict=True)):
        one, other = (repr(view.pattern) if view else "nothing" for view in (first, second))
        raise PlanError(
            f"no single view has the effect of {one} followed by {other} on shape {shape}: "
            "the second splits an axis at a different place than the first merged it, or splits a reordered axis"
        )
    left, right = ([[part for axis in group for part in axis.parts] for group in side] for side in (left, right))
    return _normal(left, right, axes.split())


def invert(view: View | None, shape: tuple[int, ...], axes: str = "") -> View | None:
    """Return the inverse of a view of a tensor of some shape, in normal form.

    Parameters
    ----------
    view : View or None
        The view to invert.
    shape : tuple of int
        The shape of the input of ``view``.
    axes : str
        One letter for each axis of the *viewed* tensor; see :func:`compose`.

    Raises
    ------
    PlanError
        If the view does not fit.

    Examples
    --------
    >>> invert(View("o (c h w) -> (h w c) o", (("c", 2), ("h", 3), ("w", 4))), (5, 24))
    View(pattern='(a1 a2) b -> b (a2 a1)', sizes=(('a2', 2),), order=())
    """
    left, right = _axes_of(view, shape)
    for axis in (axis for group in left for axis in group):
        axis.order = axis.order and _inverse(axis.order)
    return _normal(right, left, axes.split())


@dataclass(eq=False)
class _Axis:
    """An axis with more than one element. Both sides of a view share the object of an axis."""

    size: int
    order: Order | None = None  # of its elements, if it is reordered
    parts: list[_Axis] = field(default_factory=list)  # into which another view divides it


_Side = list[list[_Axis]]  # the axes of every dimension


def _axes_of(view: View | None, shape: tuple[int, ...]) -> tuple[_Side, _Side]:
    """Return the axes of every dimension before and after a view, or raise :class:`~smh.PlanError`."""
    if view is None:
        groups = [[_Axis(size)] if size > 1 else [] for size in shape]
        return groups, groups
    view.shape(shape)
    order = dict(view.order)
    axes = {name: _Axis(size, order.get(name)) for name, size in view._axis_sizes(shape).items() if size > 1}
    left, right = ([[axes[name] for name in group if name in axes] for group in side] for side in view._sides())
    return left, right


def _divide(joined: Sequence[_Axis], cut: Sequence[_Axis]) -> bool:
    """Divide the axes of one dimension in two views into common parts, or return that this is impossible.

    An axis reaches from one stride to another. The parts are between adjacent strides of both views.
    """
    ends = {stride for axes in (joined, cut) for stride in accumulate((axis.size for axis in reversed(axes)), mul)}
    strides = [1, *sorted(ends)]
    if any(stop % start for start, stop in pairwise(strides)):
        return False
    parts = {start: _Axis(stop // start) for start, stop in pairwise(strides)}
    for axes in (joined, cut):
        start = 1
        for axis in reversed(axes):
            stop = start * axis.size
            axis.parts = [parts[stride] for stride in reversed(strides) if start <= stride < stop]
            if axis.order and len(axis.parts) > 1:
                return False
            if axis.order:
                axis.parts[0].order = _composed(axis.parts[0].order, axis.order)
            start = stop
    return True


def _composed(first: Order | None, second: Order) -> Order | None:
    if first is None:
        return second
    order = tuple(first[place] for place in second)
    return None if order == tuple(range(len(order))) else order


def _normal(left: _Side, right: _Side, letters: Sequence[str]) -> View | None:
    """Return the view of two sides with common axes. Axes that stay adjacent are merged."""
    together = {(x, y) for group in right for x, y in pairwise(group) if not x.order and not y.order}
    names: dict[_Axis, str] = {}  # by the first of the merged axes
    sizes, order = [], []
    for k, group in enumerate(left):
        runs: list[list[_Axis]] = []
        for axis in group:
            if runs and (runs[-1][-1], axis) in together:
                runs[-1].append(axis)
            else:
                runs.append([axis])
        letter = letters[k] if letters else chr(ord("a") + k % 26) * (k // 26 + 1)
        for j, run in enumerate(runs):
            name = names[run[0]] = letter if len(runs) == 1 else f"{letter}{j + 1}"
            sizes += [(name, math.prod([axis.size for axis in run]))] if j else []
            order += [(name, run[0].order)] if run[0].order else []
    before, after = ([[names[axis] for axis in group if axis in names] for group in side] for side in (left, right))
    if before == after and not order:
        return None
    pattern = " -> ".join(
        " ".join(f"({' '.join(group)})" if len(group) > 1 else (group or ["1"])[0] for group in side)
        for side in (before, after)
    )
    return View(pattern, tuple(sorted(sizes)), tuple(sorted(order)))


def _rearrange(xp: Any, x: Array, before: _Names, after: _Names, sizes: Mapping[str, int], order: _Orders) -> Array:
    """Split the dimensions of ``x``, reorder the elements along some axes, permute the axes and merge them."""
    axes = [axis for group in before for axis in group]
    x = xp.reshape(x, tuple(sizes[axis] for axis in axes))
    for axis, places in order:
        start = (slice(None),) * axes.index(axis)
        x = xp.concat([x[(*start, slice(place, place + 1), ...)] for place in places], axis=len(start))
    x = xp.permute_dims(x, tuple(axes.index(axis) for group in after for axis in group))
    return xp.reshape(x, tuple(math.prod([sizes[axis] for axis in group]) for group in after))


def _inverse(places: Sequence[int]) -> Order:
    return tuple(sorted(range(len(places)), key=places.__getitem__))
