"""Pools made of pools: sums and products, nested as deep as one likes (specification, section 4.4)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, ClassVar, Self

from smh.errors import PlanError
from smh.grid import flush
from smh.hashing import PART_STREAM, key
from smh.ops import Array, Finish, Ops
from smh.pools.base import BoundPool, Leaf, Pool, check_keys, from_dict, named

MAX_PARTS = 64


@dataclass(frozen=True, init=False)
class _Combination(Pool):
    """Several pools whose virtual weights are combined elementwise."""

    parts: tuple[Pool, ...]

    def __init__(self, *parts: Pool | str) -> None:
        if not 1 <= len(parts) <= MAX_PARTS:
            raise PlanError(f"a {self.kind} of pools needs 1 to {MAX_PARTS} parts; got {len(parts)}")
        object.__setattr__(self, "parts", tuple(named(part) for part in parts))

    @abstractmethod
    def _taus(self, tau: float) -> list[float]:
        """Return the deviation of virtual weights that each part must have for the whole to have ``tau``."""

    @abstractmethod
    def _bound(self, ops: Ops, arithmetic: ModuleType, parts: list[BoundPool]) -> BoundPool:
        """Return the bound combination of bound parts."""

    @property
    def capacity(self) -> int:
        """The smallest capacity of the parts."""
        return min(part.capacity for part in self.parts)

    @property
    def depth(self) -> int:
        """One more than the deepest part."""
        return 1 + max(part.depth for part in self.parts)

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Give every part an equal share of the variables."""
        return type(self)(*(part.sized(weights, ratio / len(self.parts)) for part in self.parts))

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which every part's share is feasible."""
        return len(self.parts) * max(part.smallest_ratio(weights) for part in self.parts)

    def with_gain(self, gain: str | int, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Set the gain of every leaf."""
        taus = self._taus(tau)
        return type(self)(*(part.with_gain(gain, weights, scale, t) for part, t in zip(self.parts, taus, strict=True)))

    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over the leaves of all parts, each with a seed of its own."""
        for p, (part, part_tau) in enumerate(zip(self.parts, self._taus(tau), strict=True)):
            yield from part.leaves(_part_seed(seed, p), f"{path}{p}/", part_tau)

    def indices(self, ops: Ops, i: Array, seed: int) -> dict[str, Array]:
        """Return the indices into the variables of all parts."""
        return {
            f"{p}/{name}": found
            for p, part in enumerate(self.parts)
            for name, found in part.indices(ops, i, _part_seed(seed, p)).items()
        }

    def bind(self, ops: Ops, arithmetic: ModuleType, variables: Mapping[str, Array], seed: int) -> BoundPool:
        """Join every part with its values."""
        parts = []
        for p, part in enumerate(self.parts):
            prefix = f"{p}/"
            own = {name[len(prefix) :]: x for name, x in variables.items() if name.startswith(prefix)}
            parts.append(part.bind(ops, arithmetic, own, _part_seed(seed, p)))
        return self._bound(ops, arithmetic, parts)

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
class Sum(_Combination):
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

    def _bound(self, ops: Ops, arithmetic: ModuleType, parts: list[BoundPool]) -> BoundPool:
        return _BoundSum(self, ops, arithmetic, parts)


@dataclass(frozen=True, init=False, repr=False)
class Product(_Combination):
    """Virtual weights are the products of the parts' virtual weights, in float32 from left to right.

    Parameters
    ----------
    *parts : Pool or str
        Pools of any kind, or their names; they share the ratio equally.

    Examples
    --------
    >>> Product("matmul", "matmul").sized(10_000, Fraction(1, 10)).parts[1]
    Matmul(n=100, m=2, gain=0)
    """

    kind: ClassVar[str] = "product"

    def _taus(self, tau: float) -> list[float]:
        return [tau] + [1.0] * (len(self.parts) - 1)

    def _bound(self, ops: Ops, arithmetic: ModuleType, parts: list[BoundPool]) -> BoundPool:
        return _BoundProduct(self, ops, arithmetic, parts)


class _BoundCombination(BoundPool):
    def __init__(self, pool: _Combination, ops: Ops, arithmetic: ModuleType, parts: list[BoundPool]) -> None:
        self.capacity = pool.capacity
        self.ops = ops
        self.arithmetic: Any = arithmetic
        self.parts = parts

    def _finished(self, v: Array, finish: Finish | None) -> Array:
        return v if finish is None else self.arithmetic.map_own(self.ops, finish, v)

    def _pull_parts(self, cotangents: list[Array]) -> dict[str, Array]:
        """Send every part its cotangent, with zeros for the virtual weights that only the part itself has."""
        xp = self.ops.xp
        gradients = {}
        for p, (part, dv) in enumerate(zip(self.parts, cotangents, strict=True)):
            missing = part.capacity - self.capacity
            if missing:
                dv = xp.concat([dv, xp.zeros((missing,), dtype=dv.dtype, device=self.ops.device(dv))])
            gradients.update({f"{p}/{name}": gradient for name, gradient in part.pull(dv).items()})
        return gradients


class _BoundSum(_BoundCombination):
    def read(self, start: int, stop: int, finish: Finish | None = None) -> Array:
        xp = self.ops.xp
        total = None
        for part in self.parts:
            # The flush changes nothing, but stands between two conversions: a compiler that joins these would drop
            # the rounding of the part.
            term = self.arithmetic.wide(xp, flush(xp, part.read(start, stop)))
            total = term if total is None else total + term
        return self._finished(self.arithmetic.rounded(xp, total), finish)

    def pull(self, dv: Array) -> dict[str, Array]:
        return self._pull_parts([*(self.ops.own(dv) for _ in self.parts[1:]), dv])


class _BoundProduct(_BoundCombination):
    def read(self, start: int, stop: int, finish: Finish | None = None) -> Array:
        v, *others = (part.read(start, stop) for part in self.parts)
        return self._finished(self._times(v, others), finish)

    def pull(self, dv: Array) -> dict[str, Array]:
        values = [part.read(0, self.capacity) for part in self.parts]
        return self._pull_parts([self._times(dv, values[:p] + values[p + 1 :]) for p in range(len(values))])

    def _times(self, x: Array, factors: list[Array]) -> Array:
        for factor in factors:
            x = flush(self.ops.xp, x * factor)
        return x


def _part_seed(seed: int, p: int) -> int:
    return key(seed, PART_STREAM + p)
