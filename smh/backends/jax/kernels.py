"""JAX's kernels: products whose precision nobody can lower, and sums by segment; JAX places arrays itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import jax

from smh.core.kernels import Array, Kernels


class JaxKernels(Kernels):
    """Kernels for arrays of JAX, inside of :func:`jax.enable_x64`.

    Float32 products have integers of at most 8 bits as factors, which every unit holds that XLA chooses for them by
    default (TF32, bfloat16 with float32 sums). So the default is exact, and these products ask for it: by
    ``jax_default_matmul_precision`` a user can choose an algorithm that is not, such as ``"F16_F16_F16"``, and one such
    as ``"F32_F32_F32"`` would make float32 products of float64 ones. Smooth products have the precision that users set.
    """

    def device(self, x: Array) -> None:
        """Return None: arrays are made where those are that they meet."""
        return None

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Multiply by XLA's own choice of units."""
        with self._precision():
            return super().product(left, right, unit, exact_terms)

    def factor_sums(self, q: Array, left: Array, right: Array, exact_terms: int) -> tuple[Array, Array]:
        """Multiply in float64, whatever users set."""
        with self._precision():
            return super().factor_sums(q, left, right, exact_terms)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in whatever order: sums of such float64 integers are exact."""
        return jax.ops.segment_sum(x, segments, num_segments=size)

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.smooth else jax.default_matmul_precision("default")
