"""PyTorch's kernels: hash words in int64, and sums by segment."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch

from smh.core.kernels import Array, Kernels


class TorchKernels(Kernels):
    """Kernels for tensors on any device.

    Float32 products have integers of at most 9 bits as factors, which every unit holds that PyTorch may choose for them
    (TF32, bfloat16 with float32 sums). So no setting of the precision of products changes a bit. Autocast makes float16
    and bfloat16 of results too, and is off while these run.
    """

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(xp, smooth)

    @property
    def word_dtype(self) -> Any:
        """int64: the unsigned types of PyTorch have no arithmetic."""
        return torch.int64

    def device(self, x: Array) -> torch.device:
        """Return the device of a tensor."""
        return x.device

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in whatever order: sums of such float64 integers are exact."""
        return torch.zeros((size,), dtype=x.dtype, device=x.device).scatter_add(0, segments, x)
