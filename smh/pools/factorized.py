"""Pools whose virtual weights are one matrix product: matmul and Kronecker (specification, sections 4.1 and 4.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import ClassVar, Self

from smh.ops import Array, Finish, Ops
from smh.pools.base import LIMIT, MAX_GAIN, BoundLeaf, LeafPool, whole_number
from smh.pools.rows import OwnRows
from smh.stripes import Stripe, join


class _Factorized(LeafPool):
    """A pool of ``terms`` products of one left and one right variable per virtual weight."""

    gain_power: ClassVar[int] = 2

    @property
    def terms(self) -> int:
        """M: products per virtual weight."""
        raise NotImplementedError

    @property
    def side(self) -> int:
        """Rows, and columns, of the matrix product; its square is the capacity."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """How many virtual weights there are."""
        return self.side**2

    def smallest_ratio(self, weights: int) -> Fraction:
        """Return the least ratio at which the given number of terms fits, or one."""
        return Fraction(2 * self._side_for(weights) * max(1, self.terms), weights)

    def sigma(self, tau: float) -> float:
        """Return sqrt(tau / sqrt(M)): M products of two such variables have variance tau**2."""
        return math.sqrt(tau / math.sqrt(self.terms))

    def gain_argument(self, rule: str, weights: int, scale: float, tau: float) -> float:
        """Return x of the gain rule."""
        if rule == "sgd":
            return 1.0 / ((scale * self.sigma(tau)) * math.sqrt(2.0 * self.side))
        return 1.0 / (scale * math.sqrt(2.0 * self.terms))

    def _side_for(self, weights: int) -> int:
        raise NotImplementedError

    def _terms_for(self, side: int, weights: int, ratio: Fraction) -> int:
        return self.terms or math.floor(ratio * weights / (2 * side))


@dataclass(frozen=True)
class Matmul(_Factorized):
    """Virtual weights are the entries of ``left @ right``, row-major (equation 4 of the paper).

    Parameters
    ----------
    n : int, optional
        Rows and columns; by default the least whose square holds all weights.
    m : int, optional
        Products per virtual weight; by default as many as the ratio allows.
    gain : int
        g: variables are stored 2**g times smaller. ``Plan.build`` sets it by its own ``gain`` argument.

    Examples
    --------
    >>> Matmul().sized(10_000, Fraction(1, 10))
    Matmul(n=100, m=5, gain=0)
    """

    n: int | None = None
    m: int | None = None
    gain: int = 0
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

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in n = ceil(sqrt(N)) and m = floor(r N / 2 n)."""
        n = self._side_for(weights)
        return self._replace(n=n, m=self._terms_for(n, weights, ratio))

    def check(self) -> None:
        """Raise unless n and m are present and allowed."""
        whole_number("n of a matmul pool", self.n, 1, math.isqrt(LIMIT - 1))
        whole_number("m of a matmul pool", self.m, 1, (LIMIT - 1) // self.side)
        whole_number("gain of a matmul pool", self.gain, 0, MAX_GAIN)

    def indices(self, ops: Ops, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight i reads row i // n of left and column i % n of right."""
        k = _terms_like(ops, i, self.terms)
        row, column = i[:, None] // self.side, i[:, None] % self.side
        return {"left": row * self.terms + k, "right": k * self.side + column}

    def bind(self, ops: Ops, arithmetic: ModuleType, variables: Mapping[str, Array], seed: int) -> BoundLeaf:
        """Join the pool with its values."""
        return BoundMatmul(self, ops, arithmetic, variables["left"], variables["right"])

    def _side_for(self, weights: int) -> int:
        return self.n if self.n is not None else math.isqrt(weights - 1) + 1


@dataclass(frozen=True)
class Kronecker(_Factorized):
    """Virtual weights are the entries of a sum of Kronecker products, row-major.

    ``v = sum over r of left[r] (x) right[r]``: the same products as in a matmul pool of side d**2, in another order.

    Parameters
    ----------
    d : int, optional
        Rows and columns of each factor; by default the least whose fourth power holds all weights.
    t : int, optional
        Kronecker products; by default as many as the ratio allows.
    gain : int
        g: variables are stored 2**g times smaller. ``Plan.build`` sets it by its own ``gain`` argument.

    Examples
    --------
    >>> Kronecker().sized(10_000, Fraction(1, 10))
    Kronecker(d=10, t=5, gain=0)
    """

    d: int | None = None
    t: int | None = None
    gain: int = 0
    kind: ClassVar[str] = "kronecker"
    size_fields: ClassVar[tuple[str, ...]] = ("d", "t")

    @property
    def terms(self) -> int:
        """M: products per virtual weight."""
        return self.t or 0

    @property
    def side(self) -> int:
        """d**2."""
        return (self.d or 0) ** 2

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of left and right."""
        shape = (self.terms, self.d or 0, self.d or 0)
        return {"left": shape, "right": shape}

    def sized(self, weights: int, ratio: Fraction) -> Self:
        """Fill in d = ceil(N**(1/4)) and t = floor(r N / 2 d**2)."""
        side = self._side_for(weights)
        return self._replace(d=math.isqrt(side), t=self._terms_for(side, weights, ratio))

    def check(self) -> None:
        """Raise unless d and t are present and allowed."""
        whole_number("d of a kronecker pool", self.d, 1, math.isqrt(math.isqrt(LIMIT - 1)))
        whole_number("t of a kronecker pool", self.t, 1, (LIMIT - 1) // self.side)
        whole_number("gain of a kronecker pool", self.gain, 0, MAX_GAIN)

    def indices(self, ops: Ops, i: Array, seed: int) -> dict[str, Array]:
        """Virtual weight (i1, i2, j1, j2) reads left[r, i1, j1] and right[r, i2, j2] for every r."""
        d = self.d or 0
        r = _terms_like(ops, i, self.terms) * self.side
        i = i[:, None]
        i1, i2, j1, j2 = i // d**3, i // d**2 % d, i // d % d, i % d
        return {"left": r + i1 * d + j1, "right": r + i2 * d + j2}

    def bind(self, ops: Ops, arithmetic: ModuleType, variables: Mapping[str, Array], seed: int) -> BoundLeaf:
        """Join the pool with its values, seen as one matrix product."""
        right = ops.xp.reshape(variables["right"], (self.terms, self.side))
        return _BoundKronecker(self, ops, arithmetic, variables["left"], right)

    def _side_for(self, weights: int) -> int:
        if self.d is not None:
            return self.d**2
        d = math.isqrt(math.isqrt(weights))
        return (d if d**4 >= weights else d + 1) ** 2


Span = tuple[int, int, Array | float]
"""First and last + 1 virtual weight of a tensor, and its scale."""
Part = tuple[int, int, Array | float, Array]
"""The same, and the cotangent of its weights."""


class _BoundFactorized(BoundLeaf):
    """The matrix product that both pools share: left as the pool stores it, right as (terms, side)."""

    def __init__(self, pool: _Factorized, ops: Ops, arithmetic: ModuleType, left: Array, right: Array) -> None:
        super().__init__(pool, ops, arithmetic)
        self.side = pool.side
        self.left = left
        self.right = right
        self.prepared = self.arithmetic.right(ops, right)

    def _entries(self, rows: Array, first: int, stop: int, finish: Finish | None = None) -> Array:
        """Return columns of the matrix product, finished, for some rows of the left factor."""
        return self.arithmetic.multiply(self.ops, rows, self.prepared, first, stop, finish)


class BoundMatmul(_BoundFactorized):
    """A matmul pool with its values: virtual weights are rows of one product."""

    def _read_plain(self, start: int, stop: int, finish: Finish | None) -> Array:
        n = self.side
        first, last = start // n, (stop - 1) // n
        if first == last:
            row = self.left[first : first + 1, :]
            return self.ops.xp.reshape(self._entries(row, start - first * n, stop - first * n, finish), (-1,))
        block = self._entries(self.left[first : last + 1, :], 0, n, finish)
        return self.ops.xp.reshape(block, (-1,))[start - first * n : stop - first * n]

    def _pull_plain(self, dv: Array) -> dict[str, Array]:
        return self._gradients([Stripe(self.ops.xp.reshape(dv, (self.side, self.side)))])

    def _gradients(self, stripes: Sequence[Stripe]) -> dict[str, Array]:
        left, right = self.arithmetic.factor_gradients(self.ops, self.left, self.right, stripes)
        return {"left": left, "right": right}

    def pull_parts(self, parts: Sequence[Stripe]) -> dict[str, Array]:
        """Return the gradients, given the cotangent of all of v in parts, which are not overwritten.

        A large part's own rows are read where they are; what lies between two such is joined.
        """
        n, gain = self.side, self._gain_and(None)
        stripes: list[Stripe] = []
        between: list[Stripe] = []

        def close() -> None:
            if between:
                joined = join(self.ops, self.arithmetic.map_rows, between, self.left)
                stripes.append(Stripe(self.ops.xp.reshape(joined, (-1, n))))
                between.clear()

        at = 0
        for g, made in parts:
            size = g.shape[0]
            first = min(-at % n, size)  # ends the row that the part before began
            stop = size - (size - first) % n
            at += size
            both = _then(made, gain)
            # With fewer rows than that, one more sum of gradients takes much longer than copying them.
            if (stop - first) // n > self.right.shape[0] // 2:
                between += [Stripe(g[:first], both)] if first else []
                close()
                stripes.append(Stripe(self.ops.xp.reshape(g[first:stop], (-1, n)), both))
                between += [Stripe(g[stop:], both)] if stop < size else []
            else:
                between.append(Stripe(g, both))
        close()
        return self._gradients(stripes)

    def read_scaled(self, spans: Sequence[Span]) -> list[Array]:
        """Return slices of v times scales, which rows of left take, so that nothing large is multiplied.

        All are rows of one product, a row that two of them share twice: products of few rows are slow.
        """
        n, rows, places, at = self.side, [], [], 0
        for start, stop, scale in spans:
            first, last = start // n, (stop - 1) // n
            rows.append(self.left[first : last + 1, :] * (scale * self.factor))
            places.append((at + start - first * n, at + stop - first * n))
            at += (last + 1 - first) * n
        left = rows[0] if len(rows) == 1 else self.ops.xp.concat(rows)
        block = self.ops.xp.reshape(self._entries(left, 0, n), (-1,))
        return [block[start:stop] for start, stop in places]

    def pull_scaled(self, parts: Sequence[Part]) -> tuple[dict[str, Array], list[Array]]:
        """Return the gradients of the factors, and of each part's scale.

        The parts follow one another from the first virtual weight on. Each gets rows of its own, with zeros where
        others are: a row that several share stands there once for each. With H the product of these cotangents with the
        transpose of right, rows of ``scale * H`` are the gradient of rows of left, and the dot product of a part's rows
        of H and of left is that of its scale. So nothing large is multiplied.
        """
        ops, xp, arithmetic = self.ops, self.ops.xp, self.arithmetic
        rows = OwnRows(ops, self.left, [(start, stop) for start, stop, _, _ in parts], self.side)
        scales = xp.stack([self._scalar(scale) for _, _, scale, _ in parts]) * self.factor
        scale_of_rows = xp.take(scales, rows.part, axis=0)[:, None]
        left = xp.take(self.left, rows.source, axis=0)
        stripes = rows.stripes([g for _, _, _, g in parts], self.right.shape[0])
        h, right = arithmetic.factor_gradients(ops, left * scale_of_rows, self.right, stripes)
        dots = xp.sum(h * left, axis=1) * self.factor
        of_scales = arithmetic.segment_sums(ops, (dots, rows.part), lambda *xs: xs, len(parts), rows.count)
        of_left = rows.add_up(arithmetic, h * scale_of_rows)
        return {"left": of_left, "right": right}, list(xp.unstack(of_scales))

    def _scalar(self, scale: Array | float) -> Array:
        """Return a scale as an array of no axes."""
        if not isinstance(scale, float):
            return scale
        return self.ops.xp.full((), scale, dtype=self.ops.xp.float32, device=self.ops.device(self.left))


class _BoundKronecker(_BoundFactorized):
    def _read_plain(self, start: int, stop: int, finish: Finish | None) -> Array:
        xp, side = self.ops.xp, self.side
        d = math.isqrt(side)
        first, last = start // d**3, (stop - 1) // d**3
        low, high = 0, d  # which rows of the right factors
        if first == last:
            low, high = start // side % d, (stop - 1) // side % d + 1
        entries = self._entries(self._rows(first, last + 1), low * d, high * d, finish)
        grid = xp.reshape(entries, (last + 1 - first, d, high - low, d))  # i1, j1, i2, j2
        flat = xp.reshape(xp.permute_dims(grid, (0, 2, 1, 3)), (-1,))
        origin = first * d**3 + low * side
        return flat[start - origin : stop - origin]

    def _pull_plain(self, dv: Array) -> dict[str, Array]:
        xp, side = self.ops.xp, self.side
        d = math.isqrt(side)
        grid = xp.permute_dims(xp.reshape(dv, (d, d, d, d)), (0, 2, 1, 3))  # i1, j1, i2, j2
        stripe = Stripe(xp.reshape(grid, (side, side)))
        left, right = self.arithmetic.factor_gradients(self.ops, self._rows(0, d), self.right, [stripe])
        return {
            "left": xp.permute_dims(xp.reshape(left, (d, d, -1)), (2, 0, 1)),
            "right": xp.reshape(right, (-1, d, d)),
        }

    def _rows(self, first: int, stop: int) -> Array:
        """Return left[r, i1, j1] for some i1 as a matrix with rows (i1, j1) and columns r."""
        xp = self.ops.xp
        part = xp.permute_dims(self.left[:, first:stop, :], (1, 2, 0))
        return xp.reshape(part, (-1, part.shape[2]))


def _then(first: Finish | None, second: Finish | None) -> Finish | None:
    """Return what does both."""
    if first is None or second is None:
        return first or second
    return lambda x: second(first(x))


def _terms_like(ops: Ops, i: Array, terms: int) -> Array:
    """Return 0, 1, ..., terms - 1 as one row, on the device and in the type of ``i``."""
    return ops.xp.arange(terms, dtype=i.dtype, device=ops.device(i))[None, :]
