"""The arithmetic of pools: from integers to virtual weights, and gradients back (specification, sections 4, 7.3, 7.4).

Fields, sizes, JSON, gains and initial values of pools are in the public classes, such as
:class:`~smh.core.pools.Matmul`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from smh.core import hashing
from smh.core.grid import Grid, ceil_log2, exponent_of, grid
from smh.core.kernels import Array, Kernels, add_up

COTANGENT_BITS = 22
Grids = Mapping[str, Grid]
"""The arrays of a whole pool on their grids, by name."""
_FLOOR = -88
"""Virtual weights of combinations are 0 or at least 2**-88, like those of leaves."""


class PoolArithmetic(ABC):
    """A rule that turns the integers of arrays into virtual weights."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The number of virtual weights."""

    @abstractmethod
    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Return the virtual weights ``start`` to ``stop``, shape (stop - start,), float32. The range is not empty.

        Law: bit-for-bit equal to the same slice of all virtual weights. ``grids`` contains the arrays of the outermost
        pool; ``seed`` is the seed of this pool, and ``path`` the prefix of its names in ``grids``.
        """

    @abstractmethod
    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Return the gradients of all variables by name, given the gradients of all virtual weights.

        ``dv`` has the shape (capacity,), float32. See :meth:`virtual_weights` for the remaining arguments.
        """

    @abstractmethod
    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array | None:
        """Return E with ``2**E >= |v|``, float32, shape (); None if E depends on the values."""


class LeafArithmetic(PoolArithmetic):
    """A pool with arrays, not parts."""

    @property
    @abstractmethod
    def grid_bits(self) -> int:
        """B: magnitudes of integers are below ``2**B``."""

    @property
    @abstractmethod
    def factor(self) -> float:
        """The factor of sums of integers, in addition to their units."""


class Factorized(LeafArithmetic):
    """A pool of ``terms`` products of one left and one right variable per virtual weight."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """M: products per virtual weight."""

    @property
    @abstractmethod
    def side(self) -> int:
        """The number of rows and of columns of the matrix product. Its square is the capacity."""

    @property
    def capacity(self) -> int:
        """The number of virtual weights."""
        return self.side**2

    @property
    def exact_terms(self) -> int:
        """The number of terms that float32 adds exactly; 0 if bfloat16, with 8 bits, does not hold the integers."""
        return 2 ** (24 - 2 * self.grid_bits) if self.grid_bits <= 8 else 0

    def unit(self, kernels: Kernels, left: Grid, right: Grid) -> Array:
        """Return ``2**(2g) u_L u_R``, float32."""
        return left.unit * right.unit * self.factor

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array:
        """Return e + e' + ceil(log2 M) + 2g."""
        left, right = (exponent_of(kernels, grids[path + name].power) for name in ("left", "right"))
        return left + right + float(ceil_log2(self.terms) + math.log2(self.factor))

    def pull(self, kernels: Kernels, q: Grid, left: Grid, right: Grid) -> tuple[Array, Array]:
        """Return the gradients of both factors, given the cotangent of their product on its grid."""
        sums = kernels.factor_sums(q.integers, left.integers, right.integers, self.exact_terms)
        return (
            kernels.rounded_sum(sums[0], q.unit, right.unit, self.factor),
            kernels.rounded_sum(sums[1], q.unit, left.unit, self.factor),
        )


class MatmulArithmetic(Factorized):
    """Virtual weights are the entries of ``left @ right``, row-major."""

    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Return float32(2**(2g) L R) for the rows that contain the range."""
        left, right, n = grids[f"{path}left"], grids[f"{path}right"], self.side
        first = start // n
        rows = left.integers[first : -(-stop // n), :]
        v = kernels.product(rows, right.integers, self.unit(kernels, left, right), self.exact_terms)
        return kernels.xp.reshape(v, (-1,))[start - first * n : stop - first * n]

    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Return round7(2**(2g) u_Q u_R Q R^T) and round7(2**(2g) u_Q u_L L^T Q)."""
        q = grid(kernels, kernels.xp.reshape(dv, (self.side, self.side)), COTANGENT_BITS, 70, 90)
        left, right = self.pull(kernels, q, grids[f"{path}left"], grids[f"{path}right"])
        return {f"{path}left": left, f"{path}right": right}


class KroneckerArithmetic(Factorized):
    """Virtual weights are the entries of a sum of Kronecker products, row-major."""

    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Return float32(2**(2g) A B), its axes (i1, j1, i2, j2) rearranged to (i1, i2, j1, j2)."""
        xp, d = kernels.xp, self._root
        left, right = grids[f"{path}left"], grids[f"{path}right"]
        a, b = self._matrices(kernels, left, right)
        first, last = start // d**3, -(-stop // d**3)
        v = kernels.product(
            a.integers[first * d : last * d, :], b.integers, self.unit(kernels, left, right), self.exact_terms
        )
        v = xp.reshape(xp.permute_dims(xp.reshape(v, (last - first, d, d, d)), (0, 2, 1, 3)), (-1,))
        return v[start - first * d**3 : stop - first * d**3]

    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Return the gradients of matmul for the rearranged cotangent, as [t, d, d]."""
        xp, d, shape = kernels.xp, self._root, (self.terms, self._root, self._root)
        dv = xp.permute_dims(xp.reshape(dv, (d, d, d, d)), (0, 2, 1, 3))
        q = grid(kernels, xp.reshape(dv, (d * d, d * d)), COTANGENT_BITS, 70, 90)
        a, b = self.pull(kernels, q, *self._matrices(kernels, grids[f"{path}left"], grids[f"{path}right"]))
        return {f"{path}left": xp.reshape(xp.matrix_transpose(a), shape), f"{path}right": xp.reshape(b, shape)}

    @property
    def _root(self) -> int:
        """The number of rows and of columns of each factor."""
        return math.isqrt(self.side)

    def _matrices(self, kernels: Kernels, left: Grid, right: Grid) -> tuple[Grid, Grid]:
        """Return the [d*d, t] and [t, d*d] matrices."""
        xp, terms = kernels.xp, self.terms
        a = xp.matrix_transpose(xp.reshape(left.integers, (terms, -1)))
        return left._replace(integers=a), right._replace(integers=xp.reshape(right.integers, (terms, -1)))


class HashArithmetic(LeafArithmetic):
    """Virtual weights are signed sums of hashed table entries."""

    hashes: int
    signed: bool
    size: int | None

    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Return float32(2**g sum of sigma T); float32 holds sums of up to 256 integers of 15 bits."""
        table = grids[f"{path}table"]

        def values(start: int, stop: int) -> Array:
            i = self._range(kernels, table.integers, start, stop)
            terms = [
                kernels.xp.take(table.integers[m, :], self._buckets(kernels, i, m, seed))
                * self._sign(kernels, i, m, seed, kernels.xp.float32)
                for m in range(self.hashes)
            ]
            return add_up(terms) * (table.unit * self.factor)

        return kernels.tiles(values, start, stop)

    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Return round7(2**g u_Q sum of sigma Q) over the virtual weights that read an entry."""
        xp = kernels.xp
        q = grid(kernels, dv, COTANGENT_BITS, 70, 90)

        def row(m: int) -> Array:
            def sums(start: int, stop: int) -> Array:
                i = self._range(kernels, dv, start, stop)
                signed = q.integers[start:stop] * self._sign(kernels, i, m, seed, xp.float32)
                return kernels.bucket_sums(signed, self._buckets(kernels, i, m, seed), self.size or 1)

            # If Q is poisoned the unit is NaN, which also makes unread entries NaN.
            return kernels.rounded_sum(kernels.sum_tiles(sums, 0, dv.shape[0]), q.unit, self.factor)

        return {f"{path}table": xp.stack([row(m) for m in range(self.hashes)])}

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array:
        """Return e + ceil(log2 hashes) + g."""
        return exponent_of(kernels, grids[f"{path}table"].power) + float(
            ceil_log2(self.hashes) + math.log2(self.factor)
        )

    def _range(self, kernels: Kernels, like: Array, start: int, stop: int) -> Array:
        return kernels.xp.arange(start, stop, dtype=kernels.word_dtype, device=kernels.device(like))

    def _buckets(self, kernels: Kernels, i: Array, m: int, seed: int) -> Array:
        return kernels.xp.astype(hashing.buckets(kernels.xp, seed, m, i, self.size or 1), kernels.index_dtype)

    def _sign(self, kernels: Kernels, i: Array, m: int, seed: int, dtype: type) -> Array:
        if self.signed:
            return hashing.signs(kernels.xp, seed, m, i, dtype)
        return kernels.xp.ones(i.shape, dtype=dtype, device=kernels.device(i))


class Combination(PoolArithmetic):
    """Several pools whose virtual weights are combined elementwise."""

    parts: tuple[PoolArithmetic, ...]

    @property
    def capacity(self) -> int:
        """The smallest capacity of the parts."""
        return min(part.capacity for part in self.parts)

    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Combine the virtual weights of the parts."""
        return self._combined(kernels, self._values(kernels, grids, start, stop, seed, path))

    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Pass each part its cotangent, +0 for virtual weights beyond the capacity."""
        xp = kernels.xp
        values = functools.partial(self._values, kernels, grids, 0, self.capacity, seed, path)
        cotangents = self._cotangents(kernels, dv, values)
        gradients: dict[str, Array] = {}
        for (part, part_seed, part_path), dpart in zip(self._placed(seed, path), cotangents, strict=True):
            missing = part.capacity - self.capacity
            if missing:
                zeros = xp.zeros((missing,), dtype=xp.float32, device=kernels.device(dv))
                dpart = xp.concat([dpart, zeros])
            gradients |= part.vjp(kernels, grids, dpart, part_seed, part_path)
        return gradients

    @abstractmethod
    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        """Return the virtual weights, given those of the parts."""

    @abstractmethod
    def _cotangents(self, kernels: Kernels, dv: Array, values: Callable[[], list[Array]]) -> list[Array]:
        """Return the cotangents of the parts. ``values()`` returns the virtual weights of the parts."""

    def _placed(self, seed: int, path: str) -> list[tuple[PoolArithmetic, int, str]]:
        """Return every part with its seed and the prefix of its variables."""
        return [(part, hashing.key(seed, hashing.PART_STREAM + p), f"{path}{p}/") for p, part in enumerate(self.parts)]

    def _values(self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str) -> list[Array]:
        """Return the virtual weights of the parts."""
        return [
            part.virtual_weights(kernels, grids, start, stop, part_seed, part_path)
            for part, part_seed, part_path in self._placed(seed, path)
        ]


class SumArithmetic(Combination):
    """Virtual weights are the sums of the parts' virtual weights, added in float64 and rounded once."""

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array | None:
        """Return the largest bound of the parts plus ceil(log2 k)."""
        bounds = [part.bound(kernels, grids, part_path) for part, _, part_path in self._placed(0, path)]
        if any(bound is None for bound in bounds):
            return None
        return kernels.xp.max(kernels.xp.stack(bounds)) + float(ceil_log2(len(bounds)))

    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        return kernels.add(values, _FLOOR)

    def _cotangents(self, kernels: Kernels, dv: Array, values: Callable[[], list[Array]]) -> list[Array]:
        return [dv] * len(self.parts)


class ProductArithmetic(Combination):
    """Virtual weights are the products of the parts' virtual weights, from left to right."""

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> None:
        """Return None: the bound depends on the values."""
        return None

    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        return functools.reduce(lambda a, b: kernels.times(a, b, _FLOOR), values)

    def _cotangents(self, kernels: Kernels, dv: Array, values: Callable[[], list[Array]]) -> list[Array]:
        v = values()
        others = (v[:p] + v[p + 1 :] for p in range(len(v)))
        return [functools.reduce(kernels.times, rest, dv) for rest in others]
