"""Deliberate mistakes in the core, each of which the comparison with the oracle must find."""

import math

import numpy as np
import pytest

from smh.core import generate, grid, layout, pools, scales
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.core.pools import arithmetic
from tests.core.cases import check

SHAPES = {"a": (5, 4), "b": (3, 7), "c": (2, 2)}
POOLS = [
    pools.Matmul(m=3, bits=8),
    pools.Matmul(m=5, bits=16),
    pools.Matmul(n=7, m=300, bits=8),
    pools.Kronecker(t=4, bits=4),
    pools.Hash(size=9, hashes=3, gain=5),
    pools.Sum(*(pools.Matmul(m=2, bits=16, gain=gain) for gain in (0, 2, 5))),
    pools.Sum(pools.Matmul(m=2), pools.Product(pools.Hash(size=20), pools.Matmul(m=2))),
    pools.Product(pools.Matmul(m=3), pools.Hash(size=7), pools.Hash(size=11)),
    pools.Matmul(m=4, exponents=(-1, 0), gain=1),
]


def cases():
    """Return plans with values on which every mistake below shows."""
    found = []
    for k, pool in enumerate(POOLS):
        for kind in ("basic", "cyclic", "padding"):
            fits = kind == "basic"
            if not fits and getattr(pool, "n", None):
                continue
            shapes = SHAPES if fits else {**SHAPES, "d": (9, 9)}
            if not fits:  # a pool for the first tensors only
                sized = Plan.build(SHAPES, ratio=1000.0, pool=pool).pool
            plan = Plan.build(
                shapes,
                ratio=1000.0,
                pool=pool if fits else sized,
                layout=kind,
                modifiers={name: ["relu"] if name == "b" else [] for name in shapes},
                optimizer="adam" if k % 2 else "sgd",
                seed=k,
            )
            for style in ("normal", "edges"):
                found.append((plan, *_values(plan, 10 * k + len(found), style)))
    return [*found, _cancellation(), _padding_alone(), _small_cotangents(), _small_products()]


def _cancellation():
    """Return a scale gradient of which three units are left."""
    plan = Plan.build({"a": (2, 2)}, ratio=1000.0, pool=pools.Matmul(n=2, m=1, gain=0))
    ones = {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    return plan, ones, {"a": np.asarray([[1.0, -1.0], [3 * 2.0**-48, 2.0**-60]], dtype=np.float32)}


def _padding_alone():
    """Return a scale gradient of cells beyond the capacity, above which no bound of the pool lies."""
    plan = Plan.build(
        {"a": (9,)},
        ratio=1000.0,
        pool=pools.Matmul(n=2, m=1, gain=0, exponents=(-10, -10)),
        layout="padding",
        include=lambda name: True,
    )
    variables = {name: np.full(shape, 2.0**-11, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    return plan, variables, {"a": np.asarray([0, 0, 0, 0, 1.0, -1.0, 3 * 2.0**-50, 0, 0], dtype=np.float32)}


def _small_cotangents():
    """Return a cotangent just below its floor, which the largest scale would lift onto the grid."""
    plan = Plan.build({"a": (1, 2)}, ratio=1000.0, pool=pools.Matmul(n=2, m=1, gain=0))
    variables = {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    scale = (1 - 2.0**-24) * 2.0 ** (30 + plan.tensors[0].kappa)
    variables["scale/a"] = np.float32(scale) * np.ones((), dtype=np.float32)
    return plan, variables, {"a": np.asarray([[1.25 * 2.0**-100, (1 - 2.0**-24) * 2.0**-120]], dtype=np.float32)}


def _small_products():
    """Return products of virtual weights around 2**-88, made visible by a large scale."""
    part = pools.Hash(size=30, exponents=(-29,))
    plan = Plan.build({"a": (6, 5)}, ratio=1000.0, pool=pools.Product(part, part, part), scale=2.0**29)
    rng = np.random.default_rng(3)
    variables = {name: np.ldexp(rng.uniform(0.01, 1, s), -30).astype(np.float32) for name, s in _pool_shapes(plan)}
    variables["scale/a"] = np.float32(2.0 ** (plan.tensors[0].kappa + 29)) * np.ones((), dtype=np.float32)
    return plan, variables, {"a": rng.standard_normal((6, 5)).astype(np.float32)}


def _pool_shapes(plan):
    return [(name, shape) for name, shape in plan.variable_shapes.items() if name.startswith("pool/")]


def _values(plan, seed, style):
    rng = np.random.default_rng(seed)
    variables = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in plan.variable_shapes.items()}
    cotangents = {t.name: rng.standard_normal(t.viewed_shape).astype(np.float32) for t in plan.tensors}
    if style == "edges":
        # Scales around the limits, cotangents around the floors, a missing one, and ties of both grids.
        for name, power in zip([n for n in variables if n.startswith("scale/")], (29, -31, 31, -30), strict=False):
            kappa = next(t.kappa for t in plan.tensors if t.scale_variable == name)
            variables[name] = np.float32(1.5 * 2.0 ** (power + kappa)) * np.ones((), dtype=np.float32)
        cotangents["a"] = cotangents["a"] * np.float32(2.0**-120)
        cotangents["a"].flat[0] = 2.0**-100
        del cotangents["c"]
        for name, x in variables.items():
            if name.startswith("pool/"):
                x.flat[0] = 1.0
                x.flat[1:] = np.round(x.flat[1:] * 256) / 256
    return variables, cotangents


CASES = cases()


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
        monkeypatch.setattr(kernels, "factor_sums", lambda q, a, b: ((q @ b.T).astype("f8"), (a.T @ q).astype("f8")))
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
        original = arithmetic.all_powers
        monkeypatch.setattr(arithmetic, "all_powers", lambda k, grids, factor: original(k, grids, 2 * factor))
    elif what == "padding in the bound forgotten":
        monkeypatch.setattr(layout, "PADDING_POWER", 0.0)
    elif what == "padding in float64":
        monkeypatch.setattr(layout, "PADDING", 0.010000001)
    elif what == "cyclic sums in float32":
        monkeypatch.setattr(layout, "wide", lambda kernels, x: x)
    elif what == "relu lets all cotangents pass":
        monkeypatch.setattr(scales, "masked", lambda k, g, w, modifiers: g)
    elif what == "products not floored":
        monkeypatch.setattr(arithmetic, "times", lambda kernels, a, b, k=-120: (a * b).astype(np.float32))
    elif what == "sums in float32":
        monkeypatch.setattr(arithmetic, "wide", lambda kernels, x: x)
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
        monkeypatch.setattr(grid, "wide", lambda kernels, x: x.astype(np.float64))
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
    "cyclic sums in float32",
    "relu lets all cotangents pass",
    "products not floored",
    "sums in float32",
    "gain of gradients forgotten",
    "signs forgotten",
    "other seeds of parts",
    "padding in the bound forgotten",
    "cotangents not floored",
]


def test_the_core_as_it_is_passes():
    for plan, variables, cotangents in CASES:
        check(Kernels(np), plan, variables, cotangents)


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_found(monkeypatch, what):
    kernels = broken(monkeypatch, what)

    def everything():
        for plan, variables, cotangents in CASES:
            check(kernels, plan, variables, cotangents)

    with pytest.raises(AssertionError, match="differ|float32"):
        everything()


def test_nan_is_what_poison_gives():
    plan = Plan.build({"a": (3, 3)}, ratio=2.0)
    variables, cotangents = _values(plan, 1, "normal")
    variables["pool/left"][0, 0] = math.nan
    check(Kernels(np), plan, variables, cotangents)
    assert np.isnan(generate.materialize(Kernels(np), plan, variables)["a"]).all()
