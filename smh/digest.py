"""The digest: one SHA-256 over all generated weights (specification, section 7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from smh.plan import Plan, TensorSpec


def digest(plan: Plan, build: Callable[[TensorSpec], np.ndarray]) -> str:
    """Return the digest of the weights of a plan; equal digests mean equal bits.

    Parameters
    ----------
    plan : Plan
        The plan.
    build : callable
        From a tensor to its weights in canonical shape, built with exact arithmetic, as a NumPy array. It is called
        for one tensor at a time.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for tensor in plan.tensors:
        sha.update(",".join(map(str, tensor.shape)).encode("ascii") + b"\n")
        bits = np.ascontiguousarray(build(tensor), dtype="<f4").reshape(-1).view("<u4")
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        sha.update(np.where(nan, np.uint32(0x7FC00000), bits).astype("<u4").data)
    return sha.hexdigest()
