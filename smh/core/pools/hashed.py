"""The hash pool: virtual weights are signed sums of hashed table entries (specification, section 4.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from smh.core.checks import whole_number
from smh.core.kernels import Array, Kernels
from smh.core.pools.arithmetic import HashArithmetic
from smh.core.pools.base import LIMIT, LeafPool
from smh.errors import PlanError

MAX_HASHES = 256


@dataclass(frozen=True)
class Hash(HashArithmetic, LeafPool):
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
