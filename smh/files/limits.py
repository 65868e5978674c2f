"""Limits on the weights of untrusted files, where a few bytes can describe billions of weights.

Plans built by the user have no limit. ``load`` of every backend, and the commands that build weights from files, do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from smh.core.integers import pool_arrays
from smh.core.plan import Plan
from smh.core.pools import Hash
from smh.errors import LimitError
from smh.files.integers import stored_bytes

if TYPE_CHECKING:
    from smh.files.checkpoint import Checkpoint

FLOOR = 1 << 30  # bytes of weights allowed for every file
GROWTH = 1024  # bytes of weights allowed per stored byte


def default(checkpoint: Checkpoint) -> int:
    """Return the default limit on the bytes of the weights of a file.

    The limit is 1 GiB or 1,024 times the stored bytes, whichever is more: 268 million weights from a file of any size,
    and no limit for a file of 8-bit integers at a ratio of 1/256 or more. Only shapes and dtypes of the checkpoint are
    read.

    Examples
    --------
    >>> import smh
    >>> plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
    >>> default(smh.Checkpoint(plan, smh.initialize(plan), {}, "0" * 64)) == 2**30
    True
    """
    kept = sum(
        checkpoint.kept_bytes(name) or math.prod(x.shape) * x.dtype.itemsize for name, x in checkpoint.dense.items()
    )
    pool = checkpoint.plan.file_bytes
    for name, bits, shape, _ in pool_arrays(checkpoint.plan):
        if name in checkpoint.coded:
            pool += checkpoint.coded[name] - stored_bytes(bits, shape)
    return max(FLOOR, GROWTH * (pool + kept))


def check_plan(plan: Plan, max_bytes: int, names: Iterable[str] | None = None) -> None:
    """Raise :class:`~smh.LimitError` if building the named tensors, or all, computes more than a number of bytes.

    Each weight counts four bytes for every part of the pool, and for every hash function of a hash pool.
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
            f"the plan describes {weights:,} weights, {size:,} bytes at 4 bytes per weight{each}, and the limit is "
            f"{max_bytes:,}: if you trust its origin, raise the limit with max_bytes={size} (on the command line "
            f"--max-bytes {size})"
        )


def check_file(checkpoint: Checkpoint, max_bytes: int | None = None) -> None:
    """Raise :class:`~smh.LimitError` if the weights of a file exceed a limit, by default that of the file."""
    check_plan(checkpoint.plan, default(checkpoint) if max_bytes is None else max_bytes)
