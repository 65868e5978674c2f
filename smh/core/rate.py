"""The rate: how many bits the integers of a pool take when they are entropy-coded, with gradients.

The rate needs no parameters and no state: the prior of an array is fitted to its values in closed form. The bits of the
result are not promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.errors import PlanError

_LEAST = 2.0**-10
"""The least width of a prior."""


def rate(kernels: Kernels, plan: Plan, variables: Mapping[str, Array], constant: Callable[[Array], Array]) -> Array:
    """Return the bits that the integers of a pool are estimated to take in a packed file.

    The value counts integers (:func:`coded_bits`). The gradient is that of a prior for values between integers
    (:func:`relaxed_bits`), because rounding has none.

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


def relaxed_bits(kernels: Kernels, y: Array, constant: Callable[[Array], Array]) -> Array:
    """Return the bits of values that are rounded up or down at random, under a prior, up to a constant.

    A value is rounded up with the probability of its fraction, so its cost is linear between integers. An integer q
    costs ``2 * log2(|q| + a)`` bits plus a constant, by a prior with the tail of a Cauchy distribution. Its width a is
    the mean magnitude of the values, and gradients take it as constant. The tail keeps large values, and a decreasing
    prior cannot gather values anywhere but at zero, as one that follows the histogram does.
    """
    xp = kernels.xp
    size = xp.abs(y)
    below = constant(xp.floor(size))
    width = constant(xp.sum(size) * (1.0 / y.shape[0])) + _LEAST
    low, high = 2.0 * _log2(kernels, below + width), 2.0 * _log2(kernels, below + (width + 1.0))
    return xp.sum(low + (size - below) * (high - low))


def _log2(kernels: Kernels, x: Array) -> Array:
    return kernels.xp.log(x) * (1.0 / math.log(2.0))
