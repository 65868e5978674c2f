"""How much a file may ask to be built: a few bytes can describe billions of weights.

A plan that a user made is theirs, but that of a file may be a stranger's: ``load`` of every backend, and the commands
that build weights, have a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from smh.core.plan import Plan
from smh.core.pools import Hash
from smh.errors import LimitError

if TYPE_CHECKING:
    from smh.files.checkpoint import Checkpoint

FLOOR = 1 << 30  # bytes that every file may ask for
GROWTH = 1024  # bytes that a file may ask for with each byte that it stores


def default(found: Checkpoint) -> int:
    """Return the limit in bytes for what a file asks to be built, where a user gives none.

    It is 1 GiB, or 1,024 times what the file stores, whichever is more: 268 million weights from a file of any size,
    and as many as a plan can have for a file of 8-bit integers at a ratio of 1/256. Of the arrays of the checkpoint
    only shapes and dtypes are looked at.

    Examples
    --------
    >>> import smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> default(smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64)) == 2**30
    True
    """
    kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in found.dense.values())
    return max(FLOOR, GROWTH * (found.plan.file_bytes + kept))


def check_plan(plan: Plan, max_bytes: int, names: Iterable[str] | None = None) -> None:
    """Raise :class:`~smh.LimitError` if more than a number of bytes is computed to build the named tensors, or all.

    That is four for every weight in every part of the pool, and in a hash pool in every hash function.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
        raise LimitError(f"max_bytes must be a whole number of bytes; got {max_bytes!r}")
    weights = sum(tensor.size for tensor in plan.select(names))
    pools = (leaf.pool for leaf in plan.pool.leaves(seed=0))
    terms = sum(pool.hashes if isinstance(pool, Hash) else 1 for pool in pools)
    size = 4 * weights * terms
    if size > max_bytes:
        each = "" if terms == 1 else f" for each of {terms:,} parts and hash functions of the pool"
        raise LimitError(
            f"the plan asks for {weights:,} weights, {size:,} bytes to be built at 4 bytes a weight{each}, and the "
            f"limit is {max_bytes:,}: if you trust where it comes from, raise it by max_bytes={size} (on the command "
            f"line --max-bytes {size})"
        )


def check_file(found: Checkpoint, max_bytes: int | None = None) -> None:
    """Raise :class:`~smh.LimitError` if a file asks for more weights than a limit, by default its own, allows."""
    check_plan(found.plan, default(found) if max_bytes is None else max_bytes)
