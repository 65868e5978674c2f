"""Rules of ``Plan.build`` for each tensor: scales, kappas, axes, modifiers (specification, section 6)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from smh.core.checks import members
from smh.core.scales import LEAST, LIMIT
from smh.core.selection import named
from smh.errors import PlanError, near_names

RULES = ("fan_in", "fan_out", "he", "glorot")
MODIFIERS = ("relu", "sign")
MAX_KAPPA = 30
_AXES = {0: "", 1: "o", 2: "i o", 3: "w i o", 4: "h w i o", 5: "d h w i o"}


def by_name(
    what: str, given: Any, names: Sequence[str], shapes: Mapping[str, Any], every: bool = True
) -> dict[str, Any]:
    """Return the value of an argument for each generated tensor, by name.

    A single value applies to all tensors. The keys of a mapping are names and globs, as in ``include``. The full name
    of a tensor takes precedence, then later keys over earlier ones. A mapping must cover every tensor, unless only some
    tensors need a value.
    """
    if every and not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    values: dict[str, Any] = dict.fromkeys(names)
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise PlanError(f"{what} must be a mapping by name; got {given!r}")
    lacking = dict.fromkeys(names)
    for key in sorted(given, key=lambda key: key in values):
        if not (matched := _named(key, values)):
            why = "is not generated" if _named(key, shapes) else f"is not a tensor: {near_names(str(key), names)}"
            raise PlanError(f"{what} names {key!r}, which {why}")
        for name in matched:
            values[name] = given[key]
            lacking.pop(name, None)
    for name in lacking if every else ():
        raise PlanError(
            f"{what} is given by name but lacks tensor {name!r}: give all of {len(names)} generated tensors"
        )
    return values


def _named(key: Any, names: Collection[str]) -> list[str]:
    return named(key, names) if isinstance(key, str) else []


def modifier_list(given: Any) -> tuple[str, ...]:
    """Return a list of modifiers as a tuple, or raise :class:`~smh.PlanError` for any other value."""
    if isinstance(given, str):
        raise PlanError(f"modifiers must be a list; got the string {given!r}: write [{given!r}]")
    names = members(given)
    if names is None or not all(isinstance(name, str) for name in names):
        raise PlanError(f"modifiers must be a list of names, by default an empty one; got {given!r}")
    return names


def fans(shape: Sequence[int], axes: str) -> tuple[int, int, int]:
    """Return fan_in (all axes except ``o``), fan_out (all except ``i``) and the size of ``o``. ``s`` counts in none.

    >>> fans((12, 3, 3, 16, 32), "s h w i o")
    (144, 288, 32)
    """
    sizes = {letter: size for letter, size in zip(axes.split(), shape, strict=True) if letter != "s"}
    fan_in = math.prod(size for letter, size in sizes.items() if letter != "o")
    fan_out = math.prod(size for letter, size in sizes.items() if letter != "i")
    return fan_in, fan_out, sizes.get("o", 1)


def initial(rule: str | float, shape: Sequence[int], axes: str) -> float:
    """Return the initial scale of a tensor by a rule or a number, computed in float64 and rounded once to float32."""
    if not isinstance(rule, str):
        return number(rule)
    fan_in, fan_out, out = fans(shape, axes)
    if rule == "fan_in":
        value = 1.0 / math.sqrt(3.0 * fan_in)
    elif rule == "he":
        value = math.sqrt(2.0 / fan_in)
    elif rule == "glorot":
        value = math.sqrt(2.0 / (fan_in + fan_out))
    elif rule == "fan_out":
        rank = len(shape) - axes.split().count("s")
        value = math.sqrt(2.0 / fan_out) if rank > 2 else 1.0 / math.sqrt(out)
    else:
        raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {rule!r}")
    return number(value)


def number(value: Any) -> float:
    """Return a scale rounded to float32, or raise :class:`~smh.PlanError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PlanError(f"scale must be one of {', '.join(RULES)}, 'match' or a number; got {value!r}")
    with np.errstate(all="ignore"):
        scale = float(np.float32(max(min(value, 1e39), -1e39)))
    if not LEAST <= scale < LIMIT:
        raise PlanError(f"an initial scale must be at least 2**-30 and below 2**30; got {value!r}")
    return scale


def resolved(name: str, rule: Any, values: Mapping[str, Any] | None, shape: tuple[int, ...]) -> str | float:
    """Return a scale rule for a plan: ``match`` becomes the standard deviation of the present values."""
    if not (isinstance(rule, str) and rule == "match"):
        return rule if isinstance(rule, str) else number(rule)
    try:
        present = (values or {})[name]
    except KeyError as error:
        what = f"scale 'match' of tensor {name!r} needs its present values: pass values={{name: array}}"
        raise PlanError(what) from error
    try:
        value = np.asarray(present, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PlanError(f"the values of {name!r} must be numbers; got {type(present).__name__}") from error
    if value.size != math.prod(shape):
        raise PlanError(f"the values of {name!r} have shape {value.shape}, which does not hold the elements of {shape}")
    deviation = float(np.std(value))
    if not deviation > 0.0 or not math.isfinite(deviation):
        raise PlanError(
            f"scale 'match' of tensor {name!r} needs values that vary and are finite; their deviation is {deviation}: "
            "exclude the tensor, or pass its scale as a number"
        )
    return number(deviation)


def kappa(optimizer: str, scale: float, size: int) -> int:
    """Return kappa: a learned scale is stored multiplied by ``2**kappa`` (specification, section 6.1)."""
    x = 1.0 / scale if optimizer == "adam" else math.sqrt(size)
    return min(MAX_KAPPA, max(0, math.frexp(x)[1] - 1))


def default_axes(shape: Sequence[int]) -> str:
    """Return the default axes of a tensor by rank, or raise :class:`~smh.PlanError` for rank 6 or more."""
    if len(shape) not in _AXES:
        raise PlanError(f"a tensor of {len(shape)} axes needs axes=..., for example 'a b c h i o'; got shape {shape}")
    return _AXES[len(shape)]
