"""Explain calls that mistake the name of an option, or the order of arguments."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, ParamSpec, TypeVar

from smh.errors import PlanError, SmhError, near_names

P = ParamSpec("P")
Result = TypeVar("Result")


def explained_calls(function: Callable[P, Result]) -> Callable[P, Result]:
    """Let a public function explain its mistaken calls. Only calls that fail are looked at."""
    names = list(inspect.signature(function).parameters)
    cls, _, name = function.__qualname__.rpartition(".")
    public = f"smh.{name if cls.endswith('Api') else function.__qualname__}"

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> Result:
        try:
            return function(*args, **options)
        except (SmhError, TypeError) as error:
            if mistake := _mistake(public, names, args, options):
                raise PlanError(mistake) from error
            raise

    return run


def with_signature_of(other: Callable[P, Result]) -> Callable[[Callable[..., Result]], Callable[P, Result]]:
    """Give a function that passes its arguments on the signature of another one, for editors and ``help``."""

    def decorate(function: Callable[..., Result]) -> Callable[P, Result]:
        function.__signature__ = inspect.signature(other)  # type: ignore[attr-defined]
        return function

    return decorate


def _mistake(public: str, names: Sequence[str], args: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Describe a mistake in the names of options or the order of arguments, or return an empty string."""
    for option in options:
        if option not in names:
            known = [name for name in names if name not in ("self", "cls")]
            return f"{public} has no option {option!r}; {near_names(option, known)}"
    given = [(name, x) for name, x in zip(names, args, strict=False) if name not in ("self", "cls")]
    places, values = [name for name, _ in given], [x for _, x in given]
    if all(map(_fits, places, values)):
        return ""
    for order in itertools.permutations(values[:3]):
        if all(map(_fits, places, [*order, *values[3:]])):
            types = ", ".join(type(x).__name__ for x in values)
            return f"the arguments are in the wrong order: write {public}({', '.join(places)}); got ({types})"
    return ""


def _fits(place: str, x: Any) -> bool:
    """Say whether a value can be the argument of a name, as far as its type tells."""
    from smh.core.plan import Plan  # which imports this module

    text = isinstance(x, str | bytes | os.PathLike)
    kinds = {
        "path": text,
        "plan": isinstance(x, Plan),
        "model": not text and not isinstance(x, Number),
        "ratio": x is None or isinstance(x, Number | str),
        **dict.fromkeys(("variables", "cotangents", "dense"), isinstance(x, Mapping | None)),
        **dict.fromkeys(("distribution", "residency", "gradients"), isinstance(x, str)),
    }
    return kinds.get(place, True)
