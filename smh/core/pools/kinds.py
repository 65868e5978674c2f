"""The public pools: sizes, checks, hash indices, gains and initial deviations (specification, section 4).

Their arithmetic is in ``smh.core.pools.arithmetic``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

from smh.core.arguments import explained_class
from smh.core.checks import whole_number
from smh.core.grid import ceil_log2
from smh.core.kernels import Array, Kernels
from smh.core.pools import arithmetic
from smh.core.pools.base import LIMIT, Leaf, LeafPool, Pool, named
from smh.errors import PlanError

MAX_HASHES = 256
MAX_PARTS = 64


class _FactorizedPool(arithmetic.Factorized, LeafPool):
    """A pool of ``terms`` products of one left and one right variable per virtual weight.

    Its second size is the number of terms. Its first size, to the power ``side_power``, is the side.
    """

    gain_power: ClassVar[int] = 2
    side_power: ClassVar[int]

    @property
    def terms(self) -> int:
        """M: products per virtual weight."""
        return int(getattr(self, self.size_fields[1]) or 0)

    @property
    def side(self) -> int:
        """The number of rows and of columns of the matrix product."""
        return int((getattr(self, self.size_fields[0]) or 0) ** self.side_power)

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Set the least side that provides all weights, and as many terms as the ratio allows."""
        root = weights - 1
        for _ in range(self.side_power):
            root = math.isqrt(root)
        root = getattr(self, self.size_fields[0]) or root + 1
        terms = self.terms or max(1, math.floor(ratio * weights / (2 * root**self.side_power)))
        return self._replace(**dict(zip(self.size_fields, (root, terms), strict=True)))

    def sigma(self, tau: float) -> float:
        """Return sqrt(tau / sqrt(M)): M products of two such variables have variance tau**2."""
        return math.sqrt(tau / math.sqrt(self.terms))

    def gain_argument(self, optimizer: str, weights: int, scale: float, tau: float) -> float:
        """Return x of the gain rule."""
        if optimizer == "sgd":
            return 1.0 / ((scale * self.sigma(tau)) * math.sqrt(2.0 * self.side))
        return 1.0 / (scale * math.sqrt(2.0 * self.terms))

    def check(self) -> None:
        """Raise unless all fields are present and valid, and float64 holds every sum (specification, section 3.3)."""
        for name, most in zip(self.size_fields, (LIMIT - 1, (LIMIT - 1) // max(1, self.side)), strict=True):
            whole_number(f"{name} of a {self.kind} pool", getattr(self, name), 1, most)
        super().check()
        b = self.grid_bits
        if self.terms >= 2**24 or 2 * b + ceil_log2(self.terms) > 53:
            raise PlanError(f"a {self.kind} pool of {self.bits} bits has fewer than 2**24 terms; got {self.terms}")
        most = 2 ** (53 - arithmetic.COTANGENT_BITS - b)
        if self.side > most:
            what = f"the product of a {self.kind} pool of {self.bits} bits has at most {most} rows"
            raise PlanError(f"{what}; got {self.side}: take fewer bits, or a hash pool")

    def _terms_like(self, kernels: Kernels, i: Array) -> Array:
        return kernels.xp.arange(self.terms, dtype=i.dtype, device=kernels.device(i))


@explained_class
@dataclass(frozen=True)
class Matmul(arithmetic.MatmulArithmetic, _FactorizedPool):
    """Virtual weights are the entries of ``left @ right``, row-major (equation 4 of the paper).

    Parameters
    ----------
    n : int, optional
        Rows and columns; by default the least number whose square is at least the number of weights.
    m : int, optional
        Products per virtual weight; by default as many as the ratio allows.
    bits : int, optional
        Bits of the integers, 2 to 16; by default the ``bits`` of ``Plan.build``.
    exponents : tuple of int, optional
        Fixed exponents of left and right, from -29 to 30; by default they follow from the values.
    gain : int, optional
        g, 0 to 20: variables are stored 2**g times smaller; by default the rule of the optimizer.

    Examples
    --------
    >>> Matmul().sized(10_000, Fraction(1, 10)).m
    5
    """

    n: int | None = None
    m: int | None = None
    bits: int | None = None
    exponents: tuple[int, ...] | None = None
    gain: int | None = None
    kind: ClassVar[str] = "matmul"
    size_fields: ClassVar[tuple[str, ...]] = ("n", "m")
    side_power: ClassVar[int] = 1

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of left and right."""
        return {"left": (self.side, self.terms), "right": (self.terms, self.side)}

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight i reads row i // n of left and column i % n of right."""
        k = self._terms_like(kernels, i)
        row, column = i[:, None] // self.side, i[:, None] % self.side
        return {"left": row * self.terms + k, "right": k * self.side + column}


@explained_class
@dataclass(frozen=True)
class Kronecker(arithmetic.KroneckerArithmetic, _FactorizedPool):
    """Virtual weights are the entries of a sum of Kronecker products, row-major.

    ``v = sum over r of left[r] (x) right[r]``: the products of a matmul pool of side d**2 in a different order.

    Parameters
    ----------
    d : int, optional
        Rows and columns of each factor; by default the least number whose fourth power is at least the number of
        weights.
    t : int, optional
        Kronecker products; by default as many as the ratio allows.
    bits, exponents, gain
        As for :class:`Matmul`.

    Examples
    --------
    >>> Kronecker().sized(10_000, Fraction(1, 10)).t
    5
    """

    d: int | None = None
    t: int | None = None
    bits: int | None = None
    exponents: tuple[int, ...] | None = None
    gain: int | None = None
    kind: ClassVar[str] = "kronecker"
    size_fields: ClassVar[tuple[str, ...]] = ("d", "t")
    side_power: ClassVar[int] = 2

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of left and right."""
        shape = (self.terms, self.d or 0, self.d or 0)
        return {"left": shape, "right": shape}

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight (i1, i2, j1, j2) reads left[r, i1, j1] and right[r, i2, j2] for every r."""
        d = self._root
        r = self._terms_like(kernels, i)
        i = i[:, None]
        i1, i2, j1, j2 = i // d**3, i // d**2 % d, i // d % d, i % d
        return {"left": (r * d + i1) * d + j1, "right": (r * d + i2) * d + j2}


@explained_class
@dataclass(frozen=True)
class Hash(arithmetic.HashArithmetic, LeafPool):
    """Virtual weight i is the sum over m of ``sigma_m(i) * table[m, h_m(i)]``.

    With one signed hash function this is the weight sharing of HashedNets.

    Parameters
    ----------
    size : int, optional
        Variables per hash function; by default as many as the ratio allows.
    hashes : int
        The number of hash functions. Each has a separate row of the table.
    signed : bool
        Whether a second hash gives each term a sign.
    capacity : int, optional
        Virtual weights; by default as many as there are weights.
    bits, exponents, gain
        As for :class:`Matmul`, with one exponent for the table.

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
        """Set size = floor(r N / hashes) and the capacity."""
        size = self.size or max(1, math.floor(ratio * weights / self.hashes))
        return self._replace(size=size, capacity=self.capacity or weights)

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
        super().check()
        if not isinstance(self.signed, bool):
            raise PlanError(f"signed of a hash pool must be true or false; got {self.signed!r}")


@dataclass(frozen=True, init=False)
class _CombinedPool(arithmetic.Combination, Pool):
    """Several pools whose virtual weights are combined elementwise."""

    parts: tuple[Pool, ...]

    def kinds(self) -> str:
        """Return the kind, with those of all parts."""
        return f"{self.kind} of {', '.join(part.kinds() for part in self.parts)}"

    def __init__(self, *parts: Pool | str) -> None:
        if not 1 <= len(parts) <= MAX_PARTS:
            raise PlanError(f"a {self.kind} of pools needs 1 to {MAX_PARTS} parts; got {len(parts)}")
        object.__setattr__(self, "parts", tuple(named(part) for part in parts))

    @abstractmethod
    def _taus(self, tau: float) -> list[float]:
        """Return the standard deviation of the virtual weights of each part, for a deviation ``tau`` of the whole."""

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        return {
            f"{path}{name}": found
            for part, (_, part_seed, path) in zip(self.parts, self._placed(seed, ""), strict=True)
            for name, found in part.indices(kernels, i, part_seed).items()
        }

    def sized(self, weights: int, ratio: Fraction) -> Self:  # every part has an equal share of the variables
        return type(self)(*(part.sized(weights, ratio / len(self.parts)) for part in self.parts))

    def smallest_ratio(self, weights: int) -> Fraction:
        return len(self.parts) * max(part.smallest_ratio(weights) for part in self.parts)

    def for_optimizer(self, optimizer: str, weights: int, scale: float, tau: float = 1.0) -> Self:
        parts = zip(self.parts, self._taus(tau), strict=True)
        return type(self)(*(part.for_optimizer(optimizer, weights, scale, t) for part, t in parts))

    def with_bits(self, bits: int) -> Self:
        return type(self)(*(part.with_bits(bits) for part in self.parts))

    def with_exponents(self, tau: float = 1.0) -> Self:
        return type(self)(*(part.with_exponents(t) for part, t in zip(self.parts, self._taus(tau), strict=True)))

    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        placed = zip(self.parts, self._placed(seed, path), self._taus(tau), strict=True)
        for part, (_, part_seed, part_path), part_tau in placed:
            yield from part.leaves(part_seed, part_path, part_tau)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [part.to_dict() for part in self.parts]}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


@explained_class
@dataclass(frozen=True, init=False, repr=False)
class Sum(arithmetic.SumArithmetic, _CombinedPool):
    """Virtual weights are the sums of the parts' virtual weights, added in float64 and rounded once.

    Parameters
    ----------
    *parts : Pool or str
        Pools of any kind, or their names; they share the ratio equally.

    Examples
    --------
    >>> Sum("matmul", "hash").sized(10_000, Fraction(1, 10)).variable_shapes()
    {'0/left': (100, 2), '0/right': (2, 100), '1/table': (1, 500)}
    """

    kind: ClassVar[str] = "sum"

    def _taus(self, tau: float) -> list[float]:
        return [tau / math.sqrt(len(self.parts))] * len(self.parts)


@explained_class
@dataclass(frozen=True, init=False, repr=False)
class Product(arithmetic.ProductArithmetic, _CombinedPool):
    """Virtual weights are the products of the parts' virtual weights, from left to right.

    Parameters
    ----------
    *parts : Pool or str
        Pools of any kind, or their names; they share the ratio equally.

    Examples
    --------
    >>> [part.m for part in Product("matmul", "matmul").sized(10_000, Fraction(1, 10)).parts]
    [2, 2]
    """

    kind: ClassVar[str] = "product"

    def _taus(self, tau: float) -> list[float]:
        return [tau] + [1.0] * (len(self.parts) - 1)
