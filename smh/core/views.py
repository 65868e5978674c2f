"""Views: the shape in which a framework sees a tensor (specification, section 9).

A view is an einops pattern applied to the canonical tensor, and may put the elements along an axis in another order, as
frameworks do with gates of recurrent layers and with the kernels of transposed convolutions. It moves elements only, so
it changes no bit. Einops itself reads the pattern when a plan is made and refuses what is none; applying it takes
a few array-API calls.

Views can be composed and inverted (:func:`compose`, :func:`invert`). The result is in normal form: as few axes as will
do, named after the axes of the canonical tensor. What composes to nothing is no view, so a model that is ported around
a circle has the plan that it started with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np

from smh.core.checks import check_keys
from smh.core.kernels import Array
from smh.errors import PlanError

MAX_ORDER = 256
"""The most elements along an axis that are put in another order."""

MAX_PATTERN = 2000
"""The most characters of a pattern."""

_ARGUMENTS = ("tensor", "pattern", "reduction")  # of functions of einops, which take sizes beside them
_TOKEN = re.compile(r"\([^()]*\)|\S+")

Order = tuple[int, ...]

MAX_AXES = 64
"""The most axes of a tensor, which is what NumPy takes."""


@dataclass(frozen=True)
class View:
    """An einops pattern from the canonical shape to the one that a layer uses.

    Parameters
    ----------
    pattern : str
        For example ``"h w i o -> o i h w"``.
    sizes : tuple of (str, int)
        Sizes of axes that the pattern cannot tell, as ``(("h", 4),)`` for ``"(h w) o -> o h w"``.
    order : tuple of (str, tuple of int)
        For some axes of the pattern, which element of the canonical tensor comes where: ``(("g", (1, 0, 2)),)`` swaps
        the first two.
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
            If it is none of these.
        """
        if view is None or isinstance(view, View):
            return view
        if isinstance(view, str):
            return cls(view)
        if isinstance(view, (tuple, list)) and len(view) in (2, 3) and all(isinstance(x, Mapping) for x in view[1:]):
            order = view[2] if len(view) == 3 else {}
            if not all(isinstance(places, (tuple, list)) for places in order.values()):
                raise PlanError(f"the order of a view maps axis names to lists of places; got {order!r}")
            ordered = tuple((axis, tuple(places)) for axis, places in sorted(order.items()))
            return cls(view[0], tuple(sorted(view[1].items())), ordered)
        raise PlanError(f"a view is an einops pattern, (pattern, sizes) or (pattern, sizes, order); got {view!r}")

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
            raise PlanError(f"{where}.order must name an axis, or be left out; got {{}}")
        return cls.make(tuple(data[key] for key in keys))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the view; the key ``order`` is there only if there is one."""
        order = {"order": {axis: list(places) for axis, places in self.order}} if self.order else {}
        return {"pattern": self.pattern, "sizes": dict(self.sizes), **order}

    def __str__(self) -> str:
        """Return the pattern, the sizes, and for an axis in another order its places in brackets."""
        sizes = "".join(f", {axis}={size}" for axis, size in self.sizes)
        return self.pattern + sizes + "".join(f", {axis}[{' '.join(map(str, places))}]" for axis, places in self.order)

    def shape(self, canonical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the viewed shape of a tensor.

        Raises
        ------
        PlanError
            If the pattern is not one, does not fit the shape, or does more than move elements.
        """
        self._check_pattern()
        for axis, size in self.sizes:
            if not isinstance(axis, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise PlanError(f"sizes of a view map axis names to positive integers; got {dict(self.sizes)!r}")
            if axis in _ARGUMENTS:
                raise PlanError(f"an axis with a size must not be named {axis!r}, as an argument of einops: rename it")
        # All strides are zero: nothing as large as the tensor is made.
        stand_in = np.broadcast_to(np.zeros((), dtype=np.int8), canonical)
        try:
            shape = tuple(einops.rearrange(stand_in, self.pattern, **dict(self.sizes)).shape)
        except einops.EinopsError as error:
            raise PlanError(f"view {self.pattern!r} does not fit shape {canonical}: {error}") from error
        self._check_order(canonical)
        return shape

    def apply(self, xp: Any, x: Array) -> Array:
        """Return the viewed tensor of a canonical one: split its axes, reorder and permute them, merge them.

        Parameters
        ----------
        xp : module
            The array-API namespace of ``x``.
        x : array
            Of a shape that :meth:`shape` accepts.
        """
        before, after = self.sides()
        sizes = self.axis_sizes(tuple(x.shape))
        x = xp.reshape(x, tuple(sizes[axis] for axis in before))
        for axis, places in self.order:
            x = _reorder(xp, x, before.index(axis), places)
        x = xp.permute_dims(x, tuple(before.index(axis) for group in after for axis in group))
        return xp.reshape(x, tuple(math.prod([sizes[axis] for axis in group]) for group in after))

    def invert(self, xp: Any, x: Array, canonical: tuple[int, ...]) -> Array:
        """Return the canonical tensor of a viewed one."""
        before, after = self.sides()
        sizes = self.axis_sizes(canonical)
        axes = [axis for group in after for axis in group]
        x = xp.reshape(x, tuple(sizes[axis] for axis in axes))
        for axis, places in self.order:
            x = _reorder(xp, x, axes.index(axis), _inverse(places))
        return xp.reshape(xp.permute_dims(x, tuple(axes.index(axis) for axis in before)), canonical)

    def sides(self) -> tuple[list[str], list[list[str]]]:
        """Return all named axes on the left, and the groups of named axes on the right."""
        left, right = (_groups(side) for side in self.pattern.split("->"))
        return [axis for group in left for axis in group], right

    def axis_sizes(self, canonical: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of all named axes; in each group at most one has to be worked out."""
        sizes = dict(self.sizes)
        for group, size in zip(_groups(self.pattern.split("->")[0]), canonical, strict=True):
            known = math.prod([sizes[axis] for axis in group if axis in sizes])
            sizes.update({axis: size // known for axis in group if axis not in sizes})
        return sizes

    def _check_pattern(self) -> None:
        """Raise :class:`~smh.PlanError` unless einops and :meth:`apply` read the same axes in the pattern."""
        pattern = self.pattern
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN or pattern.count("->") != 1:
            raise PlanError(
                "a view is an einops pattern like 'h w i o -> o i h w', no ellipsis, of at most "
                f"{MAX_PATTERN} characters; got {pattern!r}"
            )
        before, groups = self.sides()
        after = [axis for group in groups for axis in group]
        odd = [axis for axis in (*before, *after) if not axis.isidentifier()]
        if odd or max(len(before), len(after)) > MAX_AXES:
            raise PlanError(
                f"a view has at most {MAX_AXES} axes with names, like those of variables, no ellipsis; got {pattern!r}"
            )

    def _check_order(self, canonical: tuple[int, ...]) -> None:
        """Raise :class:`~smh.PlanError` unless every order has each place of an axis once."""
        sizes = self.axis_sizes(canonical) if self.order else {}
        for axis, places in self.order:
            if axis not in sizes:
                raise PlanError(f"the order of a view names {axis!r}, which is no axis of {self.pattern!r}")
            numbers = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
            if not numbers or not 0 < sizes[axis] <= MAX_ORDER or sorted(places) != list(range(sizes[axis])):
                raise PlanError(
                    f"the order of axis {axis!r} in view {self.pattern!r} must hold each of 0 to {sizes[axis] - 1} "
                    f"once, and at most {MAX_ORDER} of them; got {places[:9]!r}{'...' if len(places) > 9 else ''}"
                )


def compose(first: View | None, second: View | None, shape: tuple[int, ...], axes: str = "") -> View | None:
    """Return the view that does what two views do one after the other, in normal form.

    Parameters
    ----------
    first, second : View or None
        None leaves a tensor as it is.
    shape : tuple of int
        That of the tensor which ``first`` reads.
    axes : str
        One letter for each of its axes, separated by spaces, from which names are made; by default ``a b c ...``.

    Returns
    -------
    View or None
        None if nothing moves.

    Raises
    ------
    PlanError
        If a view does not fit, or no single pattern does the same: where ``second`` cuts an axis elsewhere than
        ``first`` joined it, or cuts one whose elements have another order.

    Examples
    --------
    >>> first = View("i o -> o i")
    >>> compose(first, View("o (c h w) -> (h w c) o", (("c", 2), ("h", 3))), (24, 5), "i o").pattern
    '(i1 i2) o -> (i2 i1) o'
    >>> compose(first, View("a b -> b a"), (24, 5)) is None
    True
    """
    left, middle = _axes_of(first, shape)
    start, right = _axes_of(second, first.shape(shape) if first else shape)
    finer_first: dict[int, list[_Axis]] = {}
    finer_second: dict[int, list[_Axis]] = {}
    for joined, cut in zip(middle, start, strict=True):
        if not _refine(joined, cut, finer_first, finer_second):
            raise PlanError(
                f"no single view does what {_text(first)} and then {_text(second)} do to shape {shape}: "
                "one cuts an axis elsewhere than the other joined it, or where elements have another order"
            )
    return _normal(
        [[part for axis in group for part in finer_first[id(axis)]] for group in left],
        [[part for axis in group for part in finer_second[id(axis)]] for group in right],
        axes.split(),
    )


def invert(view: View | None, shape: tuple[int, ...], axes: str = "") -> View | None:
    """Return the view that undoes a view of a tensor of some shape, in normal form.

    Parameters
    ----------
    view : View or None
        What to undo.
    shape : tuple of int
        That of the tensor which ``view`` reads.
    axes : str
        One letter for each axis of the *viewed* tensor; see :func:`compose`.

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
    """An axis with more than one element: its size, and the order of its elements where that changes."""

    size: int
    order: Order | None = None


def _axes_of(view: View | None, shape: tuple[int, ...]) -> tuple[list[list[_Axis]], list[list[_Axis]]]:
    """Return the axes of every dimension before and after a view; the same axis is the same object."""
    if view is None:
        groups = [[_Axis(size)] if size > 1 else [] for size in shape]
        return groups, [list(group) for group in groups]
    view.shape(shape)  # or raise
    order = dict(view.order)
    axes = {name: _Axis(size, order.get(name)) for name, size in view.axis_sizes(shape).items() if size > 1}
    left, right = (
        [[axes[name] for name in group if name in axes] for group in _groups(side)] for side in view.pattern.split("->")
    )
    return left, right


def _refine(
    joined: Sequence[_Axis],
    cut: Sequence[_Axis],
    finer_joined: dict[int, list[_Axis]],
    finer_cut: dict[int, list[_Axis]],
) -> bool:
    """Divide two lists of axes of one dimension into the same finer ones, or say that it cannot be done."""
    one, other = list(joined), list(cut)
    for axes, finer in ((one, finer_joined), (other, finer_cut)):
        finer.update({id(axis): [] for axis in axes})
    rest_one = rest_other = 1
    while one or other:
        rest_one = one[-1].size if rest_one == 1 else rest_one
        rest_other = other[-1].size if rest_other == 1 else rest_other
        size = min(rest_one, rest_other)
        if rest_one % size or rest_other % size:
            return False
        whole = one[-1].size == size == other[-1].size
        if not whole and ((one[-1].order and one[-1].size > size) or (other[-1].order and other[-1].size > size)):
            return False
        part = _Axis(size, _composed(one[-1].order, other[-1].order))
        finer_joined[id(one[-1])].insert(0, part)
        finer_cut[id(other[-1])].insert(0, part)
        rest_one, rest_other = rest_one // size, rest_other // size
        if rest_one == 1:
            one.pop()
        if rest_other == 1:
            other.pop()
    return True


def _composed(first: Order | None, second: Order | None) -> Order | None:
    if first is None or second is None:
        return first or second
    order = tuple(first[place] for place in second)
    return None if order == tuple(range(len(order))) else order


def _normal(left: list[list[_Axis]], right: list[list[_Axis]], letters: Sequence[str]) -> View | None:
    """Return the view of two lists of groups of the same axes, with as few axes as will do."""
    merged = True
    while merged:
        merged = False
        for group in left:
            for x, y in zip(group, group[1:], strict=False):
                target = next((g for g in right if any(axis is x for axis in g)), [])
                place = next((k for k, axis in enumerate(target) if axis is x), -1)
                if x.order or y.order or place + 1 >= len(target) or target[place + 1] is not y:
                    continue
                both = _Axis(x.size * y.size)
                for g, k in ((group, next(k for k, axis in enumerate(group) if axis is x)), (target, place)):
                    g[k : k + 2] = [both]
                merged = True
                break
    if [[id(axis) for axis in group] for group in left] == [
        [id(axis) for axis in group] for group in right
    ] and not any(axis.order for group in left for axis in group):
        return None
    names: dict[int, str] = {}
    sizes = []
    order = []
    for k, group in enumerate(left):
        letter = letters[k] if letters else chr(ord("a") + k % 26) * (k // 26 + 1)
        for j, axis in enumerate(group):
            name = names[id(axis)] = letter if len(group) == 1 else f"{letter}{j + 1}"
            sizes += [(name, axis.size)] if j else []
            order += [(name, axis.order)] if axis.order else []
    pattern = " -> ".join(
        " ".join(_dimension([names[id(axis)] for axis in group]) for group in side) for side in (left, right)
    )
    return View(pattern, tuple(sorted(sizes)), tuple(sorted(order)))


def _dimension(names: Sequence[str]) -> str:
    return f"({' '.join(names)})" if len(names) > 1 else (names[0] if names else "1")


def _text(view: View | None) -> str:
    return repr(view.pattern) if view else "nothing"


def _reorder(xp: Any, x: Array, axis: int, places: Sequence[int]) -> Array:
    """Return ``x`` with the elements along an axis taken from other places."""
    before = (slice(None),) * axis
    return xp.concat([x[(*before, slice(place, place + 1), ...)] for place in places], axis=axis)


def _inverse(places: Sequence[int]) -> Order:
    found = [0] * len(places)
    for k, place in enumerate(places):
        found[place] = k
    return tuple(found)


def _groups(side: str) -> list[list[str]]:
    """Return the named axes of every dimension of one side of a pattern; a 1 names none."""
    return [[axis for axis in token.strip("()").split() if axis != "1"] for token in _TOKEN.findall(side)]
