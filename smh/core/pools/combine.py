"""Pools made of pools: sums and products (specification, sections 4.4 and 7.3)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

from smh.core.checks import check_keys
from smh.core.kernels import Array, Kernels
from smh.core.pools.arithmetic import Combination, ProductArithmetic, SumArithmetic
from smh.core.pools.base import Leaf, Pool, from_dict, named
from smh.errors import PlanError

MAX_PARTS = 64


@dataclass(frozen=True, init=False)
class _CombinedPool(Combination, Pool):
    """Several pools whose virtual weights are combined elementwise."""

    parts: tuple[Pool, ...]

    def __init__(self, *parts: Pool | str) -> None:
        if not 1 <= len(parts) <= MAX_PARTS:
            raise PlanError(f"a {self.kind} of pools needs 1 to {MAX_PARTS} parts; got {len(parts)}")
        object.__setattr__(self, "parts", tuple(named(part) for part in parts))

    @abstractmethod
    def _taus(self, tau: float) -> list[float]:
        """Return the deviation of virtual weights that each part must have for the whole to have ``tau``."""

    @property
    def depth(self) -> int:
        """One more than the deepest part."""
        return 1 + max(part.depth for part in self.parts)

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Return the indices into the variables of all parts."""
        return {
            f"{path}{name}": found
            for part, (_, part_seed, path) in zip(self.parts, self._placed(seed, ""), strict=True)
            for name, found in part.indices(kernels, i, part_seed).items()
        }

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Give every part an equal share of the variables."""
        return type(self)(*(part.sized(weights, ratio / len(self.parts)) for part in self.parts))

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which every part's share is feasible."""
        return len(self.parts) * max(part.smallest_ratio(weights) for part in self.parts)

    def for_optimizer(self, optimizer: str, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Set the gain of every leaf."""
        parts = zip(self.parts, self._taus(tau), strict=True)
        return type(self)(*(part.for_optimizer(optimizer, weights, scale, t) for part, t in parts))

    def with_bits(self, bits: int) -> Self:
        """Set the bits of every leaf."""
        return type(self)(*(part.with_bits(bits) for part in self.parts))

    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over the leaves of all parts, each with a seed of its own."""
        placed = zip(self.parts, self._placed(seed, path), self._taus(tau), strict=True)
        for part, (_, part_seed, part_path), part_tau in placed:
            yield from part.leaves(part_seed, part_path, part_tau)

    def check(self) -> None:
        """Check every part."""
        for part in self.parts:
            part.check()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this pool."""
        return {"kind": self.kind, "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def parse(cls, fields: dict[str, Any], where: str, depth: int) -> Self:
        """Read the pool from the keys of its JSON object."""
        check_keys(where, fields, ["parts"])
        if not isinstance(fields["parts"], list):
            raise PlanError(f"{where}.parts must be a list; got {type(fields['parts']).__name__}")
        return cls(*(from_dict(part, f"{where}.parts[{p}]", depth + 1) for p, part in enumerate(fields["parts"])))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


@dataclass(frozen=True, init=False, repr=False)
class Sum(SumArithmetic, _CombinedPool):
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


@dataclass(frozen=True, init=False, repr=False)
class Product(ProductArithmetic, _CombinedPool):
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
