"""Deliberate mistakes in the core, each of which the golden vectors must find."""

import math

import numpy as np
import pytest

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate, grid, layout, scales
from smh.core import kernels as primitives
from smh.core.kernels import Kernels, add_up, floor
from smh.core.plan import Plan
from smh.core.pools import arithmetic
from tests.core.cases import check, check_golden, values


def _without_ties(x):
    return np.floor(x + 0.5)


def broken(monkeypatch, what):
    """Make one mistake."""
    kernels = Kernels(np)
    if what == "ties away from even":
        namespace = type("np", (), {**vars(np), "round": staticmethod(_without_ties)})
        return Kernels(namespace)
    if what == "minus zero":
        monkeypatch.setattr(kernels, "scale", lambda v, s: np.asarray(v * s))
    elif what == "float32 sums of wide integers":
        monkeypatch.setattr(kernels, "product", lambda a, b, unit, exact_terms: (a @ b) * unit)
    elif what == "float32 gradients":
        monkeypatch.setattr(kernels, "factor_sums", lambda q, a, b, _: (q @ b.T, a.T @ q))
    elif what == "scale gradient without rint":
        monkeypatch.setattr(kernels, "dot", lambda g, v, inverse: np.sum(g * v * inverse))
    elif what == "cotangents of 21 bits":
        monkeypatch.setattr(arithmetic, "COTANGENT_BITS", 21)
    elif what == "exponent from the plain maximum":
        original = grid._power
        monkeypatch.setattr(grid, "_power", lambda k, x, low, high, share, strict: original(k, x, low, high, 1, strict))
    elif what == "no clipping":
        namespace = type("np", (), {**vars(np), "clip": staticmethod(lambda x, low, high: x)})
        return Kernels(namespace)
    elif what == "scales not cleaned":
        monkeypatch.setattr(scales, "cleaned", lambda k, rho, kappa: rho * np.float32(2.0**-kappa))
    elif what == "kappa forgotten":
        original = scales.cleaned
        monkeypatch.setattr(scales, "cleaned", lambda k, rho, kappa: original(k, rho, 0))
    elif what == "kappa forgotten in gradients":
        original = scales.gradient
        monkeypatch.setattr(
            scales, "gradient", lambda k, g, v, bound, healthy, kappa: original(k, g, v, bound, healthy, 0)
        )
    elif what == "a bound twice as large":
        monkeypatch.setattr(arithmetic, "ceil_log2", lambda k: grid.ceil_log2(k) + 1)
    elif what == "padding in the bound forgotten":
        monkeypatch.setattr(layout, "PADDING_EXPONENT", -1000)
    elif what == "padding in float64":
        monkeypatch.setattr(layout, "PADDING", 0.010000001)
    elif what == "sums of cells and of pools in float32":
        monkeypatch.setattr(kernels, "add", lambda parts, k=-120: floor(kernels, add_up(parts), k))
    elif what == "relu lets all cotangents pass":
        monkeypatch.setattr(scales, "masked", lambda k, g, w, modifiers: g)
    elif what == "products not floored":
        monkeypatch.setattr(kernels, "times", lambda a, b, k=-120: (a * b).astype(np.float32))
    elif what == "gain of gradients forgotten":
        original = arithmetic.Factorized.pull

        def pull(self, k, q, left, right):
            return tuple(x / np.float32(self.factor) for x in original(self, k, q, left, right))

        monkeypatch.setattr(arithmetic.Factorized, "pull", pull)
    elif what == "signs forgotten":
        monkeypatch.setattr(
            arithmetic.HashArithmetic, "_sign", lambda self, k, i, m, seed, dtype: np.ones(i.shape, dtype=dtype)
        )
    elif what == "other seeds of parts":
        monkeypatch.setattr(arithmetic.hashing, "PART_STREAM", 65537)
    elif what == "cotangents not floored":
        monkeypatch.setattr(primitives, "wide", lambda kernels, x: x.astype(np.float64))
    else:
        raise AssertionError(what)
    return kernels


MISTAKES = [
    "ties away from even",
    "minus zero",
    "float32 sums of wide integers",
    "float32 gradients",
    "scale gradient without rint",
    "cotangents of 21 bits",
    "exponent from the plain maximum",
    "no clipping",
    "scales not cleaned",
    "kappa forgotten",
    "kappa forgotten in gradients",
    "a bound twice as large",
    "padding in float64",
    "sums of cells and of pools in float32",
    "relu lets all cotangents pass",
    "products not floored",
    "gain of gradients forgotten",
    "signs forgotten",
    "other seeds of parts",
    "padding in the bound forgotten",
    "cotangents not floored",
]


@pytest.mark.parametrize("kernels", [Kernels(np), NumpyKernels()], ids=["default", "numpy"])
def test_the_core_as_it_is_passes(kernels):
    check_golden(kernels)


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_found(monkeypatch, what):
    kernels = broken(monkeypatch, what)
    with pytest.raises(AssertionError, match="differ|float32"):
        check_golden(kernels)


def test_nan_is_what_poison_gives():
    plan = Plan.build({"a": (3, 3)}, ratio=2.0)
    variables, cotangents = values(plan, 1, "normal")
    variables["pool/left"][0, 0] = math.nan
    check(Kernels(np), plan, variables, cotangents)
    assert np.isnan(generate.materialize(Kernels(np), plan, variables)["a"]).all()
