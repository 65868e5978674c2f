"""What the arguments of ``Plan.build`` mean, tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from smh.core import rules
from smh.core.checks import ceil_digits, whole_number
from smh.core.pools import Pool
from smh.core.pools.base import LIMIT
from smh.core.sizes import file_bytes
from smh.core.tensors import TensorSpec
from smh.core.versions import VERSION
from smh.errors import CheckpointError, PlanError, near_names
from smh.strict_json import canonical_json, check_limits


def shape(name: Any, shape: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, or raise :class:`~smh.PlanError`."""
    if not isinstance(name, str) or not name:
        raise PlanError(f"a tensor's name must be a string that is not empty; got {name!r}")
    try:
        sizes = tuple(shape)
    except TypeError as error:
        raise PlanError(f"the shape of {name!r} must be a sequence of integers; got {shape!r}") from error
    each = f"every size in the shape {sizes} of tensor {name!r}"
    return tuple(whole_number(each, size, 1, LIMIT - 1) for size in sizes)


def known(what: str, given: Mapping[str, Any] | None, names: list[str], shapes: Mapping[str, Any]) -> None:
    """Raise :class:`~smh.PlanError` if an argument names a tensor that is not generated."""
    for name in given or ():
        if name not in names:
            why = "is not generated" if name in shapes else f"is not a tensor: {near_names(str(name), names)}"
            raise PlanError(f"{what} names {name!r}, which {why}")


def per_tensor(what: str, given: Any, name: str, names: list[str]) -> Any:
    """Return what an argument, given for all tensors or by name, says of one."""
    if not isinstance(given, Mapping):
        return given
    known(what, given, names, {})
    if name not in given:
        raise PlanError(
            f"{what} is given by name but lacks tensor {name!r}: give all of {len(names)} generated tensors"
        )
    return given[name]


def modifiers(given: Any) -> tuple[str, ...]:
    """Return a list of modifiers as a tuple."""
    if isinstance(given, str):
        raise PlanError(f"modifiers must be a list; got the string {given!r}: write [{given!r}]")
    return tuple(given)


def resolve(name: str, rule: Any, values: Mapping[str, Any] | None, shape: tuple[int, ...]) -> str | float:
    """Return a rule as it is, and ``match`` and numbers as float32 values."""
    if rule != "match":
        return rule if isinstance(rule, str) else rules.number(rule)
    if values is None or name not in values:
        raise PlanError(f"scale 'match' of tensor {name!r} needs its present values: pass values={{name: array}}")
    value = np.asarray(values[name], dtype=np.float64)
    if value.size != math.prod(shape):
        raise PlanError(f"the values of {name!r} have shape {value.shape}, which does not hold the elements of {shape}")
    deviation = float(np.std(value))
    if not deviation > 0.0 or not math.isfinite(deviation):
        raise PlanError(
            f"scale 'match' of tensor {name!r} needs values that vary and are finite; their deviation is {deviation}: "
            "exclude the tensor, or give its scale as a number"
        )
    return rules.number(deviation)


def mean_scale(tensors: Sequence[TensorSpec]) -> float:
    """Return the size-weighted root mean square of the initial scales."""
    total = 0.0
    for tensor in tensors:
        total += float(tensor.size) * (tensor.initial_scale * tensor.initial_scale)
    return math.sqrt(total / tensors[-1].stop)


def sized(pool: Pool, weights: int, ratio: Any) -> Pool:
    """Return a pool sized by a ratio, or raise :class:`~smh.PlanError` with the smallest one that is feasible."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float, Fraction, np.integer, np.floating)):
        raise PlanError(f"ratio must be a number above 0; got {ratio!r}")
    if not 0 < ratio < math.inf:
        raise PlanError(f"ratio must be a number above 0; got {ratio!r}")
    share = ratio if isinstance(ratio, Fraction) else Fraction(repr(float(ratio)))
    smallest = pool.smallest_ratio(weights)
    if share < smallest:
        raise PlanError(
            f"ratio {float(share):g} leaves no room for this pool over {weights} weights; "
            f"the smallest feasible ratio is {ceil_digits(smallest)}"
        )
    return pool.sized(weights, share)


def check_storable(plan: str, pool: Pool, scales: Sequence[str]) -> None:
    """Raise :class:`~smh.PlanError` if no file can hold a plan: its header would be larger than readers take.

    The header is that of a file without kept tensors, but for digits that are not known yet (section 12).

    Parameters
    ----------
    plan : str
        Its JSON.
    pool : Pool
        Its pool.
    scales : sequence of str
        The names of learned scales, ``scale/...``.
    """
    arrays = pool.variable_shapes()
    metadata: dict[str, Any] = dict.fromkeys(("checksum", "digest", "header_checksum"), "0" * 64)
    metadata |= {"plan": json.loads(plan), "pool_exponents": dict.fromkeys(arrays, -29), "version": VERSION}
    header: dict[str, Any] = {"__metadata__": {"smh": canonical_json(metadata)}}
    last = file_bytes(pool) + 4 * len(scales)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(scales, ())
    shapes |= {f"pool/{name}": shape for name, shape in arrays.items()}
    for name, shape in shapes.items():
        header[name] = {"dtype": "I16", "shape": shape, "data_offsets": [last, last]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    try:
        check_limits(text.encode("utf-8", "surrogatepass"), "the header of a file with this plan")
    except CheckpointError as error:
        raise PlanError(f"{error}: generate fewer tensors, or give them shorter names") from error
