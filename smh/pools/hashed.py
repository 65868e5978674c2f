"""The hash pool: virtual weights are signed sums of hashed table entries (specification, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import ClassVar, Self

from smh import hashing
from smh.errors import PlanError
from smh.ops import Array, Finish, Ops
from smh.pools.base import LIMIT, MAX_GAIN, BoundLeaf, LeafPool, whole_number

MAX_HASHES = 256
_WIDTH = 1024  # virtual weights are computed in rows of so many


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
    gain : int
        g: variables are stored 2**g times smaller. ``Plan.build`` sets it by its own ``gain`` argument.

    Examples
    --------
    >>> Hash(hashes=2).sized(10_000, Fraction(1, 10))
    Hash(size=500, hashes=2, signed=True, capacity=10000, gain=0)
    """

    size: int | None = None
    hashes: int = 1
    signed: bool = True
    capacity: int | None = None  # type: ignore[assignment]
    gain: int = 0
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

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in size = floor(r N / hashes) and the capacity."""
        size = self.size or math.floor(ratio * weights / self.hashes)
        return self._replace(size=size, capacity=self.capacity or weights)

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which the given size fits, or one variable per hash function."""
        return Fraction(self.hashes * (self.size or 1), weights)

    def check(self) -> None:
        """Raise unless size and capacity are present and all is allowed."""
        whole_number("capacity of a hash pool", self.capacity, 1, LIMIT - 1)
        whole_number("size of a hash pool", self.size, 1, (LIMIT - 1) // self.hashes)
        whole_number("gain of a hash pool", self.gain, 0, MAX_GAIN)
        if not isinstance(self.signed, bool):
            raise PlanError(f"signed of a hash pool must be true or false; got {self.signed!r}")

    def sigma(self, tau: float) -> float:
        """Return tau / sqrt(hashes)."""
        return tau / math.sqrt(self.hashes)

    def gain_argument(self, rule: str, weights: int, scale: float, tau: float) -> float:
        """Return x of the gain rule."""
        if rule == "sgd":
            return 1.0 / (scale * math.sqrt(self.hashes * weights / (self.size or 1)))
        return 1.0 / (scale * math.sqrt(self.hashes))

    def indices(self, ops: Ops, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight i reads table[m, h_m(i)] for every m."""
        xp = ops.xp
        size = self.size or 1
        words = xp.astype(i, ops.word_dtype)
        columns = [
            xp.astype(hashing.buckets(xp, seed, m, words, size), xp.int64) + m * size for m in range(self.hashes)
        ]
        return {"table": xp.stack(columns, axis=1)}

    def signs(self, ops: Ops, i: Array, seed: int) -> Array:
        """Return sigma_m(i), 1 or -1, shape (k, hashes), int64."""
        xp = ops.xp
        words = xp.astype(i, ops.word_dtype)
        columns = []
        for m in range(self.hashes):
            columns.append(hashing.signs(xp, seed, m, words, xp.int64) if self.signed else xp.ones_like(i))
        return xp.stack(columns, axis=1)

    def bind(self, ops: Ops, arithmetic: ModuleType, variables: Mapping[str, Array], seed: int) -> BoundLeaf:
        """Join the pool with its values."""
        return _BoundHash(self, ops, arithmetic, variables["table"], seed)


class _BoundHash(BoundLeaf):
    def __init__(self, pool: Hash, ops: Ops, arithmetic: ModuleType, table: Array, seed: int) -> None:
        super().__init__(pool, ops, arithmetic)
        self.pool = pool
        self.size = pool.size or 1
        self.table = table
        self.seed = seed

    def _read_plain(self, start: int, stop: int, finish: Finish | None) -> Array:
        xp = self.ops.xp
        first, last = start // _WIDTH, (stop - 1) // _WIDTH

        def virtual(rows: Array) -> Array:
            i = self._cells(rows)
            total = None
            for m in range(self.pool.hashes):
                entries = self.arithmetic.flush(xp, xp.take(self.table[m, :], self._buckets(m, i)))
                term = self._signed(m, i, self.arithmetic.wide(xp, entries))
                total = term if total is None else total + term
            v = self.arithmetic.rounded(xp, total)
            return xp.reshape(v if finish is None else finish(v), (-1, _WIDTH))

        block = self.arithmetic.map_rows(self.ops, virtual, self._rows(first, last + 1), _WIDTH)
        return xp.reshape(block, (-1,))[start - first * _WIDTH : stop - first * _WIDTH]

    def _pull_plain(self, dv: Array) -> dict[str, Array]:
        xp = self.ops.xp
        rows = -(-self.capacity // _WIDTH)
        missing = rows * _WIDTH - self.capacity
        if missing:
            dv = xp.concat([dv, xp.zeros((missing,), dtype=dv.dtype, device=self.ops.device(dv))])
        xs = (xp.reshape(dv, (rows, _WIDTH)), self._rows(0, rows))
        return {"table": xp.stack([self._table_gradient(m, xs) for m in range(self.pool.hashes)])}

    def _table_gradient(self, m: int, xs: tuple[Array, Array]) -> Array:
        def terms(values: Array, rows: Array) -> tuple[Array, Array]:
            i = self._cells(rows)
            return self._signed(m, i, self.ops.xp.reshape(values, (-1,))), self._buckets(m, i)

        return self.arithmetic.segment_sums(self.ops, xs, terms, self.size, self.capacity)

    def _rows(self, first: int, stop: int) -> Array:
        return self.ops.xp.arange(first, stop, dtype=self.ops.word_dtype, device=self.ops.device(self.table))

    def _cells(self, rows: Array) -> Array:
        """Return the flat indices of the virtual weights in some rows."""
        xp = self.ops.xp
        columns = xp.arange(_WIDTH, dtype=self.ops.word_dtype, device=self.ops.device(self.table))
        return xp.reshape(rows[:, None] * _WIDTH + columns[None, :], (-1,))

    def _buckets(self, m: int, i: Array) -> Array:
        return self.ops.xp.astype(hashing.buckets(self.ops.xp, self.seed, m, i, self.size), self.ops.xp.int64)

    def _signed(self, m: int, i: Array, x: Array) -> Array:
        if not self.pool.signed:
            return x
        return x * hashing.signs(self.ops.xp, self.seed, m, i, x.dtype)
