"""Sizes in bytes: what arrays take in a file, and the largest pool that fits (specification, section 12)."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from smh.core.pools import Pool
from smh.core.pools.base import BITS
from smh.errors import PlanError

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})")


def file_bytes(pool: Pool) -> int:
    """Return how many bytes the integers of a sized pool take: half a byte each up to 4 bits, one up to 8, else two.

    Examples
    --------
    >>> from smh.core.pools import Matmul
    >>> [file_bytes(Matmul(n=3, m=1, bits=bits)) for bits in (4, 8, 9)]
    [4, 6, 12]
    """
    total = 0
    for leaf in pool.leaves(seed=0):
        bits = leaf.pool.bits or BITS
        for shape in leaf.pool.local_shapes().values():
            count = math.prod(shape)
            total += -(-count // 2) if bits <= 4 else count if bits <= 8 else 2 * count
    return total


def largest_that_fits(pool: Pool, weights: int, size: int, besides: int) -> Pool:
    """Return the pool sized by the largest ratio at which its integers, and what is stored besides, fit.

    Parameters
    ----------
    pool : Pool
        A request.
    weights : int
        The number of weights.
    size, besides : int
        Bytes for everything, and bytes of what is not the pool.

    Raises
    ------
    PlanError
        If even the smallest pool is too large; the message says what would fit.
    """

    def at(variables: int) -> Pool:
        return pool.sized(weights, Fraction(variables, weights))

    low = math.ceil(pool.smallest_ratio(weights) * weights)
    least = file_bytes(at(low)) + besides
    if least > size:
        raise PlanError(
            f"{weights:,} weights, and what is kept, need at least {least:,} bytes with this pool and these bits; "
            f"got {size:,}"
        )
    high = max(low, 2 * size + 1)
    while high - low > 1:  # the bytes grow with the number of variables
        middle = (low + high) // 2
        low, high = (middle, high) if file_bytes(at(middle)) + besides <= size else (low, middle)
    return at(low)


def parse_size(size: Any) -> int:
    """Return a number of bytes, given as such or as ``"500 kB"``.

    Raises
    ------
    PlanError
        For anything else.

    Examples
    --------
    >>> parse_size("1.5 MB"), parse_size("2KiB"), parse_size(300)
    (1500000, 2048, 300)
    """
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is not None and found[2] in _UNITS:
        return int(Fraction(found[1]) * _UNITS[found[2]])
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    raise PlanError(f"size must be a number of bytes, or text such as '500 kB' or '2 MiB'; got {size!r}")
