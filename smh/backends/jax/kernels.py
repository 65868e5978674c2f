"""JAX's kernels: products of guaranteed precision, and sums by segment. JAX places arrays itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from smh.backends.block_kernels import BlockKernels
from smh.core.grid import Grid
from smh.core.kernels import Array


class JaxKernels(BlockKernels):
    """Kernels for JAX arrays, within :func:`jax.enable_x64`.

    The factors of float32 products are integers of at most 8 bits. XLA's default units for them (TF32, bfloat16 with
    float32 sums) hold these exactly, so these products request the default. With ``jax_default_matmul_precision``,
    users can select algorithms that are not exact, such as ``"F16_F16_F16"``, or that turn float64 products into
    float32 products, such as ``"F32_F32_F32"``. Smooth products have the precision that users set.
    """

    def device(self, x: Array) -> None:
        """Return None: JAX creates arrays where their operands are."""
        return None

    def product(self, left: Array, right: Array, unit: Array, exact_terms: int) -> Array:
        """Multiply with XLA's default units."""
        with self._precision():
            return super().product(left, right, unit, exact_terms)

    def scaled_products(
        self, left: Array, right: Array, unit: Array, exact_terms: int, parts: Sequence[tuple[Array | float, int, int]]
    ) -> list[Array]:
        """Hold the rows of one tensor at a time."""
        results = []
        for scale, start, stop in parts:

            def weights(
                unit: Array, left: Array, right: Array, scale: Array | float, start: int = start, stop: int = stop
            ) -> Array:
                return super(JaxKernels, self).scaled_products(left, right, unit, exact_terms, [(scale, start, stop)])[
                    0
                ]

            results.append(self.alone(weights, unit, left, right, scale))
        return results

    def largest(self, x: Array) -> Array:
        """Use the maximum, which propagates NaN in JAX."""
        return jnp.max(jnp.abs(x))

    def matmul_gradients(
        self, left: Grid, right: Grid, exact_terms: int, gain: float, parts: Sequence[Any]
    ) -> tuple[Array, Array, list[Array]] | None:
        """Multiply with XLA's default units."""
        with self._precision():
            return super().matmul_gradients(left, right, exact_terms, gain, parts)

    def alone(self, fn: Callable[..., Any], *arrays: Any) -> Any:
        """Use a branch on the CPU, where XLA otherwise holds all temporaries that could be used in parallel."""
        if (
            jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty
        ):  # a branch would need shardings
            return fn(*arrays)
        shapes = jax.eval_shape(fn, *arrays)
        never = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(arrays[0] < 0.0, lambda *_: never(), fn, *arrays)

    def transposed(self, x: Array) -> Array:
        """Keep XLA from multiplying columns, which is slower."""
        return jax.lax.optimization_barrier(x.T)

    def factor_sums(self, q: Array, left: Array, right: Array, exact_terms: int) -> tuple[Array, Array]:
        """Multiply in float64, for every setting of users."""
        with self._precision():
            return super().factor_sums(q, left, right, exact_terms)

    def segment_sum(self, x: Array, segments: Array, size: int) -> Array:
        """Add in any order: sums of these float64 integers are exact."""
        return jax.ops.segment_sum(x, segments, num_segments=size)

    def counts(self, x: Array, size: int) -> Array:
        """Count by index."""
        return jnp.zeros(size, jnp.int32).at[x.astype(jnp.int32)].add(1).astype(jnp.float32)

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.smooth else jax.default_matmul_precision("default")
