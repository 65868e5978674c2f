"""Which tensors of a model are generated: ``include`` and ``exclude`` of ``Plan.build``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping

from smh.core.checks import members
from smh.core.patterns import compile_pattern
from smh.errors import PlanError, near_names

Selector = str | Iterable[str] | Callable[[str], bool]
"""A regular expression, a list of names and patterns, or a function of the name."""


def why_not(name: str, shape: tuple[int, ...]) -> str:
    """Return why a tensor is not generated unless it is asked for, or nothing."""
    if len(shape) < 2:
        return "fewer than two axes"
    return "it is a bias" if re.split("[./]", name)[-1] == "bias" else ""


def select(shapes: Mapping[str, tuple[int, ...]], include: Selector | None, exclude: Selector | None) -> list[str]:
    """Return the names of the tensors that are generated, in order.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        All tensors.
    include : str, iterable of str, callable or None
        A regular expression that must match a whole name (see :func:`smh.core.patterns.compile_pattern`). In a list:
        names; what names begin or end with, at a dot or slash, as ``"head"`` and ``"weight"``; patterns with ``*``, as
        ``"*.attn.*"``. A function from a name to bool. None: all tensors of two or more axes but those named ``bias``.
    exclude : str, iterable of str, callable or None
        The same, for tensors to leave as they are.

    Raises
    ------
    PlanError
        If a selector, or one of its names, matches nothing, or nothing is left; or matching could take for ever.

    Examples
    --------
    >>> shapes = {"fc.weight": (3, 2), "fc.bias": (2,), "head.weight": (2, 2)}
    >>> select(shapes, None, ["head.weight"])
    ['fc.weight']
    >>> select(shapes, r"fc.*", None)
    ['fc.weight', 'fc.bias']
    """
    if not shapes:
        raise PlanError("there are no tensors to make a plan for; got an empty mapping of shapes")
    if include is None:
        chosen = {name for name, shape in shapes.items() if not why_not(name, shape)}
    else:
        chosen = _matches(shapes, include, "include")
    if exclude is not None:
        chosen -= _matches(shapes, exclude, "exclude")
    if not chosen:
        raise PlanError(
            "no tensor is left to be generated: by default those with two or more axes are; "
            f"got {len(shapes)} tensors, include={include!r}, exclude={exclude!r}"
        )
    return [name for name in shapes if name in chosen]


def _matches(shapes: Mapping[str, tuple[int, ...]], selector: Selector, what: str) -> set[str]:
    if isinstance(selector, type):
        raise PlanError(f"{what} takes names, not classes; got {selector.__name__}: name the layers, as ['head']")
    if callable(selector):
        found = {name for name in shapes if selector(name)}
        if not found:
            raise PlanError(f"{what}={selector!r} is true for none of {len(shapes)} names; {near_names('', shapes)}")
        return found
    if isinstance(selector, str):
        listed = any(_is_named(name, selector) for name in shapes)
        hint = f"did you mean [{selector!r}]? In a list stand names, what they begin or end with, and patterns with *"
        try:
            pattern = compile_pattern(selector, shapes, what)
        except PlanError as error:
            raise PlanError(f"{error}; {hint}" if listed else str(error)) from error
        found = {name for name in shapes if pattern.fullmatch(name)}
        if not found:
            raise PlanError(
                f"{what}={selector!r} is a regular expression, which matches no whole name; "
                f"{hint if listed else near_names(selector, shapes)}"
            )
        return found
    listed_names = members(selector)
    if listed_names is None:
        raise PlanError(f"{what} is a regular expression, a list of names, or a function of a name; got {selector!r}")
    found = set()
    for wanted in listed_names:
        if not isinstance(wanted, str):
            raise PlanError(f"{what} lists names; got {wanted!r}: a function of a name, alone, can choose by anything")
        hits = {name for name in shapes if _is_named(name, wanted)}
        if not hits:
            raise PlanError(
                f"{what} names {wanted!r}, which is no name, no beginning or end of one, and no pattern with * that "
                f"matches; {near_names(wanted, shapes)}"
            )
        found |= hits
    return found


def _is_named(name: str, wanted: str) -> bool:
    """Say whether a name is the wanted one, ends or begins with it at a dot or slash, or matches it as a pattern."""
    return (
        name == wanted
        or name.endswith((f".{wanted}", f"/{wanted}"))
        or name.startswith((f"{wanted}.", f"{wanted}/"))
        or ("*" in wanted and fnmatch.fnmatchcase(name, wanted))
    )
