"""How much a file may ask to be built: a few bytes can describe billions of weights.

A plan that a user made is theirs. That of a file may be a stranger's, so there is a limit where a file becomes weights:
in ``load`` of every backend, and in the commands that build. By default it is :data:`FLOOR`, or :data:`GROWTH` times
what the file stores, whichever is more: 268 million weights from a file of any size, and as many as a plan can have for
a file of 8-bit integers at a ratio of 1/256.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from smh.core.plan import Plan
from smh.core.pools import Hash
from smh.errors import LimitError

if TYPE_CHECKING:
    from smh.files.checkpoint import Checkpoint

FLOOR = 1 << 30
"""Bytes that every file may ask for."""
GROWTH = 1024
"""Bytes that a file may ask for with each byte that it stores: 256 weights for each integer of 8 bits."""


def needed(plan: Plan, names: Iterable[str] | None = None) -> int:
    """Return how many bytes are computed to build weights, one part and one hash function of the pool after the other.

    Parameters
    ----------
    plan : Plan
        What would be built.
    names : iterable of str, optional
        Which tensors; all by default.

    Returns
    -------
    int
        Four for every weight in every part of the pool, and in a hash pool in every hash function.

    Raises
    ------
    UnknownNameError
        If the plan has no tensor of that name.

    Examples
    --------
    >>> needed(Plan.build({"fc": (20, 5)}, ratio=0.4))
    400
    """
    weights = sum(tensor.size for tensor in plan.select(names))
    return 4 * weights * _terms(plan)


def default(found: Checkpoint) -> int:
    """Return the limit for what a file asks to be built, where a user gives none.

    Parameters
    ----------
    found : Checkpoint
        What the file stores; of its arrays only shapes and dtypes are looked at.
    """
    kept: Iterable[Any] = found.dense.values()
    stored: int = found.plan.file_bytes + sum(math.prod(x.shape) * x.dtype.itemsize for x in kept)
    return max(FLOOR, GROWTH * stored)


def check_plan(plan: Plan, max_bytes: int, names: Iterable[str] | None = None) -> None:
    """Raise :class:`~smh.LimitError` if weights are larger than a limit.

    Parameters
    ----------
    plan : Plan
        What would be built.
    max_bytes : int
        The limit for :func:`needed`.
    names : iterable of str, optional
        Which tensors; all by default.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
        raise LimitError(f"max_bytes must be a whole number of bytes; got {max_bytes!r}")
    size = needed(plan, names)
    if size > max_bytes:
        terms = _terms(plan)
        each = "" if terms == 1 else f" for each of {terms:,} parts and hash functions of the pool"
        raise LimitError(
            f"the plan asks for {size // (4 * terms):,} weights, {size:,} bytes to be built at 4 bytes a "
            f"weight{each}, and the limit is {max_bytes:,}: if you trust where it comes from, raise it by "
            f"max_bytes={size} (on the command line --max-bytes {size})"
        )


def check_file(found: Checkpoint, max_bytes: int | None = None) -> None:
    """Raise :class:`~smh.LimitError` if a file asks for more weights than a limit allows.

    Parameters
    ----------
    found : Checkpoint
        What was read.
    max_bytes : int, optional
        The limit; by default :func:`default`.

    Examples
    --------
    >>> import numpy as np
    >>> from smh import Checkpoint, Plan, initialize, pools
    >>> plan = Plan.build({"fc": (30_000, 30_000)}, ratio=1e-7, pool=pools.Hash())
    >>> check_file(Checkpoint(plan, initialize(plan), {}, "0" * 64))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    smh.errors.LimitError: the plan asks for 900,000,000 weights, 3,600,000,000 bytes to be built ...
    """
    check_plan(found.plan, default(found) if max_bytes is None else max_bytes)


def _terms(plan: Plan) -> int:
    pools = (leaf.pool for leaf in plan.pool.leaves(seed=0))
    return sum(pool.hashes if isinstance(pool, Hash) else 1 for pool in pools)
