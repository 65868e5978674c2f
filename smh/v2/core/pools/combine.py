"""Pools made of pools: sums and products (specification, sections 4.4 and 7.3)."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

from smh.v2.core.checks import check_keys
from smh.v2.core.grid import ceil_log2, round7, times, wide
from smh.v2.core.hashing import PART_STREAM, key
from smh.v2.core.kernels import Array, Kernels, add_up
from smh.v2.core.pools.base import Grids, Leaf, Pool, from_dict, named
from smh.v2.errors import PlanError

MAX_PARTS = 64
_FLOOR = -88
"""Virtual weights of combinations are 0 or at least 2**-88, as those of leaves are."""


@dataclass(frozen=True, init=False)
class _Combination(Pool):
    """Several pools whose virtual weights are combined elementwise."""

    parts: tuple[Pool, ...]

    def __init__(self, *parts: Pool | str) -> None:
        if not 1 <= len(parts) <= MAX_PARTS:
            raise PlanError(f"a {self.kind} of pools needs 1 to {MAX_PARTS} parts; got {len(parts)}")
        object.__setattr__(self, "parts", tuple(named(part) for part in parts))

    @abstractmethod
    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        """Return the virtual weights, given those of the parts."""

    @abstractmethod
    def _cotangents(self, kernels: Kernels, dv: Array, values: list[Array]) -> list[Array]:
        """Return the cotangents of the parts."""

    @abstractmethod
    def _taus(self, tau: float) -> list[float]:
        """Return the deviation of virtual weights that each part must have for the whole to have ``tau``."""

    @property
    def capacity(self) -> int:
        """The smallest capacity of the parts."""
        return min(part.capacity for part in self.parts)

    @property
    def depth(self) -> int:
        """One more than the deepest part."""
        return 1 + max(part.depth for part in self.parts)

    def virtual_weights(
        self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str = ""
    ) -> Array:
        """Combine the virtual weights of the parts."""
        return self._combined(kernels, self._values(kernels, grids, start, stop, seed, path))

    def vjp(self, kernels: Kernels, grids: Grids, dv: Array, seed: int, path: str = "") -> dict[str, Array]:
        """Give every part its cotangent, +0 for the virtual weights that only the part has."""
        xp = kernels.xp
        values = self._values(kernels, grids, 0, self.capacity, seed, path) if isinstance(self, Product) else []
        gradients: dict[str, Array] = {}
        for (part, part_seed, part_path), dpart in zip(
            self._placed(seed, path), self._cotangents(kernels, dv, values), strict=True
        ):
            missing = part.capacity - self.capacity
            if missing:
                zeros = xp.zeros((missing,), dtype=xp.float32, device=kernels.device(dv))
                dpart = xp.concat([dpart, zeros])
            gradients |= part.vjp(kernels, grids, dpart, part_seed, part_path)
        return gradients

    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Return the indices into the variables of all parts."""
        return {
            f"{path}{name}": found
            for part, part_seed, path in self._placed(seed, "")
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
        for (part, part_seed, part_path), part_tau in zip(self._placed(seed, path), self._taus(tau), strict=True):
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

    def _placed(self, seed: int, path: str) -> list[tuple[Pool, int, str]]:
        """Return every part with its seed and the prefix of its variables."""
        return [(part, key(seed, PART_STREAM + p), f"{path}{p}/") for p, part in enumerate(self.parts)]

    def _values(self, kernels: Kernels, grids: Grids, start: int, stop: int, seed: int, path: str) -> list[Array]:
        """Return the virtual weights of the parts."""
        return [
            part.virtual_weights(kernels, grids, start, stop, part_seed, part_path)
            for part, part_seed, part_path in self._placed(seed, path)
        ]

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

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> Array | None:
        """Return the largest bound of the parts times 2**ceil(log2 k)."""
        bounds = [part.bound(kernels, grids, part_path) for part, _, part_path in self._placed(0, path)]
        if any(bound is None for bound in bounds):
            return None
        return kernels.xp.max(kernels.xp.stack(bounds)) * 2.0 ** ceil_log2(len(bounds))

    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        return round7(kernels.xp, add_up([wide(kernels.xp, v) for v in values]), _FLOOR)

    def _cotangents(self, kernels: Kernels, dv: Array, values: list[Array]) -> list[Array]:
        return [dv] * len(self.parts)

    def _taus(self, tau: float) -> list[float]:
        return [tau / math.sqrt(len(self.parts))] * len(self.parts)


@dataclass(frozen=True, init=False, repr=False)
class Product(_Combination):
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

    def bound(self, kernels: Kernels, grids: Grids, path: str = "") -> None:
        """Return None: values decide."""
        return None

    def _combined(self, kernels: Kernels, values: list[Array]) -> Array:
        return functools.reduce(lambda a, b: times(kernels.xp, a, b, _FLOOR), values)

    def _cotangents(self, kernels: Kernels, dv: Array, values: list[Array]) -> list[Array]:
        others = (values[:p] + values[p + 1 :] for p in range(len(values)))
        return [functools.reduce(lambda a, b: times(kernels.xp, a, b), rest, dv) for rest in others]

    def _taus(self, tau: float) -> list[float]:
        return [tau] + [1.0] * (len(self.parts) - 1)
