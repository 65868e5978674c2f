"""The common part of all pools, their names in plans, and their JSON."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Self

from smh.core.checks import check_keys, shown, whole_number
from smh.core.grid import LARGEST, LEAST
from smh.core.kernels import Array, Kernels
from smh.core.pools.arithmetic import LeafArithmetic, PoolArithmetic
from smh.errors import PlanError, near_names

LIMIT = 2**31
"""The limit of the elements of an array or tensor and of the virtual weights of a hash pool, exclusive."""
MAX_GAIN = 20
MAX_DEPTH = 8
MIN_BITS, MAX_BITS, BITS = 2, 16, 8
OPTIMIZERS = ("sgd", "adam")
EXPONENTS = ("free", "fixed")

KINDS: dict[str, type[Pool]] = {}
"""Pool classes by their names in plans and in ``Plan.build(pool=...)``."""


class Leaf(NamedTuple):
    """A leaf pool with its place in the pools around it (specification, section 8)."""

    path: str  # the prefix of its variables' names: "", "0/", "0/1/"
    pool: LeafPool
    seed: int
    tau: float  # the standard deviation of its virtual weights


@dataclass(frozen=True, eq=False, repr=False)
class Pool(PoolArithmetic):
    """A rule that turns variables into virtual weights."""

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @abstractmethod
    def indices(self, kernels: Kernels, i: Array, seed: int) -> dict[str, Array]:
        """Return the hash index: the elements of each variable that virtual weights read.

        ``i`` contains virtual weights in ``[0, capacity)``, shape (k,), int64; ``seed`` is the seed of the pool. For
        each variable the result has flat (row-major) indices, shape (k, terms), int64, in the order of the terms.
        """

    @abstractmethod
    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Return this pool with all sizes, for a number of weights and at most ``ratio`` variables per weight.

        A ratio below :meth:`smallest_ratio` counts as the smallest ratio.
        """

    @abstractmethod
    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which every leaf has a term."""

    @abstractmethod
    def for_optimizer(self, optimizer: str, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Return this pool with all missing gains, by the rule of an optimizer (specification, section 4.5).

        ``scale`` is the size-weighted root mean square of the tensors' initial scales.
        """

    @abstractmethod
    def with_bits(self, bits: int) -> Self:
        """Return this pool with ``bits`` for all leaves without a number of bits."""

    @abstractmethod
    def with_exponents(self, tau: float = 1.0) -> Self:
        """Return this pool, which has its gains, with fixed exponents for all leaves without (section 4.5)."""

    @abstractmethod
    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over the leaf pools in order."""

    def variable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every variable, in order, by its name within the pool."""
        return {
            leaf.path + name: shape for leaf in self.leaves(seed=0) for name, shape in leaf.pool.local_shapes().items()
        }

    def in_words(self) -> str:
        """Return the kind of the pool and its bits, for people: ``"matmul pool, 8 bits"``."""
        bits = sorted({leaf.pool.grid_bits + 1 for leaf in self.leaves(seed=0)})
        return f"{self.kinds()} pool, {', '.join(map(str, bits))} bits"

    def kinds(self) -> str:
        """Return the kind, with those of all parts."""
        return self.kind

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a plan; :func:`from_dict` reads it."""
        return {"kind": self.kind} | {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class LeafPool(LeafArithmetic, Pool):
    """A pool with variables, not parts."""

    bits: int | None
    exponents: tuple[int, ...] | None
    gain: int | None
    gain_power: ClassVar[int]
    """The number of variables that a term multiplies. A gain g stands for a factor ``2**(gain_power * g)``."""
    size_fields: ClassVar[tuple[str, ...]]
    """Fields that may be None in a request."""

    def __post_init__(self) -> None:
        """Reject invalid sizes, also in a request."""
        for field in self.size_fields:
            if getattr(self, field) is not None:
                whole_number(f"{field} of a {self.kind} pool", getattr(self, field), 1, 2**60)

    @abstractmethod
    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of this pool's variables. Their order numbers the streams of initial values."""

    @abstractmethod
    def sigma(self, tau: float) -> float:
        """Return the standard deviation of initial variables, without gain, for virtual weights with deviation tau."""

    @abstractmethod
    def gain_argument(self, optimizer: str, weights: int, scale: float, tau: float) -> float:
        """Return the x of the gain rule."""

    @property
    def factor(self) -> float:
        """``2**(gain_power * g)``: the factor of sums of integers, in addition to their units."""
        return 2.0 ** (self.gain_power * (self.gain or 0))

    @property
    def grid_bits(self) -> int:
        """B: the number of bits minus one."""
        return (self.bits or BITS) - 1

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which this leaf has a term, or the requested number of terms."""
        shapes = self.sized(weights, Fraction(0)).local_shapes().values()
        return Fraction(sum(map(math.prod, shapes)), weights)

    def exponent(self, array: int) -> int | None:
        """Return the fixed exponent of an array, by the number of the array, or None."""
        return self.exponents[array] if self.exponents else None

    def for_optimizer(self, optimizer: str, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Return this pool with its gain."""
        if self.gain is not None:
            return self
        f = math.frexp(self.gain_argument(optimizer, weights, scale, tau))[1]
        return self._replace(gain=min(MAX_GAIN, max(0, f - 1)))

    def with_bits(self, bits: int) -> Self:
        """Return this pool with its bits."""
        return self._replace(bits=bits) if self.bits is None else self

    def with_exponents(self, tau: float = 1.0) -> Self:
        """Return this pool with its exponents, by the rule for the initial deviation."""
        if self.exponents is not None:
            return self
        f = math.frexp(math.ldexp(self.sigma(tau), -(self.gain or 0)))[1]
        e = min(LARGEST, max(LEAST, f + max(2, self.grid_bits - 3)))
        return self._replace(exponents=(e,) * len(self.local_shapes()))

    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over this leaf alone."""
        yield Leaf(path, self, seed, tau)

    def check(self) -> None:
        """Raise :class:`~smh.PlanError` unless all fields are present and valid."""
        whole_number(f"bits of a {self.kind} pool", self.bits, MIN_BITS, MAX_BITS)
        whole_number(f"gain of a {self.kind} pool", self.gain, 0, MAX_GAIN)
        if self.exponents is not None:
            names = list(self.local_shapes())
            if not isinstance(self.exponents, tuple) or len(self.exponents) != len(names):
                what = f"exponents of a {self.kind} pool must be one integer for each of {', '.join(names)}"
                raise PlanError(f"{what}; got {self.exponents!r}")
            for name, e in zip(names, self.exponents, strict=True):
                whole_number(f"the exponent of {name} of a {self.kind} pool", e, LEAST, LARGEST)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this pool."""
        return super().to_dict() | {"exponents": None if self.exponents is None else list(self.exponents)}

    def _replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


def named(pool: Pool | str) -> Pool:
    """Return a pool request from ``"matmul"``, ``"kronecker"`` or ``"hash"``, or a given request unchanged.

    Raises :class:`~smh.PlanError` for an unknown pool.
    """
    if isinstance(pool, Pool):
        return pool
    leaf_kinds = [kind for kind, cls in KINDS.items() if issubclass(cls, LeafPool)]
    if not isinstance(pool, str) or pool not in leaf_kinds:
        what = f"pool must be one of {', '.join(map(repr, leaf_kinds))} or a specification such as pools.Matmul()"
        raise PlanError(f"{what}; got {shown(pool, leaf_kinds)}")
    return KINDS[pool]()


def from_dict(data: Any, where: str = "pool", depth: int = 0) -> Pool:
    """Read a sized pool from the JSON object of a plan. ``where`` is its place there, ``depth`` its level of nesting.

    Raises :class:`~smh.PlanError` for an unknown kind, a missing or unknown key, or a size out of bounds.

    >>> from_dict({"kind": "matmul", "n": 9, "m": 2, "bits": 8, "exponents": None, "gain": 1})
    Matmul(n=9, m=2, bits=8, exponents=None, gain=1)
    """
    if depth > MAX_DEPTH:
        raise PlanError(f"pools are nested too deeply at {where}: the limit is {MAX_DEPTH}")
    if not isinstance(data, dict):
        raise PlanError(f"{where} must be an object; got {type(data).__name__}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = near_names(kind, KINDS) if isinstance(kind, str) else f"known names: {', '.join(KINDS)}"
        raise PlanError(f"{where} has an unknown kind {kind!r}: {hint}")
    cls, fields = KINDS[kind], {key: value for key, value in data.items() if key != "kind"}
    check_keys(where, fields, [field.name for field in dataclasses.fields(cls)])
    if not issubclass(cls, LeafPool):
        if not isinstance(fields["parts"], list):
            raise PlanError(f"{where}.parts must be a list; got {type(fields['parts']).__name__}")
        return cls(*(from_dict(part, f"{where}.parts[{p}]", depth + 1) for p, part in enumerate(fields["parts"])))
    if isinstance(fields["exponents"], list):
        fields["exponents"] = tuple(fields["exponents"])
    return cls(**fields)
