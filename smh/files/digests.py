"""Digests: one SHA-256 over all generated weights, and one over kept tensors (specification, sections 11, 12.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from smh.core.plan import Plan
from smh.core.tensors import TensorSpec
from smh.files.header import CODES
from smh.strict_json import canonical_json

_GROUP = 1 << 24  # weights held at a time, except for a single larger tensor
_BLOCK = 1 << 20  # weights whose NaNs are unified, and that are hashed, at a time


def digest(plan: Plan, build: Callable[[list[str]], list[np.ndarray]]) -> str:
    """Return the digest of the weights of a plan. Equal digests mean equal bits.

    ``build`` returns the weights of named tensors in canonical shape. It is called with several names at a time, in
    order.
    """
    sha = hashlib.sha256()
    for group in _groups(plan):
        for tensor, weights in zip(group, build([tensor.name for tensor in group]), strict=True):
            sha.update(",".join(map(str, tensor.shape)).encode("ascii") + b"\n")
            bits = np.ascontiguousarray(weights, dtype="<f4").reshape(-1).view("<u4")
            for start in range(0, bits.size, _BLOCK):
                block = bits[start : start + _BLOCK]
                nan = (block & 0x7FFFFFFF) > 0x7F800000
                sha.update(np.where(nan, np.uint32(0x7FC00000), block).astype("<u4").data)
    return sha.hexdigest()


def kept_digest(kept: Mapping[str, np.ndarray]) -> str:
    """Return the digest of kept tensors with their names. Equal digests mean equal names, dtypes, shapes and bits.

    >>> kept_digest({"bias": np.zeros(3, np.float32)})[:8]
    '61b825be'
    """
    sha = hashlib.sha256()
    for name in sorted(kept):
        x = kept[name]
        sha.update(canonical_json([name, CODES[x.dtype.name], list(x.shape)]).encode("ascii") + b"\n")
        sha.update(np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _groups(plan: Plan) -> Iterator[list[TensorSpec]]:
    group: list[TensorSpec] = []
    for tensor in plan.tensors:
        if group and tensor.stop - group[0].offset > _GROUP:
            yield group
            group = []
        group.append(tensor)
    yield group
