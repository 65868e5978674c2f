"""JAX's kernels: sums by segment; JAX places arrays itself."""

from __future__ import annotations

import jax
import jax.numpy as xp

from smh.v2.core.kernels import Array, Kernels


class JaxKernels(Kernels):
    """Kernels for arrays of JAX, inside of :func:`jax.enable_x64`.

    Float32 products have integers of at most 9 bits as factors, which every unit holds that XLA may choose for them
    (TF32, bfloat16 with float32 sums). So no setting of the precision of products changes a bit.
    """

    def __init__(self, smooth: bool = False) -> None:
        super().__init__(xp, smooth)

    def device(self, x: Array) -> None:
        """Return None: arrays are made where those are that they meet."""
        return None

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in whatever order: sums of such float64 integers are exact."""
        return jax.ops.segment_sum(x, segments, num_segments=size)
