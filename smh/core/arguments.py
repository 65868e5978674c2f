"""Explain calls that mistake the name of an option, or the number or order of arguments."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from numbers import Number
from typing import Any, ParamSpec, TypeVar

from smh.errors import PlanError, SmhError, near_names

P = ParamSpec("P")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)

_SHOWN = 6  # options in a message


def explained_in(place: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Let a public function explain its mistaken calls, which say where users find it. Only calls that fail count."""

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        cls, _, name = function.__qualname__.rpartition(".")
        return _explained(function, f"{place}.{name if cls.endswith('Api') else function.__qualname__}")

    return decorate


explained_calls = explained_in("smh")


def explained_class(cls: Class) -> Class:
    """Let the constructor of a dataclass in smh.pools explain its mistaken calls."""
    initialize: Any = cls
    initialize.__init__ = _explained(initialize.__init__, f"smh.pools.{cls.__name__}")
    return cls


def _explained(function: Callable[P, Result], public: str) -> Callable[P, Result]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> Result:
        try:
            return function(*args, **options)
        except (SmhError, TypeError) as error:
            if mistake := _mistake(public, signature, args, options):
                raise mistake from error
            raise

    return run


def with_signature_of(other: Callable[P, Result]) -> Callable[[Callable[..., Result]], Callable[P, Result]]:
    """Give a function that passes its arguments on the signature of another one, for editors and ``help``."""

    def decorate(function: Callable[..., Result]) -> Callable[P, Result]:
        function.__signature__ = inspect.signature(other)  # type: ignore[attr-defined]
        return function

    return decorate


def _mistake(
    public: str, signature: inspect.Signature, args: Sequence[Any], options: Mapping[str, Any]
) -> Exception | None:
    """Return the error for a mistake in the names of options, or the number or order of arguments, if there is one."""
    parameters = signature.parameters
    if not any(x.kind is Parameter.VAR_KEYWORD for x in parameters.values()):
        known = [name for name, x in parameters.items() if x.kind is not Parameter.VAR_POSITIONAL]
        known = [name for name in known if name not in ("self", "cls")]
        for option in options:
            if option not in parameters:
                hint = near_names(option, known)
                if len(known) <= 2 and "did you mean" not in hint:
                    hint = f"write {_written(public, signature)}"
                return PlanError(f"{public} has no option {option!r}; {hint}")
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        lacking = [name for name, x in list(parameters.items())[len(args) :] if _is_needed(x) and name not in options]
        what = f"lacks {' and '.join(map(repr, lacking))}" if lacking else f"has {error}"
        return TypeError(f"{public} {what}: write {_written(public, signature)}")
    given = [(name, x) for name, x in zip(parameters, args, strict=False) if name not in ("self", "cls")]
    places, values = [name for name, _ in given], [x for _, x in given]
    if all(map(_fits, places, values)):
        return None
    for order in itertools.permutations(values[:3]):
        if all(map(_fits, places, [*order, *values[3:]])):
            types = ", ".join(type(x).__name__ for x in values)
            what = f"the arguments are in the wrong order: write {public}({', '.join(places)}); got ({types})"
            return PlanError(what)
    return None


def _written(public: str, signature: inspect.Signature) -> str:
    """Return a call as one writes it: the names of arguments, and some of the options by name."""
    parts = [x for name, x in signature.parameters.items() if name not in ("self", "cls")]
    places = [f"*{x.name}" if x.kind is Parameter.VAR_POSITIONAL else x.name for x in parts if not _is_option(x)]
    options = [f"{x.name}=" for x in parts if _is_option(x)]
    return f"{public}({', '.join([*places, *options[:_SHOWN], *(['...'] if len(options) > _SHOWN else [])])})"


def _is_option(x: Parameter) -> bool:
    return x.kind is Parameter.KEYWORD_ONLY


def _is_needed(x: Parameter) -> bool:
    return x.default is Parameter.empty and x.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _fits(place: str, x: Any) -> bool:
    """Say whether a value can be the argument of a name, as far as its type tells."""
    from smh.core.plan import Plan  # which imports this module

    text = isinstance(x, str | bytes | os.PathLike)
    numbers = isinstance(x, list | tuple | range) and len(x) > 0 and all(isinstance(y, Number) for y in x)
    kinds = {
        "path": text,
        "plan": isinstance(x, Plan),
        "model": not text and not isinstance(x, Number) and not numbers,
        "ratio": x is None or isinstance(x, Number | str),
        "ratios": numbers or isinstance(x, Number) or hasattr(x, "__next__"),
        "shapes": isinstance(x, Mapping),
        "checkpoint": _is_a(x, "smh.files.checkpoint", "Checkpoint"),
        "mapping": _is_a(x, "smh.porting.mapping", "Mapping"),
        **dict.fromkeys(("variables", "cotangents", "dense"), isinstance(x, Mapping | None)),
        **dict.fromkeys(("distribution", "residency", "gradients"), isinstance(x, str)),
    }
    return kinds.get(place, True)


def _is_a(x: Any, module: str, name: str) -> bool:
    """Say whether a value is of a class of a module above the core, which is not imported for this."""
    return isinstance(x, getattr(sys.modules.get(module), name, ()))
