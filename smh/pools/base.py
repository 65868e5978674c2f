"""What all pools have in common, and how they are named and read."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

from smh.errors import PlanError, near_names
from smh.ops import Array, Finish, Ops

LIMIT = 2**31
"""Sizes, capacities and numbers of weights are below this."""
MAX_GAIN = 60
MAX_DEPTH = 8
GAIN_RULES = ("sgd", "adam")

KINDS: dict[str, type[Pool]] = {}
"""Pool classes by the name that plans and ``Plan.build(pool=...)`` use."""


class Leaf(NamedTuple):
    """A leaf pool in its place: what initialisation needs to know of it.

    ``path`` is the prefix of its variables' names (``""``, ``"0/"``, ``"0/1/"``), ``seed`` and ``tau`` are what its
    parents give it (specification, section 8).
    """

    path: str
    pool: LeafPool
    seed: int
    tau: float


class BoundPool(ABC):
    """A pool together with one set of values for its variables, in one namespace: what a single call computes with."""

    capacity: int

    @abstractmethod
    def read(self, start: int, stop: int, finish: Finish | None = None) -> Array:
        """Return the virtual weights ``start`` to ``stop``, shape (stop - start,), touching just what they need.

        ``finish`` is what becomes of them, elementwise, as they are made; it has to return the same for -0 and +0.

        Law: equal to the same slice of ``read(0, capacity)``, finished, bit for bit.
        """

    @abstractmethod
    def pull(self, dv: Array) -> dict[str, Array]:
        """Return the gradient of every variable, given the cotangent of all virtual weights, shape (capacity,).

        The cotangent may be overwritten.
        """


class Pool(ABC):
    """A rule that turns variables into virtual weights."""

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many virtual weights there are."""

    @property
    def depth(self) -> int:
        """How many sums and products lie around its deepest leaf."""
        return 0

    @abstractmethod
    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Return this pool with every size filled in, for so many weights and at most ``ratio`` variables a weight."""

    @abstractmethod
    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which :meth:`sized` works."""

    @abstractmethod
    def with_gain(self, gain: str | int, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Return this pool with the gain of every leaf set: to an integer, or by rule (specification, section 4.5).

        ``scale`` is the size-weighted root mean square of the tensors' initial scales.
        """

    @abstractmethod
    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over the leaf pools in order."""

    @abstractmethod
    def indices(self, ops: Ops, i: Array, seed: int) -> dict[str, Array]:
        """Return the hash index: which elements of which variables virtual weights read.

        Parameters
        ----------
        ops : Ops
            The namespace of ``i``.
        i : array, shape (k,), int64
            Virtual weights.
        seed : int
            The pool's seed.

        Returns
        -------
        dict of str to array, shape (k, terms), int64
            For each variable the flat (row-major) indices into it, in the order in which the terms are added.
        """

    @abstractmethod
    def bind(self, ops: Ops, arithmetic: ModuleType, variables: Mapping[str, Array], seed: int) -> BoundPool:
        """Join the pool with values of its variables, by their names within the pool.

        ``arithmetic`` is :mod:`smh.exact` or :mod:`smh.fast`.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a plan; :func:`from_dict` reads it."""

    @classmethod
    @abstractmethod
    def parse(cls, fields: dict[str, Any], where: str, depth: int) -> Pool:
        """Read the pool from the keys of its JSON object."""

    @abstractmethod
    def check(self) -> None:
        """Raise :class:`~smh.PlanError` unless all sizes are present and allowed."""

    def variable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every variable, in order, by its name within the pool."""
        return {
            leaf.path + name: shape for leaf in self.leaves(seed=0) for name, shape in leaf.pool.local_shapes().items()
        }


class LeafPool(Pool):
    """A pool with variables of its own."""

    gain: int
    gain_power: ClassVar[int]
    """delta: how many variables a term multiplies, so that gain g is worth 2**(delta g)."""
    size_fields: ClassVar[tuple[str, ...]]
    """Fields that may be None in a request."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be, also in a request."""
        for field in self.size_fields:
            if getattr(self, field) is not None:
                whole_number(f"{field} of a {self.kind} pool", getattr(self, field), 1, LIMIT - 1)

    @abstractmethod
    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of this pool's variables; their order numbers the streams of initial values."""

    @abstractmethod
    def sigma(self, tau: float) -> float:
        """Return the standard deviation of initial variables, without gain, for virtual weights with deviation tau."""

    @abstractmethod
    def gain_argument(self, rule: str, weights: int, scale: float, tau: float) -> float:
        """Return the x of the gain rule, whose power of two is the gain."""

    def with_gain(self, gain: str | int, weights: int, scale: float, tau: float = 1.0) -> Self:
        """Return this pool with its gain set; see :meth:`Pool.with_gain`."""
        if isinstance(gain, str):
            if gain not in GAIN_RULES:
                raise PlanError(f"gain must be an integer or one of {', '.join(GAIN_RULES)}; got {gain!r}")
            exponent = math.frexp(self.gain_argument(gain, weights, scale, tau))[1]
            gain = min(MAX_GAIN, max(0, exponent - 1))
        return self._replace(gain=whole_number("gain", gain, 0, MAX_GAIN))

    def leaves(self, seed: int, path: str = "", tau: float = 1.0) -> Iterator[Leaf]:
        """Iterate over this one leaf."""
        yield Leaf(path, self, seed, tau)

    @property
    def factor(self) -> float:
        """2**(delta g): what v0 is multiplied by."""
        return 2.0 ** (self.gain_power * self.gain)

    @classmethod
    def parse(cls, fields: dict[str, Any], where: str, depth: int) -> Self:
        """Read the pool from its JSON keys, which must be exactly its fields."""
        check_keys(where, fields, [field.name for field in dataclasses.fields(cls)])  # type: ignore[arg-type]
        return cls(**fields)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def _replace(self, **changes: Any) -> Self:
        return type(self)(**(self._fields() | changes))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this pool."""
        return {"kind": self.kind, **self._fields()}


class BoundLeaf(BoundPool):
    """A leaf pool with its values: applies the gain around what the subclass computes."""

    def __init__(self, pool: LeafPool, ops: Ops, arithmetic: Any) -> None:
        self.ops = ops
        self.arithmetic = arithmetic
        self.capacity = pool.capacity
        self.factor = pool.factor

    def read(self, start: int, stop: int, finish: Finish | None = None) -> Array:
        """Return a slice of v = flush(2**(delta g) v0)."""
        return self._read_plain(start, stop, self._gain_and(finish))

    def pull(self, dv: Array) -> dict[str, Array]:
        """Return the gradients for dv0 = flush(2**(delta g) dv)."""
        gain = self._gain_and(None)
        return self._pull_plain(dv if gain is None else self.arithmetic.map_own(self.ops, gain, dv))

    def _gain_and(self, finish: Finish | None) -> Finish | None:
        """Return what becomes of v0, elementwise: v, then what becomes of that."""
        if self.factor == 1.0:
            return finish  # v0 is flushed already
        factor, flush, xp = self.factor, self.arithmetic.flush, self.ops.xp

        def gained(block: Array) -> Array:
            block = block * factor
            if self.ops.fuses:
                # No element gets smaller, so that there is nothing to flush. But the flush keeps a compiler from
                # multiplying the factor with a scale that follows, which would undo an overflow.
                return flush(xp, block)
            if finish is None:
                block += 0.0  # -0 becomes +0
            return block

        return gained if finish is None else lambda block: finish(gained(block))

    @abstractmethod
    def _read_plain(self, start: int, stop: int, finish: Finish | None) -> Array:
        """Return a slice of v0, finished."""

    @abstractmethod
    def _pull_plain(self, dv: Array) -> dict[str, Array]:
        """Return the gradients, given the cotangent of all of v0."""


def whole_number(what: str, value: Any, low: int, high: int) -> int:
    """Return an integer within bounds, or raise :class:`~smh.PlanError` that says what was received."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value.__index__() <= high:
        raise PlanError(f"{what} must be an integer from {low} to {high}; got {value!r}")
    return int(value.__index__())


def ceil_digits(value: Fraction, digits: int = 4) -> str:
    """Return a short decimal that is not below ``value``, so that a user who types it is not refused again."""
    exponent = digits - 1 - math.floor(math.log10(value))
    scaled = math.ceil(value * Fraction(10) ** exponent)
    return f"{float(Fraction(scaled) / Fraction(10) ** exponent):.{digits}g}"


def named(pool: Pool | str) -> Pool:
    """Return a pool request from its name, or a request as it is.

    Parameters
    ----------
    pool : Pool or str
        ``"matmul"``, ``"kronecker"`` or ``"hash"``, or an instance of a pool.

    Raises
    ------
    PlanError
        If there is no such pool.

    Examples
    --------
    >>> named("matmul")
    Matmul(n=None, m=None, gain=0)
    """
    if isinstance(pool, Pool):
        return pool
    leaf_kinds = [kind for kind, cls in KINDS.items() if issubclass(cls, LeafPool)]
    if not isinstance(pool, str) or pool not in leaf_kinds:
        raise PlanError(
            f"pool must be one of {', '.join(map(repr, leaf_kinds))} or a specification such as smh.pools.Matmul(); "
            f"got {pool!r}"
        )
    return KINDS[pool]()


def from_dict(data: Any, where: str = "pool", depth: int = 0) -> Pool:
    """Read a sized pool from the JSON object of a plan.

    Parameters
    ----------
    data : object
        What ``json`` gave.
    where : str
        The place in the plan, for messages.
    depth : int
        How many combinations of pools it lies in.

    Returns
    -------
    Pool

    Raises
    ------
    PlanError
        For an unknown kind, a missing or unknown key, or a size out of bounds.
    """
    if depth > MAX_DEPTH:
        raise PlanError(f"pools are nested too deeply at {where}: the limit is {MAX_DEPTH}")
    if not isinstance(data, dict):
        raise PlanError(f"{where} must be an object; got {type(data).__name__}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = near_names(kind, KINDS) if isinstance(kind, str) else f"known names: {', '.join(KINDS)}"
        raise PlanError(f"{where} has an unknown kind {kind!r}: {hint}")
    cls = KINDS[kind]
    fields = {key: value for key, value in data.items() if key != "kind"}
    return cls.parse(fields, where, depth)


def check_keys(where: str, found: Mapping[str, Any], expected: Any) -> None:
    """Raise :class:`~smh.PlanError` unless the keys are exactly the expected ones."""
    unknown = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found))
    if unknown:
        raise PlanError(f"{where} has an unknown key {unknown[0]!r}: {near_names(unknown[0], expected)}")
    if missing:
        raise PlanError(f"{where} lacks the key {missing[0]!r}")
