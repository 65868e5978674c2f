"""Pools whose virtual weights are one matrix product: matmul and Kronecker (specification, sections 4.1 and 4.2)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from smh.core.checks import whole_number
from smh.core.grid import ceil_log2
from smh.core.kernels import Array, Kernels
from smh.core.pools.arithmetic import COTANGENT_BITS, Factorized, KroneckerArithmetic, MatmulArithmetic
from smh.core.pools.base import LIMIT, LeafPool
from smh.errors import PlanError


class _FactorizedPool(Factorized, LeafPool):
    """A pool of ``terms`` products of one left and one right variable per virtual weight."""

    gain_power: ClassVar[int] = 2

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which the given number of terms fits, or one."""
        return Fraction(2 * self._side_for(weights) * max(1, self.terms), weights)

    def sigma(self, tau: float) -> float:
        """Return sqrt(tau / sqrt(M)): M products of two such variables have variance tau**2."""
        return math.sqrt(tau / math.sqrt(self.terms))

    def gain_argument(self, optimizer: str, weights: int, scale: float, tau: float) -> float:
        """Return x of the gain rule."""
        if optimizer == "sgd":
            return 1.0 / ((scale * self.sigma(tau)) * math.sqrt(2.0 * self.side))
        return 1.0 / (scale * math.sqrt(2.0 * self.terms))

    def check_sums(self) -> None:
        """Raise unless float64 holds every sum (specification, section 3.3)."""
        b = self.grid_bits
        if self.terms >= 2**24 or 2 * b + ceil_log2(self.terms) > 53:
            raise PlanError(f"a {self.kind} pool of {self.bits} bits has fewer than 2**24 terms; got {self.terms}")
        if COTANGENT_BITS + b + ceil_log2(self.side) > 53:
            most = 2 ** (53 - COTANGENT_BITS - b)
            what = f"the product of a {self.kind} pool of {self.bits} bits has at most {most} rows"
            raise PlanError(f"{what}; got {self.side}: take fewer bits, or a hash pool")

    @abstractmethod
    def _side_for(self, weights: int) -> int:
        """Return the rows that so many weights need, unless they are given."""

    def _terms_for(self, side: int, weights: int, ratio: Fraction) -> int:
        return self.terms or math.floor(ratio * weights / (2 * side))


@dataclass(frozen=True)
class Matmul(MatmulArithmetic, _FactorizedPool):
    """Virtual weights are the entries of ``left @ right``, row-major (equation 4 of the paper).

    Parameters
    ----------
    n : int, optional
        Rows and columns; by default the least whose square holds all weights.
    m : int, optional
        Products per virtual weight; by default as many as the ratio allows.
    bits : int, optional
        Bits of the integers, 2 to 16; by default those of ``Plan.build``.
    exponents : tuple of int, optional
        Fixed exponents of left and right, from -29 to 30; by default the values decide.
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

    @property
    def terms(self) -> int:
        """M: products per virtual weight."""
        return self.m or 0

    @property
    def side(self) -> int:
        """Rows and columns."""
        return self.n or 0

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of left and right."""
        return {"left": (self.side, self.terms), "right": (self.terms, self.side)}

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight i reads row i // n of left and column i % n of right."""
        k = _terms_like(kernels, i, self.terms)
        row, column = i[:, None] // self.side, i[:, None] % self.side
        return {"left": row * self.terms + k, "right": k * self.side + column}

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in n = ceil(sqrt(N)) and m = floor(r N / 2 n)."""
        n = self._side_for(weights)
        return self._replace(n=n, m=self._terms_for(n, weights, ratio))

    def check(self) -> None:
        """Raise unless everything is present and allowed."""
        whole_number("n of a matmul pool", self.n, 1, LIMIT - 1)
        whole_number("m of a matmul pool", self.m, 1, (LIMIT - 1) // self.side)
        self.check_leaf()
        self.check_sums()

    def _side_for(self, weights: int) -> int:
        return self.n if self.n is not None else math.isqrt(weights - 1) + 1


@dataclass(frozen=True)
class Kronecker(KroneckerArithmetic, _FactorizedPool):
    """Virtual weights are the entries of a sum of Kronecker products, row-major.

    ``v = sum over r of left[r] (x) right[r]``: the same products as in a matmul pool of side d**2, in another order.

    Parameters
    ----------
    d : int, optional
        Rows and columns of each factor; by default the least whose fourth power holds all weights.
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

    @property
    def terms(self) -> int:
        """M: products per virtual weight."""
        return self.t or 0

    @property
    def side(self) -> int:
        """Rows and columns of the matrix product."""
        return (self.d or 0) ** 2

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of left and right."""
        d = self.d or 0
        return {"left": (self.terms, d, d), "right": (self.terms, d, d)}

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight (i1, i2, j1, j2) reads left[r, i1, j1] and right[r, i2, j2] for every r."""
        d = self._root
        r = _terms_like(kernels, i, self.terms)
        i = i[:, None]
        i1, i2, j1, j2 = i // d**3, i // d**2 % d, i // d % d, i % d
        return {"left": (r * d + i1) * d + j1, "right": (r * d + i2) * d + j2}

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in d = ceil(N**(1/4)) and t = floor(r N / 2 d**2)."""
        side = self._side_for(weights)
        return self._replace(d=math.isqrt(side), t=self._terms_for(side, weights, ratio))

    def check(self) -> None:
        """Raise unless everything is present and allowed."""
        whole_number("d of a kronecker pool", self.d, 1, LIMIT - 1)
        whole_number("t of a kronecker pool", self.t, 1, (LIMIT - 1) // self.side)
        self.check_leaf()
        self.check_sums()

    def _side_for(self, weights: int) -> int:
        if self.d is not None:
            return self.d**2
        root = math.isqrt(math.isqrt(weights))
        return (root if root**4 >= weights else root + 1) ** 2


def _terms_like(kernels: Kernels, i: Array, terms: int) -> Array:
    return kernels.xp.arange(terms, dtype=i.dtype, device=kernels.device(i))[None, :]
