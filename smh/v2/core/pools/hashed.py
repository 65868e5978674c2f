"""The hash pool: virtual weights are signed sums of hashed table entries (specification, section 4.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from smh.v2.core import hashing
from smh.v2.core.checks import whole_number
from smh.v2.core.grid import ceil_log2, grid, round7
from smh.v2.core.kernels import Array, Kernels, add_up
from smh.v2.core.pools.base import COTANGENT_BITS, LIMIT, Grids, LeafPool, all_powers
from smh.v2.errors import PlanError

MAX_HASHES = 256


@dataclass(frozen=True)
class Hash(LeafPool):
    """Virtual weight i is the sum over m of ``sigma_m(i) * table[m, h_m(i)]``.

    With one signed hash function this is the weight sharing of HashedNets.

    Parameters
    ----------
    size : int, optional
        Variables per hash function; by default as many as the ratio allows.
    hashes : int
        Hash functions, each with a row of the table of its own.
    signed : bool
        Whether a second hash gives each term a sign.
    capacity : int, optional
        Virtual weights; by default as many as there are weights.
    bits : int, optional
        Bits of the integers, 2 to 16; by default those of ``Plan.build``.
    exponents : tuple of int, optional
        The fixed exponent of the table, from -29 to 30; by default the values decide.
    gain : int, optional
        g, 0 to 20: variables are stored 2**g times smaller; by default the rule of the optimizer.

    Examples
    --------
    >>> Hash(hashes=2).sized(10_000, Fraction(1, 10)).size
    500
    """

    size: int | None = None
    hashes: int = 1
    signed: bool = True
    capacity: int | None = None  # type: ignore[assignment]
    bits: int | None = None
    exponents: tuple[int, ...] | None = None
    gain: int | None = None
    kind: ClassVar[str] = "hash"
    size_fields: ClassVar[tuple[str, ...]] = ("size", "capacity")
    gain_power: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be, also in a request."""
        super().__post_init__()
        whole_number("hashes of a hash pool", self.hashes, 1, MAX_HASHES)

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the table."""
        return {"table": (self.hashes, self.size or 0)}

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
        unit = xp.astype(q.unit, xp.float64) * self.factor

        def row(m: int) -> Array:
            def sums(start: int, stop: int) -> Array:
                i = self._range(kernels, dv, start, stop)
                signed = xp.astype(q.integers[start:stop], xp.float64) * self._sign(kernels, i, m, seed, xp.float64)
                return kernels.segment_sum(signed, self._buckets(kernels, i, m, seed), self.size or 1)

            # The unit is NaN where Q is poisoned, and entries that nothing reads become NaN with it.
            return round7(xp, kernels.sum_tiles(sums, 0, dv.shape[0]) * unit)

        return {f"{path}table": xp.stack([row(m) for m in range(self.hashes)])}

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array:
        """Return 2**(e + ceil(log2 hashes) + g)."""
        return all_powers(kernels, [grids[f"{path}table"]], self.factor * 2.0 ** ceil_log2(self.hashes))

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight i reads table[m, h_m(i)] for every m."""
        xp, words = kernels.xp, kernels.xp.astype(i, kernels.word_dtype)
        columns = [self._buckets(kernels, words, m, seed) + m * (self.size or 1) for m in range(self.hashes)]
        return {"table": xp.stack(columns, axis=1)}

    def signs(self, kernels: Kernels, i: Array, seed: int) -> Array:
        """Return sigma_m(i), 1 or -1, shape (k, hashes), int64."""
        xp, words = kernels.xp, kernels.xp.astype(i, kernels.word_dtype)
        return xp.stack([self._sign(kernels, words, m, seed, xp.int64) for m in range(self.hashes)], axis=1)

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in size = floor(r N / hashes) and the capacity."""
        size = self.size or math.floor(ratio * weights / self.hashes)
        return self._replace(size=size, capacity=self.capacity or weights)

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which the given size fits, or one variable per hash function."""
        return Fraction(self.hashes * (self.size or 1), weights)

    def sigma(self, tau: float) -> float:
        """Return tau / sqrt(hashes)."""
        return tau / math.sqrt(self.hashes)

    def gain_argument(self, optimizer: str, weights: int, scale: float, tau: float) -> float:
        """Return x of the gain rule."""
        if optimizer == "sgd":
            return 1.0 / (scale * math.sqrt(self.hashes * weights / (self.size or 1)))
        return 1.0 / (scale * math.sqrt(self.hashes))

    def check(self) -> None:
        """Raise unless everything is present and allowed."""
        whole_number("capacity of a hash pool", self.capacity, 1, LIMIT - 1)
        whole_number("size of a hash pool", self.size, 1, (LIMIT - 1) // self.hashes)
        self.check_leaf()
        if not isinstance(self.signed, bool):
            raise PlanError(f"signed of a hash pool must be true or false; got {self.signed!r}")

    def _range(self, kernels: Kernels, like: Array, start: int, stop: int) -> Array:
        return kernels.xp.arange(start, stop, dtype=kernels.word_dtype, device=kernels.device(like))

    def _buckets(self, kernels: Kernels, i: Array, m: int, seed: int) -> Array:
        return kernels.xp.astype(hashing.buckets(kernels.xp, seed, m, i, self.size or 1), kernels.xp.int64)

    def _sign(self, kernels: Kernels, i: Array, m: int, seed: int, dtype: type) -> Array:
        if self.signed:
            return hashing.signs(kernels.xp, seed, m, i, dtype)
        return kernels.xp.ones(i.shape, dtype=dtype, device=kernels.device(i))
