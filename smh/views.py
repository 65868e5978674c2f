"""Views: the shape in which a framework sees a tensor (specification, section 9).

A view is an einops pattern applied to the canonical tensor. It permutes and reshapes only, so it changes no bit. Einops
itself reads the pattern when a plan is made and refuses what is none; applying it takes three array-API calls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np

from smh.errors import PlanError
from smh.ops import Array

_TOKEN = re.compile(r"\([^()]*\)|\S+")


@dataclass(frozen=True)
class View:
    """An einops pattern from the canonical shape to the one that a layer uses.

    Parameters
    ----------
    pattern : str
        For example ``"h w i o -> o i h w"``.
    sizes : tuple of (str, int)
        Sizes of axes that the pattern cannot tell, as ``(("h", 4),)`` for ``"(h w) o -> o h w"``.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def make(cls, view: Any) -> View | None:
        """Make a view from a pattern, a pair (pattern, sizes), a View or None.

        Raises
        ------
        PlanError
            If it is none of these.
        """
        if view is None or isinstance(view, View):
            return view
        if isinstance(view, str):
            return cls(view)
        if isinstance(view, (tuple, list)) and len(view) == 2 and isinstance(view[1], Mapping):
            return cls(view[0], tuple(sorted(view[1].items())))
        raise PlanError(f"a view is an einops pattern or a pair (pattern, sizes); got {view!r}")

    def shape(self, canonical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the viewed shape of a tensor.

        Raises
        ------
        PlanError
            If the pattern is not one, does not fit the shape, or does more than permute and reshape.
        """
        if not isinstance(self.pattern, str) or "..." in self.pattern or self.pattern.count("->") != 1:
            raise PlanError(f"a view is an einops pattern like 'h w i o -> o i h w', no ellipsis; got {self.pattern!r}")
        for axis, size in self.sizes:
            if not isinstance(axis, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise PlanError(f"sizes of a view map axis names to positive integers; got {dict(self.sizes)!r}")
        # All strides are zero: nothing as large as the tensor is made.
        stand_in = np.broadcast_to(np.zeros((), dtype=np.int8), canonical)
        try:
            shape = tuple(einops.rearrange(stand_in, self.pattern, **dict(self.sizes)).shape)
        except einops.EinopsError as error:
            raise PlanError(f"view {self.pattern!r} does not fit shape {canonical}: {error}") from error
        return shape

    def apply(self, xp: Any, x: Array) -> Array:
        """Return the viewed tensor of a canonical one: split its axes, permute them, merge them.

        Parameters
        ----------
        xp : module
            The array-API namespace of ``x``.
        x : array
            Of a shape that :meth:`shape` accepts.
        """
        before, after = self._sides()
        sizes = self._axis_sizes(tuple(x.shape))
        order = tuple(before.index(axis) for group in after for axis in group)
        x = xp.permute_dims(xp.reshape(x, tuple(sizes[axis] for axis in before)), order)
        return xp.reshape(x, tuple(math.prod([sizes[axis] for axis in group]) for group in after))

    def invert(self, xp: Any, x: Array, canonical: tuple[int, ...]) -> Array:
        """Return the canonical tensor of a viewed one."""
        before, after = self._sides()
        sizes = self._axis_sizes(canonical)
        axes = [axis for group in after for axis in group]
        order = tuple(axes.index(axis) for axis in before)
        return xp.reshape(xp.permute_dims(xp.reshape(x, tuple(sizes[axis] for axis in axes)), order), canonical)

    def _sides(self) -> tuple[list[str], list[list[str]]]:
        """Return all named axes on the left, and the groups of named axes on the right."""
        left, right = (_groups(side) for side in self.pattern.split("->"))
        return [axis for group in left for axis in group], right

    def _axis_sizes(self, canonical: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of all named axes; in each group at most one has to be worked out."""
        sizes = dict(self.sizes)
        for group, size in zip(_groups(self.pattern.split("->")[0]), canonical, strict=True):
            known = math.prod([sizes[axis] for axis in group if axis in sizes])
            sizes.update({axis: size // known for axis in group if axis not in sizes})
        return sizes


def _groups(side: str) -> list[list[str]]:
    """Return the named axes of every dimension of one side of a pattern; a 1 names none."""
    return [[axis for axis in token.strip("()").split() if axis != "1"] for token in _TOKEN.findall(side)]
