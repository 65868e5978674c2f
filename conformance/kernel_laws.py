"""The law of kernels: each method has the bits of the default, on random and extreme operands."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conformance.bits import Tally
from conformance.cases import KINDS, cotangents_for, floats, variables_for
from conformance.subject import Subject
from smh.core import generate, hashing, pools
from smh.core.kernels import Kernels
from smh.core.plan import Plan

Call = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""What is called, a function of kernels and arrays to arrays, and the arrays."""

_DEFAULT = Kernels(np)


def kernels(s: Subject, tally: Tally) -> None:
    """Each kernel of the backend gives the bits of the default kernel."""
    if s.backend.kernels is None:
        return
    rng = np.random.default_rng(2)
    groups = [_grids, _products, _scales, _elementwise, _dots, _factor_sums, _segments, _counts, _words]
    if type(s.backend.kernels).matmul_gradients is not Kernels.matmul_gradients:
        groups.append(_fused)  # else it is the core that computes gradients, for which there is a law
    for calls in groups:
        for what, fn, arrays in calls(rng):
            with np.errstate(all="ignore"):
                expected = fn(_DEFAULT, *arrays)
                found = s.backend.on_kernels(fn, *(s.backend.asarray(x, s.device) for x in arrays))
            for x, y in zip(_several(found), _several(expected), strict=True):
                tally.same(s.backend.to_numpy(x), np.asarray(y), f"kernel {what}")


def _several(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [found[name] for name in sorted(found)]
    return list(found) if isinstance(found, tuple | list) else [found]


def _integers(rng: np.random.Generator, bits: int, shape: tuple[int, ...], style: str) -> np.ndarray:
    """Return integers below ``2**bits``: random, the largest of one sign, zeros, or NaN."""
    most = 2**bits - 1
    if style == "largest":
        return np.full(shape, most, dtype=np.float32)
    x = rng.integers(-most, most + 1, shape).astype(np.float32)
    return x * np.float32({"random": 1, "zeros": 0, "nan": np.nan}[style])


_STYLES = ("random", "largest", "zeros", "nan")
_SHAPES = ((1, 1, 1), (5, 3, 7), (4, 300, 6), (3, 1030, 2))


def _grids(rng: np.random.Generator) -> Iterator[Call]:
    """Yield magnitudes, of which a non-finite one only has to be that, and roundings in whatever type, without -0."""

    def largest(k: Kernels, x: Any) -> Any:
        found = k.largest(x)
        return k.xp.where(k.xp.isfinite(found), found, np.nan)

    for kind in KINDS:
        for shape in ((1,), (3, 50), (2, 40_000)):
            x = floats(rng, shape, kind)
            yield f"largest ({kind}, {shape})", largest, (x,)
            top = float(np.max(np.abs(x)))
            for bits in (1, 7, 8, 15, 22):
                for clip in (False, True):
                    exponent = bits + 3 * clip - np.frexp(top)[1] if np.isfinite(top) else 0
                    factor = 2.0 ** min(126, max(-126, exponent)) if np.isfinite(top) else np.nan

                    def rounded(k: Kernels, x: Any, factor: Any, bits: int = bits, clip: bool = clip) -> Any:
                        return k.xp.astype(k.rounded(x, factor, bits, clip), k.xp.float32) + 0.0

                    x_here = x if clip else x * np.float32(0.75)  # so that no magnitude rounds to 2**bits
                    arrays = x_here, np.asarray(factor, dtype=np.float32)
                    yield f"rounded ({kind}, {shape}, {bits} bits, clip={clip})", rounded, arrays


def _products(rng: np.random.Generator) -> Iterator[Call]:
    for bits in (1, 3, 7, 8, 9, 15):
        for (rows, terms, columns), style in zip(_SHAPES, np.roll(_STYLES, bits), strict=True):
            left, right = _integers(rng, bits, (rows, terms), style), _integers(rng, bits, (terms, columns), style)
            unit = np.float32(2.0 ** (rng.integers(-40, 40) - bits)) * np.ones((), dtype=np.float32)
            unit = unit * np.float32(np.nan) if style == "nan" else unit  # as that of a poisoned array is
            exact_terms = 2 ** (24 - 2 * bits) if bits <= 8 else 0
            what = f"({style} integers of {bits} bits, {terms} terms)"

            def product(k: Kernels, *arrays: Any, exact_terms: int = exact_terms) -> Any:
                return k.product(*arrays, exact_terms)

            yield f"product {what}", product, (left, right, unit)
            size = rows * columns
            start = int(rng.integers(0, size))
            stop = int(rng.integers(start + 1, size + 1))
            for ends in ([0, size], sorted({0, start, (start + stop) // 2, stop, size})):
                ranges = list(itertools.pairwise(ends))[-3:]

                def scaled(k: Kernels, *arrays: Any, exact_terms: int = exact_terms, ranges: Any = ranges) -> Any:
                    parts = [(scale, *ends) for scale, ends in zip(arrays[3:], ranges, strict=True)]
                    return [
                        w for some in (parts, parts[::2]) for w in k.scaled_products(*arrays[:3], exact_terms, some)
                    ]

                scales = rng.choice([0.0, 1.0, -0.3, 2.0**-30, -(2.0**29), np.nan], len(ranges)).astype(np.float32)
                yield f"scaled_products {what} of {ranges}", scaled, (left, right, unit, *map(np.asarray, scales))


def _scales(rng: np.random.Generator) -> Iterator[Call]:
    v = np.concatenate(
        [floats(rng, (50,), "normal"), np.ldexp(floats(rng, (50,), "normal"), rng.integers(-80, 90, 50))]
    )
    v = np.concatenate([v, [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-88]]).astype(np.float32)
    for scale in (0.0, -0.0, 1.0, -0.7, 2.0**-30, 2.0**29, np.nan):
        one = np.asarray(scale, dtype=np.float32)
        yield f"scale ({scale})", lambda k, v, s: k.scale(v, s), (v, one)
        yield f"scale ({scale}, a number)", lambda k, v, s=float(one): k.scale(v, s), (v,)


def _elementwise(rng: np.random.Generator) -> Iterator[Call]:
    """Products and sums that are rounded once, of all magnitudes; products next to the limit of a floor; ties."""
    for kind in (*KINDS, "limit"):
        for k in (-120, -88):
            a, b, c = (floats(rng, (500,), "normal" if kind == "limit" else kind) for _ in range(3))
            if kind == "limit":
                steps = rng.integers(-2, 3, a.shape)
                b = np.float32(2.0**k / a.astype(np.float64))
                b = (b.view(np.int32) + steps.astype(np.int32)).view(np.float32)
            elif kind == "normal":
                a, b, c = (np.ldexp(x, rng.integers(-150, 127, x.shape)).astype(np.float32) for x in (a, b, c))
            yield f"times ({kind}, 2**{k})", lambda kernels, a, b, k=k: kernels.times(a, b, k), (a, b)
            for parts in ((a,), (a, b), (a, b, -a), (a, c, b, c, -b)):

                def add(kernels: Kernels, *parts: Any, k: int = k) -> Any:
                    return kernels.add(parts, k)

                yield f"add ({kind}, {len(parts)} parts, 2**{k})", add, parts


def _dots(rng: np.random.Generator) -> Iterator[Call]:
    for size in (1, 2, 1000, 40_000):
        for kind in ("normal", "wide", "ties"):
            g, v = (floats(rng, (size,), kind) for _ in range(2))
            if kind == "ties":
                g, v = np.where(rng.random(size) < 0.5, 0.5, -1.5).astype(np.float32), np.ones_like(v)
            power = int(rng.integers(-60, 80))
            g = np.ldexp(g, power).astype(np.float32)
            top = np.frexp(np.max(np.abs(g)))[1] + np.frexp(np.max(np.abs(v)))[1]
            for exponent in (top - 53 + (size - 1).bit_length(), power):
                if exponent < top - 53 + (size - 1).bit_length():
                    continue
                for kappa in (0, 30):

                    def rounded_dot(k: Kernels, g: Any, v: Any, exponent: Any, kappa: int = kappa) -> Any:
                        return k.rounded_dot(g, v, exponent, kappa)

                    yield (
                        f"rounded_dot ({kind}, {size}, 2**{exponent}, {kappa})",
                        rounded_dot,
                        (g, v, np.asarray(exponent, "f4")),
                    )


def _factor_sums(rng: np.random.Generator) -> Iterator[Call]:
    for n, m in ((1, 1), (6, 3), (17, 40)):
        for bits, style in ((1, "random"), (7, "largest"), (15, "largest"), (7, "nan"), (9, "random")):
            q = _integers(rng, 22, (n, n), "largest" if style == "largest" else "random")
            left, right = _integers(rng, bits, (n, m), style), _integers(rng, bits, (m, n), style)
            exact_terms = 2 ** (24 - 2 * bits) if bits <= 8 else 0
            for power in (-91, -20, 68):

                def sums(k: Kernels, q: Any, left: Any, right: Any, *units: Any, exact: int = exact_terms) -> Any:
                    of_left, of_right = k.factor_sums(q, left, right, exact)
                    return k.rounded_sum(of_left, *units, 4.0), k.rounded_sum(of_right, *units, 1.0)

                units = np.asarray(2.0**power, "f4"), np.asarray(np.nan if style == "nan" else 2.0**-40, "f4")
                what = f"factor_sums ({style}, {bits} bits, {n}x{m}, 2**{power})"
                yield what, sums, (q, left, right, *units)


def _segments(rng: np.random.Generator) -> Iterator[Call]:
    for count, size in ((1, 1), (200, 3), (50, 400), (30_000, 2)):
        for style in ("random", "largest"):
            x, segments = _integers(rng, 22, (count,), style), rng.integers(0, size, count)

            def sums(k: Kernels, x: Any, segments: Any, unit: Any, size: int = size) -> Any:
                segments = k.xp.astype(segments, k.index_dtype)
                found = k.sum_tiles(lambda i, j: k.bucket_sums(x[i:j], segments[i:j], size), 0, x.shape[0])
                return k.rounded_sum(found, unit, 2.0)

            yield f"bucket_sums ({style}, {count} into {size})", sums, (x, segments, np.asarray(2.0**-90, "f4"))
    whole = np.arange(1000, dtype=np.float32)
    for start, stop in ((0, 1000), (3, 4), (7, 999)):

        def tiles(k: Kernels, x: Any, start: int = start, stop: int = stop) -> Any:
            return k.tiles(lambda first, last: x[first:last] * 2.0, start, stop)

        yield f"tiles ({start} to {stop})", tiles, (whole,)


def _counts(rng: np.random.Generator) -> Iterator[Call]:
    for count, size in ((1, 1), (200, 3), (50, 65_535)):

        def counts(k: Kernels, x: Any, size: int = size) -> Any:
            return k.counts(x, size)

        yield f"counts ({count} of {size})", counts, (rng.integers(0, size, count).astype(np.float32),)


def _words(rng: np.random.Generator) -> Iterator[Call]:
    i = np.concatenate([np.arange(10), rng.integers(0, 2**31, 90)])
    for key in (0, 1, 2**31, 2**32 - 1):

        def words(k: Kernels, i: Any, key: int = key) -> Any:
            found = hashing.words(k.xp, key, k.xp.astype(i, k.word_dtype))
            halves = k.xp.bitwise_right_shift(found, 16), k.xp.bitwise_and(found, 2**16 - 1)
            return tuple(k.xp.astype(half, k.xp.float32) for half in halves)

        yield f"word_dtype (key {key})", words, (i,)


def _fused(rng: np.random.Generator) -> Iterator[Call]:
    """Gradients of matmul pools of all kinds, which a backend may compute in one pass."""
    for number, (bits, terms, kind) in enumerate(
        ((8, 3, "normal"), (8, 1100, "normal"), (2, 2, "ties"), (16, 5, "wide"), (8, 4, "special"), (10, 1, "zeros"))
    ):
        plan = _matmul_plan(bits, terms, learn=number % 3 != 2)
        variables = variables_for(plan, number, "ties" if kind == "ties" else "normal")
        cotangents = cotangents_for(plan, number, kind)
        if number % 2:
            cotangents.pop("b")

        def vjp(k: Kernels, *flat: Any, plan: Plan = plan, names: tuple[str, ...] = tuple(cotangents)) -> Any:
            count = len(plan.variable_shapes)
            return generate.vjp(
                k,
                plan,
                dict(zip(plan.variable_shapes, flat, strict=False)),
                dict(zip(names, flat[count:], strict=True)),
            )

        what = f"matmul_gradients ({bits} bits, {terms} terms, {kind} cotangents)"
        yield what, vjp, (*variables.values(), *cotangents.values())


def _matmul_plan(bits: int, terms: int, learn: bool) -> Plan:
    shapes = {"a": (3, 5), "b": (4, 4), "c": (2, 2), "d": (40,)}
    pool = pools.Matmul(n=9, m=terms, bits=bits, gain=1)
    plan = Plan.build(shapes, ratio=10**9, pool=pool, include=lambda name: True)
    fixed = dataclasses.replace(plan.tensors[0], learn_scale=False, kappa=0)
    return plan if learn else dataclasses.replace(plan, tensors=(fixed, *plan.tensors[1:]))
