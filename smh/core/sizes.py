"""Sizes of pools from a ratio or a number of bytes (specification, sections 4.7 and 12)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from smh.core.pools import Pool
from smh.core.pools.base import BITS
from smh.core.versions import VERSION
from smh.errors import CheckpointError, PlanError
from smh.strict_json import canonical_json, check_limits

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})")
_RATIO = re.compile(r"([0-9]{0,9}(?:\.[0-9]{1,15})?)\s*(%?)")


def sized_by_ratio(pool: Pool, weights: int, ratio: Any) -> Pool:
    """Return a pool sized by a ratio, or raise :class:`~smh.PlanError` with the smallest feasible ratio."""
    ratio = parse_ratio(ratio)
    share = ratio if isinstance(ratio, Fraction) else Fraction(repr(float(ratio)))
    smallest = pool.smallest_ratio(weights)
    if share < smallest:
        raise PlanError(
            f"ratio {float(share):g} leaves no room for this pool over {weights} weights; "
            f"the smallest feasible ratio is {_ceil_digits(smallest)}"
        )
    return pool.sized(weights, share)


def _ceil_digits(value: Fraction, digits: int = 4) -> str:
    """Return a short decimal that is not below ``value``, so it is feasible as typed."""
    exponent = digits - 1 - math.floor(math.log10(value))
    scaled = math.ceil(value * Fraction(10) ** exponent)
    return f"{float(Fraction(scaled) / Fraction(10) ** exponent):.{digits}g}"


def largest_that_fits(pool: Pool, weights: int, size: int, besides: int) -> Pool:
    """Return the pool of the largest ratio whose integers, with the bytes stored ``besides``, fit into a size.

    Raises :class:`~smh.PlanError` if even the smallest pool is too large. The message gives the smallest size.
    """

    def at(variables: int) -> Pool:
        return pool.sized(weights, Fraction(variables, weights))

    low = math.ceil(pool.smallest_ratio(weights) * weights)
    least = file_bytes(at(low)) + besides
    if least > size:
        raise PlanError(
            f"{weights:,} weights and the kept tensors need at least {least:,} bytes with this pool and these bits; "
            f"got {size:,}"
        )
    high = max(low, 2 * size + 1)
    while high - low > 1:  # the bytes grow with the number of variables
        middle = (low + high) // 2
        low, high = (middle, high) if file_bytes(at(middle)) + besides <= size else (low, middle)
    return at(low)


def file_bytes(pool: Pool) -> int:
    """Return the bytes of the integers of a sized pool: half a byte each up to 4 bits, one up to 8 bits, else two."""
    total = 0
    for leaf in pool.leaves(seed=0):
        bits = leaf.pool.bits or BITS
        for shape in leaf.pool.local_shapes().values():
            count = math.prod(shape)
            total += -(-count // 2) if bits <= 4 else count if bits <= 8 else 2 * count
    return total


def parse_ratio(ratio: Any) -> Any:
    """Return a ratio above 0 as it is, or as a fraction that text gives, or raise :class:`~smh.PlanError`.

    >>> parse_ratio("10%"), parse_ratio("0.05"), parse_ratio(0.1)
    (Fraction(1, 10), Fraction(1, 20), 0.1)
    """
    given, match = ratio, _RATIO.fullmatch(ratio.strip()) if isinstance(ratio, str) else None
    if match is not None and match[1]:
        ratio = Fraction(match[1]) / (100 if match[2] else 1)
    is_number = isinstance(ratio, (int, float, Fraction, np.integer, np.floating)) and not isinstance(ratio, bool)
    if not is_number or not 0 < ratio < math.inf:
        shown, hint = f"{given!r:.80}", ""
        if isinstance(ratio, str) and _bytes_of(ratio):
            hint = f": write size={ratio!r}"
        elif hasattr(ratio, "variable_shapes"):
            shown, hint = f"a {type(ratio).__name__}", ": pass it as plan="
        raise PlanError(f"ratio must be a number above 0, or text such as '10%'; got {shown}{hint}")
    return ratio


def _bytes_of(size: str) -> int | None:
    """Return the bytes of a text such as ``500 kB``, in any case, or None for other text."""
    match = _SIZE.fullmatch(size.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    return None if match is None or unit is None else int(Fraction(match[1]) * unit)


def parse_size(size: Any) -> int:
    """Return a number of bytes from a number or text, or raise :class:`~smh.PlanError`.

    >>> parse_size("1.5 MB"), parse_size("2kib"), parse_size(300)
    (1500000, 2048, 300)
    """
    if isinstance(size, str) and (found := _bytes_of(size)) is not None:
        return found
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    is_share = isinstance(size, float | Fraction) and 0 < size < 1 or isinstance(size, str) and size.endswith("%")
    hint = f": write ratio={size!r}" if is_share else ""
    raise PlanError(f"size must be a number of bytes, or text such as '500 kB' or '2 MiB'; got {size!r}{hint}")


def check_storable(plan: str, pool: Pool, scales: Sequence[str]) -> None:
    """Raise :class:`~smh.PlanError` if no file can hold a plan, because its header would exceed the limit of readers.

    ``plan`` is the JSON of the plan, ``scales`` are the names of learned scales. The header is that of a file without
    kept tensors, with placeholders for unknown digits (section 12).
    """
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(scales, ())
    shapes |= {f"pool/{name}": shape for name, shape in pool.variable_shapes().items()}
    metadata: dict[str, Any] = dict.fromkeys(("checksum", "digest", "header_checksum"), "0" * 64)
    exponents = dict.fromkeys(pool.variable_shapes(), -29)
    metadata |= {"plan": json.loads(plan), "pool_exponents": exponents, "version": VERSION}
    header: dict[str, Any] = {"__metadata__": {"smh": canonical_json(metadata)}}
    last = file_bytes(pool) + 4 * len(scales)
    for name, shape in shapes.items():
        header[name] = {"dtype": "I16", "shape": shape, "data_offsets": [last, last]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    try:
        check_limits(text.encode("utf-8", "surrogatepass"), "the header of a file with this plan")
    except CheckpointError as error:
        raise PlanError(f"{error}: generate fewer tensors, or shorten their names") from error
