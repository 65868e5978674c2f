"""How many bytes a trained model takes: integers entropy-coded as in a packed file, everything else in float32.

Headers are not counted, for no method. Weights that were trained in float32 are rounded after training, each tensor by
its largest magnitude, and the rounded model is tested: a network that was not trained with integers is stored in few
bytes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from smh.files.coder import encode
from smh.files.packed import FEWEST_CODED

ROUNDINGS = (8, 6, 5, 4)
"""The bits of integers to which float32 weights are rounded after training."""


def coded_bytes(q: np.ndarray, bits: int) -> int:
    """Return the bytes of the integers of an array in a packed file, without its header."""
    q = q.astype(np.int8 if bits <= 8 else np.int16).reshape(-1)
    plain = -(-q.size // 2) if bits <= 4 else q.nbytes
    return plain if q.size < FEWEST_CODED else min(plain, len(encode(q, bits)))


def all_coded_bytes(integers: Iterable[torch.Tensor], bits: int) -> int:
    """Return the bytes of the integers of several arrays."""
    return sum(coded_bytes(q.cpu().numpy(), bits) for q in integers)


@torch.no_grad()
def round_(weights: Sequence[nn.Parameter], bits: int) -> int:
    """Round weights in place, and return their bytes: integers and one float32 scale for each tensor."""
    largest = 2 ** (bits - 1) - 1
    total = 0
    for x in (weight for weight in weights if weight.numel()):
        unit = x.abs().max().clamp(min=1e-30) / largest
        q = (x / unit).round()
        x.copy_(q * unit)
        total += 4 + coded_bytes(q.cpu().numpy(), bits)
    return total
