"""The rate: how many bits the integers of a pool take when they are entropy-coded, with gradients.

The rate needs no parameters and no state: the prior of an array is fitted to its values in closed form. The bits of the
result are not promised.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from smh.core.kept import WIDTHS, keeps, kept_grid, tried_bits
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import PlanError

FEWEST_CODED = 128
"""The fewest integers of an array that is coded."""

MOST = 1024
"""The most arrays of a pool that is packed, since each of them takes some milliseconds to read; so for kept tensors."""

_LEAST = 2.0**-10
"""The least width of a prior."""

_DIGITS = (2, 4)
"""Significant bits of classes: the shortest stream of all that the coder tries is hardly shorter than one of these."""


def rate(kernels: Kernels, plan: Plan, variables: Mapping[str, Array], constant: Callable[[Array], Array]) -> Array:
    """Return the bits that the integers of a pool are estimated to take in a packed file.

    The value counts integers (``coded_bits``). The gradient is that of a prior for values between integers
    (``relaxed_bits``), because rounding has none.

    Parameters
    ----------
    kernels : Kernels
        The namespace of the variables.
    plan : Plan
        A plan with fixed exponents.
    variables : mapping of str to array
        The variables of the pool, float32, by name.
    constant : callable
        Returns an array without its gradient.

    Returns
    -------
    array, shape (), float32
        NaN if a variable is not finite.

    Raises
    ------
    PlanError
        If the plan does not fix exponents.

    Examples
    --------
    >>> import numpy as np
    >>> plan = Plan.build({"fc": (40, 50)}, ratio=0.1, exponents="fixed")
    >>> zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    >>> float(rate(Kernels(np), plan, zeros, constant=np.copy)) < 200
    True
    """
    xp, total = kernels.xp, 0.0
    for leaf in plan.pool.leaves(plan.seed):
        if leaf.pool.exponents is None:
            what = "the rate needs fixed exponents, as of smh.compress(model, ratio=0.1, exponents='fixed')"
            raise PlanError(f"{what}; got {leaf.pool!r}")
        bits = leaf.pool.grid_bits
        for name, exponent in zip(leaf.pool.local_shapes(), leaf.pool.exponents, strict=True):
            y = xp.reshape(variables[f"pool/{leaf.path}{name}"], (-1,)) * 2.0 ** (bits - exponent)
            total = total + array_rate(kernels, y, bits, constant)
    return total


def kept_rate(kernels: Kernels, kept: Iterable[Array], bits: int, constant: Callable[[Array], Array]) -> Array | float:
    """Return the bits that kept tensors of floats are estimated to take in a packed file that rounds them.

    Gradients are those of :func:`rate`. There are none for a tensor that stays as it is, has too few values for a
    code, or has no negative ones: on the way to zero these would need more bits, not fewer.

    Parameters
    ----------
    kernels : Kernels
        The namespace of the tensors.
    kept : iterable of arrays
        The kept tensors. Those of dtypes that are not rounded do not count.
    bits : int
        8 or 16, as :func:`smh.save` takes them.
    constant : callable
        As for :func:`rate`.

    Returns
    -------
    array, shape (), float32, or float
        NaN if a tensor to round is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> kept = [np.ones(100, np.float32), np.ones(1, np.float32), np.arange(5)]
    >>> float(kept_rate(Kernels(np), kept, 8, constant=np.copy))  # 100 bytes and a float
    832.0
    """
    alike, total = defaultdict(list), 0.0
    for x in kept:
        dtype = getattr(x.dtype, "name", str(x.dtype)).rpartition(".")[2]
        if dtype in WIDTHS:
            alike[dtype, math.prod(x.shape)].append(kernels.xp.reshape(x, (-1,)))
    rounded = sum(len(rows) for key, rows in alike.items() if tried_bits(*key, bits))
    for (dtype, size), rows in alike.items():
        if tried_bits(dtype, size, bits):
            coded = size >= FEWEST_CODED and rounded <= MOST
            total = total + _rows_rate(kernels, kernels.xp.stack(rows), dtype, bits, coded, constant)
        else:
            total = total + float(len(rows) * size * WIDTHS[dtype])
    return total


def _rows_rate(
    kernels: Kernels, x: Array, dtype: str, bits: int, coded: bool, constant: Callable[[Array], Array]
) -> Array:
    """Return the rate of kept tensors of one size, which are rows, with a code or not."""
    xp, (rows, size), fixed = kernels.xp, x.shape, constant(x)
    plain = xp.ones((rows, 1), dtype=xp.float32, device=kernels.device(x)) * float(size * WIDTHS[dtype])
    factor = plain * 0.0
    for each in reversed(tried_bits(dtype, size, bits)):
        q, unit = kept_grid(kernels, fixed, each)
        kept = keeps(kernels, fixed, dtype, q, unit)
        plain, factor = xp.where(kept, float(size * each), plain), xp.where(kept, 1.0 / unit, factor)
    plain = xp.where(xp.all(xp.isfinite(fixed), axis=1, keepdims=True), plain, math.nan)
    if not coded:
        return xp.sum(plain)
    q = xp.round(xp.where(factor > 0.0, xp.astype(fixed, xp.float32) * factor, 0.0))
    positive = xp.all(fixed >= 0.0, axis=1, keepdims=True)
    y = xp.where(positive, 0.0, xp.astype(x, xp.float32) * factor)
    stream, relaxed = stream_bits(kernels, q), relaxed_bits(kernels, y, constant, axis=1)
    rate = relaxed + constant(xp.where(stream < plain, stream, plain) - relaxed)
    return xp.sum(xp.where(factor > 0.0, rate, plain))


def array_rate(kernels: Kernels, y: Array, bits: int, constant: Callable[[Array], Array]) -> Array:
    """Return the rate of one array, float32, shape (); NaN if a value is not finite.

    Parameters
    ----------
    y : array, shape (k,), float32
        Values in units, which are rounded and clipped as on the grid.
    bits : int
        B: magnitudes of integers are below ``2**bits``.
    constant : callable
        As for :func:`rate`.
    """
    relaxed = relaxed_bits(kernels, y, constant)
    return relaxed + constant(coded_bits(kernels, constant(y), bits) - relaxed)


def coded_bits(kernels: Kernels, y: Array, bits: int) -> Array:
    """Return the bits of integers in a packed file: their entropy and a table, or those without a code if fewer.

    The bits of a table are estimated from how many different integers occur. With more than 8 bits and few integers of
    each size, the entropy is too low, because a table then holds them in groups.
    """
    xp, top, size = kernels.xp, 2**bits - 1, y.shape[0]
    q = xp.clip(xp.round(xp.where(xp.isfinite(y), y, 0.0)), -float(top), float(top))
    counts = kernels.counts(q + float(top), 2 * top + 1)
    used = counts > 0.0
    entropy = xp.sum(counts * _log2(kernels, xp.where(used, counts, 1.0) * (1.0 / size))) * -1.0
    levels = xp.sum(xp.astype(used, xp.float32))
    coded = entropy + 16.0 + 26.0 * _log2(kernels, levels)
    plain = float(size * (4 if bits < 4 else 8 if bits < 8 else 16))
    return xp.where(coded < plain, xp.where(coded < size / 32, size / 32, coded), plain)


def stream_bits(kernels: Kernels, q: Array) -> Array:
    """Return the bits that the streams of integers are estimated to take (specification, section 12.1).

    Unlike :func:`coded_bits` this takes classes of integers into account, so it also holds for many bits and for few
    integers.

    Parameters
    ----------
    kernels : Kernels
        The namespace of the integers.
    q : array, shape (rows, k), float32
        Integers with magnitudes below ``2**15``, those of one stream in each row.

    Returns
    -------
    array, shape (rows, 1), float32
    """
    coarse, fine = (_class_bits(kernels, q, digits) for digits in _DIGITS)
    shortest, least = kernels.xp.where(coarse < fine, coarse, fine), q.shape[1] / 32
    return kernels.xp.where(shortest < least, least, shortest)


def _class_bits(kernels: Kernels, q: Array, digits: int) -> Array:
    """Return the bits of classes with a number of significant bits, those that they leave, and a table."""
    xp, device, (rows, n) = kernels.xp, kernels.device(q), q.shape
    size, powers = xp.abs(q), xp.asarray([2.0**k for k in range(16)], dtype=xp.float32, device=device)
    length = xp.floor(-_log2(kernels, size + 0.5)) * -1.0
    low = xp.where(length > digits, length - digits, 0.0)
    unit = xp.reshape(xp.take(powers, xp.reshape(xp.astype(low, xp.int32), (-1,))), (rows, n))
    first = xp.floor(size / unit)
    classes, most = low * 2.0 ** (digits - 1) + first, (17 - digits) * 2 ** (digits - 1) - 1
    places = classes * 2.0 - xp.astype(q > 0.0, xp.float32)
    row = xp.reshape(xp.arange(rows, dtype=xp.float32, device=device) * (2.0 * most + 1.0), (rows, 1))
    counts = kernels.counts(xp.reshape(places + row, (-1,)), rows * (2 * most + 1))
    counts = xp.reshape(counts, (rows, 2 * most + 1))
    logs = _log2(kernels, xp.where(counts > 0.0, counts, 1.0) * (1.0 / n))
    entropy = xp.sum(counts * logs, axis=1, keepdims=True) * -1.0
    zeros = xp.all(first * unit == size, axis=1, keepdims=True)  # at the end of a stream, which leaves them out
    left = xp.where(zeros, 0.0, xp.sum(low, axis=1, keepdims=True))
    return entropy + left + _table_bits(kernels, counts, xp.max(classes, axis=1, keepdims=True) * 2.0 + 1.0, n)


def _table_bits(kernels: Kernels, counts: Array, used: Array, n: int) -> Array:
    """Return the bits of a table of the first ``used`` counts of each row: those of differences, from their mean."""
    xp = kernels.xp

    def code(x: Array) -> Array:
        return xp.where(x < 2.0, x, xp.round(2.0 * _log2(kernels, xp.where(x < 2.0, 1.0, x))))

    first = code(xp.floor(n / used))
    codes = xp.concat([first, first, code(counts)], axis=1)
    differences = xp.abs(codes[:, 2:] - xp.floor((codes[:, :-2] + codes[:, 1:-1] + 1.0) * 0.5))
    inside = xp.arange(counts.shape[1], dtype=xp.float32, device=kernels.device(counts)) < used
    mean = xp.sum(xp.where(inside, differences, 0.0), axis=1, keepdims=True) / used + _LEAST
    root = (mean * mean + 1.0) ** 0.5
    return used * (_log2(kernels, mean + root) + mean * _log2(kernels, (root + 1.0) / mean)) + 21.0


def relaxed_bits(kernels: Kernels, y: Array, constant: Callable[[Array], Array], axis: int | None = None) -> Array:
    """Return the bits of values that are rounded up or down at random, under a prior, up to a constant.

    All values have one prior, or with an axis those along it.

    A value is rounded up with the probability of its fraction, so its cost is linear between integers. An integer q
    costs ``2 * log2(|q| + a)`` bits plus a constant, by a prior with the tail of a Cauchy distribution. Its width a is
    the mean magnitude of the values, and gradients take it as constant. The tail keeps large values, and a decreasing
    prior cannot gather values anywhere but at zero, as one that follows the histogram does.
    """
    xp, rows = kernels.xp, axis is not None
    size = xp.abs(y)
    below = constant(xp.floor(size))
    width = constant(xp.sum(size, axis=axis, keepdims=rows) * (1.0 / y.shape[-1])) + _LEAST
    low, high = 2.0 * _log2(kernels, below + width), 2.0 * _log2(kernels, below + (width + 1.0))
    return xp.sum(low + (size - below) * (high - low), axis=axis, keepdims=rows)


def _log2(kernels: Kernels, x: Array) -> Array:
    return kernels.xp.log(x) * (1.0 / math.log(2.0))
