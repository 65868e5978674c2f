"""Fitted variables: against NumPy's own decompositions and least squares, and by what the generated weights are."""

import dataclasses
import functools
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import smh
from conformance.bits import assert_same_bits
from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate, layout, pools
from smh.core.pools.base import named
from smh.models import fit_pool, rounding
from smh.models.fit import FitReport, fit_variables
from smh.models.fit_pool import fit_leaf
from smh.models.patience import largest_eigenvectors

pytestmark = pytest.mark.filterwarnings("ignore:the fitted weights are off:UserWarning")

KERNELS = NumpyKernels()
# Integers of 16 bits: a variable is off by less than 2**-15 of the largest, and a square of side n adds n of these.
FULL = 1e-3
build = functools.partial(smh.Plan.build, bits=16)
POOLS = {
    "matmul": "matmul",
    "kronecker": "kronecker",
    "hash": "hash",
    "hashes": pools.Hash(hashes=2),
    "sum": pools.Sum("matmul", "hash"),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def fixed(shapes, pool, **options):
    """Return a plan whose weights are the virtual weights."""
    return build(shapes, ratio=10**6, pool=pool, **{"learn_scale": False, "scale": 1.0, **options})


def generated(plan, variables):
    return smh.get_backend("numpy").materialize(plan, variables)


def distance(weights, values):
    return np.sqrt(sum(np.sum((weights[name] - x) ** 2) for name, x in values.items()))


def relative(found, wanted):
    wanted = wanted.astype(np.float64)
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def truncated(matrix, rank):
    """Return the nearest matrix of a rank."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def rearranged(x, d):
    """Return the matrix with rows (i1, j1) and columns (i2, j2), element by element."""
    out = np.empty((d * d, d * d))
    for i1, i2, j1, j2 in np.ndindex(d, d, d, d):
        out[i1 * d + j1, i2 * d + j2] = x[i1 * d + i2, j1 * d + j2]
    return out


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("learn_scale", [True, False])
@pytest.mark.parametrize("n", [1, 2, 17, 100])
def test_a_matmul_pool_of_full_rank_reproduces_the_weights(n, learn_scale, optimizer):
    values = {"a": 0.03 * normal(n, n, n) + 0.01}
    plan = build({"a": (n, n)}, ratio=2, optimizer=optimizer, learn_scale=learn_scale, pool=pools.Matmul(m=n))
    assert fit_variables(plan, values)[1].error < FULL


@pytest.mark.parametrize("gain", [0, 3, None])
@pytest.mark.parametrize("d", [1, 2, 5, 9])
def test_a_kronecker_pool_of_full_rank_reproduces_the_weights(d, gain):
    values = {"a": 20.0 * normal(d, d * d, d * d)}
    plan = build({"a": (d * d, d * d)}, ratio=2, pool=pools.Kronecker(t=d * d, gain=gain))
    assert fit_variables(plan, values)[1].error < FULL


@pytest.mark.parametrize("kind", ["outliers", "rows", "decay", "constant"])
def test_full_rank_reproduces_weights_of_very_different_sizes(kind):
    n = 100
    square = normal(0, n, n)
    target = {
        "outliers": np.random.default_rng(1).standard_t(1.0, (n, n)),
        "rows": square * np.exp(4 * normal(1, n, 1)),
        "decay": np.linalg.qr(square)[0] * 10.0 ** -np.linspace(0, 6, n) @ np.linalg.qr(normal(1, n, n))[0],
        "constant": np.ones((n, n)),
    }[kind]
    plan = build({"a": (n, n)}, ratio=2, pool=pools.Matmul(m=n))
    assert fit_variables(plan, {"a": target})[1].error < FULL


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.3, 0.5, 0.9, 1.6])
def test_a_matmul_pool_is_no_worse_than_numpys_truncated_svd(ratio):
    target = normal(2, 60, 60) @ np.diag(np.linspace(0.1, 3, 60)) + 0.5
    plan = build({"a": (60, 60)}, ratio=ratio)
    report = fit_variables(plan, {"a": target})[1]
    least = np.linalg.norm(target - truncated(target, plan.pool.m)) / np.linalg.norm(target)
    assert least > 1e-3
    assert report.error_unrounded <= (1 + 1e-5) * least
    assert report.error <= (1 + 1e-3) * least


@pytest.mark.parametrize("t", [1, 2, 5, 12])
def test_a_kronecker_pool_is_no_worse_than_the_rearranged_svd(t):
    d = 4
    target = normal(t, d * d, d * d)
    plan = fixed({"a": target.shape}, pools.Kronecker(d=d, t=t, gain=1))
    variables, report = fit_variables(plan, {"a": target})
    matrix = rearranged(target, d)
    least = np.linalg.norm(matrix - truncated(matrix, t)) / np.linalg.norm(matrix)
    assert report.error <= (1 + 1e-3) * least
    left, right = (variables[f"pool/{side}"].astype(np.float64) * 2 for side in ("left", "right"))
    explicit = sum(np.kron(left[r], right[r]) for r in range(t))
    assert np.linalg.norm(explicit - target) / np.linalg.norm(target) == pytest.approx(report.error, rel=1e-5)


def test_a_sum_of_kronecker_products_is_found_again():
    d, t = 5, 3
    target = sum(np.kron(normal(r, d, d), normal(10 + r, d, d)) for r in range(t))
    plan = build({"a": target.shape}, ratio=10**6, pool=pools.Kronecker(t=t))
    assert fit_variables(plan, {"a": target})[1].error < FULL


@pytest.mark.parametrize("hashes", [1, 2, 3])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [7, 40, 200])
@pytest.mark.parametrize("gain", [0, 2])
def test_a_hash_pool_reaches_the_explicit_least_squares(hashes, signed, size, gain):
    target = normal(3, 12, 20) + 0.5
    pool = pools.Hash(size=size, hashes=hashes, signed=signed, gain=gain)
    plan = fixed({"a": target.shape}, pool, seed=5)
    variables, report = fit_variables(plan, {"a": target})
    i = np.arange(target.size)
    design = np.zeros((target.size, hashes * size))
    found = plan.pool.indices(KERNELS, i, 5)["table"]
    np.add.at(design, (i[:, None], found), plan.pool.signs(KERNELS, i, 5))
    best, *_ = np.linalg.lstsq(design, target.reshape(-1), rcond=None)
    least = np.linalg.norm(design @ best - target.reshape(-1)) / np.linalg.norm(target)
    assert report.error_unrounded == pytest.approx(least, rel=1e-5, abs=1e-6)
    assert report.error == pytest.approx(least, rel=1e-3, abs=1e-4)
    assert variables["pool/table"].reshape(-1) * 2**gain == pytest.approx(best, abs=1e-3)  # both of least norm


REQUESTS = [
    "matmul",
    "kronecker",
    "hash",
    pools.Hash(hashes=3),
    pools.Sum("matmul", "hash"),
    pools.Sum(pools.Sum("kronecker")),
    pools.Matmul(exponents=(-1, 1)),
    pools.Hash(hashes=2, exponents=(0,)),
]


@given(
    st.sampled_from(REQUESTS),
    st.integers(0, 2**32 - 1),
    st.sampled_from(layout.LAYOUTS),
    st.booleans(),
    st.sampled_from([3, 8, 16]),
)
@settings(max_examples=40, deadline=None)
def test_no_fit_is_worse_than_nothing_and_the_report_is_true(request, seed, layout, learn_scale, bits):
    """Weights of zero are always within reach (cells of the padding apart), so the error is at most 1."""
    shapes = {"a": (7, 9), "b": (20,), "c": (2, 3, 5)}
    small = pools.Matmul(n=9, m=2) if layout != "basic" and seed % 2 else request
    options = {"layout": layout, "seed": seed, "learn_scale": learn_scale, "include": [*shapes]}
    plan = smh.Plan.build(shapes, ratio=3, pool=small, bits=bits, **options)
    values = {
        name: (normal(seed + k, *shape) * 3.0**k).astype(np.float32) for k, (name, shape) in enumerate(shapes.items())
    }
    variables, report = fit_variables(plan, values)
    assert {name: (x.shape, x.dtype) for name, x in variables.items()} == {
        name: (shape, np.float32) for name, shape in plan.variable_shapes.items()
    }
    assert list(variables) == list(plan.variable_shapes)
    weights = generated(plan, variables)
    for name, x in values.items():
        assert report.errors[name] == pytest.approx(relative(weights[name], x), rel=1e-6)
    every = [np.concatenate([each[name].reshape(-1) for name in values]) for each in (weights, values)]
    assert report.error == pytest.approx(relative(*every), rel=1e-6)
    on_grid = generate.on_grid(KERNELS, plan, variables)
    for name, x in on_grid.items():
        assert_same_bits(np.asarray(x), variables[name])
    if learn_scale and layout == "basic":
        assert all(error <= 1 + 1e-6 for error in report.errors.values())


@pytest.mark.parametrize("name", POOLS)
def test_equal_calls_give_equal_bits_and_change_no_argument(name):
    plan = build({"a": (30, 20), "b": (11, 3)}, ratio=0.4, pool=POOLS[name])
    values = {"b": normal(1, 11, 3), "a": normal(0, 30, 20)}
    copies = {key: x.copy() for key, x in values.items()}
    first, one = fit_variables(plan, values)
    second, two = fit_variables(plan, {key: values[key] for key in ("a", "b")})
    for key, x in first.items():
        assert_same_bits(x, second[key])
    assert one == two
    for key, x in copies.items():
        assert np.array_equal(values[key], x)


def test_unused_virtual_weights_are_filled_to_help_the_others():
    """A matrix of low rank, of which the last cells are no weights, is found; with zeros there it would not be."""
    n, m = 20, 2
    whole = normal(4, n, m) @ normal(5, m, n)
    size = n * n - 2 * n + 5  # fewer than 2 n are free
    target = whole.reshape(-1)[:size]
    plan = fixed({"a": (size,)}, pools.Matmul(m=m), include=["a"])
    assert plan.pool.n == n
    padded = np.append(target, np.zeros(n * n - size)).reshape(n, n)
    with_zeros = np.linalg.norm((truncated(padded, m) - padded).reshape(-1)[:size]) / np.linalg.norm(target)
    error = fit_variables(plan, {"a": target})[1].error
    assert error < 0.8 * with_zeros


def test_where_tensors_share_virtual_weights_the_squared_error_of_weights_decides():
    """Two tensors of fixed scales 1 and 3 lie on the same cells: the value is the mean, weighted with 1 and 9."""
    n = 6
    a, b = normal(1, n, n), normal(2, n, n)
    plan = build(
        {"a": (n, n), "b": (n, n)},
        ratio=10,
        pool=pools.Matmul(n=n, m=n),
        layout="cyclic",
        scale={"a": 1.0, "b": 3.0},
        learn_scale=False,
    )
    variables, report = fit_variables(plan, {"a": a, "b": b})
    v = (1.0 * a + 3.0 * b) / (1.0 + 9.0)
    weights = generated(plan, variables)
    assert weights["a"] == pytest.approx(v, abs=1e-3)
    assert weights["b"] == pytest.approx(3 * v, abs=3e-3)
    least = np.sqrt(np.sum((v - a) ** 2) + np.sum((3 * v - b) ** 2))
    assert report.error == pytest.approx(least / np.sqrt(np.sum(a**2) + np.sum(b**2)), rel=1e-3)


def test_cyclic_copies_of_the_same_weights_are_reproduced():
    """Tensors wrap around in the middle, and several times; what they ask of a virtual weight agrees."""
    cells = np.resize(normal(6, 25), 93)
    values = {"a": cells[:18].reshape(3, 6), "b": cells[18:93].reshape(15, 5)}
    plan = fixed({"a": (3, 6), "b": (15, 5)}, pools.Matmul(n=5, m=5), layout="cyclic")
    assert plan.capacity == 25
    assert fit_variables(plan, values)[1].error < FULL


def test_cells_of_the_padding_are_left_alone():
    values = {"a": normal(7, 4, 5), "b": normal(8, 3, 4), "c": np.full((2, 2), 5.0)}
    plan = fixed({name: x.shape for name, x in values.items()}, pools.Matmul(n=5, m=5), layout="padding")
    variables, report = fit_variables(plan, values)
    weights = generated(plan, variables)
    assert report.errors["a"] < FULL
    assert weights["b"].reshape(-1)[:5] == pytest.approx(values["b"].reshape(-1)[:5], abs=1e-3)
    assert np.all(weights["b"].reshape(-1)[5:] == np.float32(0.01))
    assert report.errors["c"] == pytest.approx((5.0 - 0.01) / 5.0)
    learnable = smh.Plan(plan.pool, tuple(_learnable(t) for t in plan.tensors), layout="padding")
    assert fit_variables(learnable, values)[1].errors["c"] < FULL  # a constant is within the reach of a scale


def _learnable(tensor):
    return dataclasses.replace(tensor, learn_scale=True)


@pytest.mark.parametrize("name", POOLS)
def test_learnable_scales_are_the_best_for_the_pool(name):
    plan = build({"a": (30, 20), "b": (20, 10)}, ratio=0.3, pool=POOLS[name])
    values = {"a": 0.01 * normal(0, 30, 20), "b": 40.0 + 7.0 * normal(1, 20, 10)}
    variables, report = fit_variables(plan, values)
    for tensor, error in report.errors.items():
        for factor in (0.95, 1.05):
            moved = variables | {f"scale/{tensor}": variables[f"scale/{tensor}"] * np.float32(factor)}
            w = generated(plan, moved)[tensor]
            assert np.linalg.norm(w - values[tensor]) / np.linalg.norm(values[tensor]) > error
    # Tensors were divided by their root mean squares, so virtual weights have about unit size, not that of weights.
    # Steps of integers may make them up to twice as large or small.
    for tensor, size in (("a", 0.01), ("b", 40.0)):
        kappa = {spec.name: spec.kappa for spec in plan.tensors}[tensor]
        assert 0.4 * size < variables[f"scale/{tensor}"] * 2.0**-kappa < 2.5 * size


def test_every_tensor_counts_alike_whatever_its_scale():
    """Weights 10,000 times smaller are fitted as well as the others when their scale is learnable."""
    plan = build({"a": (20, 20), "b": (20, 20)}, ratio=0.5)
    values = {"a": normal(0, 20, 20), "b": 1e-4 * normal(1, 20, 20)}
    errors = fit_variables(plan, values)[1].errors
    assert errors["b"] == pytest.approx(errors["a"], rel=0.2)


def test_tensors_are_taken_in_the_shape_of_the_model():
    values = {"conv": normal(0, 8, 4, 3, 3), "fc": normal(1, 6, 12)}
    plan = build(
        {"conv": (3, 3, 4, 8), "fc": (12, 6)},
        ratio=3,
        pool=pools.Matmul(m=19),
        views={"conv": "h w i o -> o i h w", "fc": ("(a b) o -> o (b a)", {"a": 3})},
    )
    variables, report = fit_variables(plan, values)
    assert report.error < FULL
    weights = generated(plan, variables)
    for name, x in values.items():
        assert weights[name].shape == x.shape
        assert weights[name] == pytest.approx(x, abs=5e-3)


@pytest.mark.parametrize("second", ["matmul", "kronecker", "hash", pools.Hash(hashes=2)])
def test_a_sum_of_pools_is_better_than_its_first_part_alone(second):
    target = normal(9, 30, 30)
    alone = fixed({"a": target.shape}, pools.Matmul(m=3))
    both = fixed({"a": target.shape}, pools.Sum(pools.Matmul(m=3), second).sized(900, 1))
    assert fit_variables(both, {"a": target})[1].error < fit_variables(alone, {"a": target})[1].error - 0.01


def test_a_sum_of_two_matmul_pools_is_as_good_as_one_of_both_ranks():
    target = normal(9, 30, 30)
    plan = fixed({"a": target.shape}, pools.Sum(pools.Sum(pools.Matmul(m=3)), pools.Matmul(m=5)))
    least = np.linalg.norm(target - truncated(target, 8)) / np.linalg.norm(target)
    assert fit_variables(plan, {"a": target})[1].error <= (1 + 1e-3) * least


def test_parts_of_a_sum_are_fitted_until_none_gains_alone():
    """Greedy residuals leave the first part wrong once the second is there; more rounds mend that."""
    n = 12
    table = normal(1, 1, 30).astype(np.float32)
    plan = fixed({"a": (n, n)}, pools.Sum(pools.Matmul(m=2), pools.Hash(size=30)))
    truth = {"pool/0/left": normal(2, n, 2), "pool/0/right": normal(3, 2, n), "pool/1/table": table}
    target = generated(plan, {name: x.astype(np.float32) for name, x in truth.items()})["a"].astype(np.float64)
    i = np.arange(n * n)
    part = plan.pool.parts[1]
    (leaf,) = (leaf for leaf in plan.pool.leaves(plan.seed) if leaf.pool == part)
    design = np.zeros((n * n, 30))
    design[i, part.indices(KERNELS, i, leaf.seed)["table"][:, 0]] = part.signs(KERNELS, i, leaf.seed)[:, 0]
    rest = (target - truncated(target, 2)).reshape(-1)
    greedy = np.linalg.norm(rest - design @ np.linalg.lstsq(design, rest, rcond=None)[0]) / np.linalg.norm(target)
    assert fit_variables(plan, {"a": target})[1].error < 0.8 * greedy


def test_unused_virtual_weights_go_on_from_round_to_round():
    """Parts of a sum differ in what they fill in, so that two do better than one with the terms of both."""
    target = normal(3, 450)
    plans = [
        fixed({"a": (450,)}, pool, include=["a"])
        for pool in (pools.Kronecker(d=5, t=8), pools.Sum(*[pools.Kronecker(d=5, t=4)] * 2))
    ]
    one, two = (fit_variables(plan, {"a": target})[1].error for plan in plans)
    assert two < 0.98 * one


def test_a_tensor_of_zeros_is_reproduced_and_can_still_be_trained():
    for name, pool in POOLS.items():
        plan = build({"a": (20, 20), "z": (20, 5)}, ratio=0.5, pool=pool)
        variables, report = fit_variables(plan, {"a": normal(0, 20, 20), "z": np.zeros((20, 5))})
        assert report.errors["z"] == 0.0, name
        gradients = smh.vjp(plan, variables, {"z": normal(1, 20, 5).astype(np.float32)})
        assert any(np.any(gradient) for gradient in gradients.values()), name


def test_zeros_at_a_fixed_scale_are_zeros_of_the_pool():
    plan = build({"a": (6, 6)}, ratio=2, pool="hash", learn_scale=False, scale=1.0)
    variables, report = fit_variables(plan, {"a": np.zeros((6, 6))})
    assert report == FitReport({"a": 0.0}, 0.0, 0.0)
    assert not np.any(variables["pool/table"])


def test_scales_of_virtual_weights_that_vanish_stay_as_they_are():
    """Rounding errors in place of virtual weights tell no scale; a scale of 0 on top of 0 could never be trained."""
    plan = build({"a": (12, 10), "z": (5, 4)}, ratio=0.6, pool=pools.Sum("matmul", "hash"))
    variables, report = fit_variables(plan, {"a": np.zeros((12, 10)), "z": np.zeros((5, 4))})
    assert report == FitReport({"a": 0.0, "z": 0.0}, 0.0, 0.0)
    for tensor in plan.tensors:
        assert variables[tensor.scale_variable] == np.float32(tensor.initial_scale * 2.0**tensor.kappa)
    # One term, and two tensors that are orthogonal: the smaller one gets nothing.
    plan = build({"a": (4, 6), "b": (2, 6)}, ratio=0.4)
    variables, report = fit_variables(plan, {"a": np.ones((4, 6)), "b": np.tile([1.0, -1.0], (2, 3))})
    assert plan.pool.m == 1
    assert report.errors["b"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", ["matmul", "kronecker"])
def test_both_factors_are_equally_large(name):
    plan = build({"a": (36, 36)}, ratio=0.4, pool=name)
    variables = fit_variables(plan, {"a": normal(0, 36, 36)})[0]
    left, right = (np.linalg.norm(variables[f"pool/{side}"]) for side in ("left", "right"))
    assert 1 / 1.5 < left / right < 1.5


def test_spare_terms_cost_no_accuracy_where_virtual_weights_are_small():
    plan = fixed({"a": (12, 12)}, pools.Matmul(m=15))
    assert fit_variables(plan, {"a": 1e-8 * normal(0, 12, 12)})[1].error < FULL


def test_terms_that_the_target_does_not_need_can_still_be_trained():
    target = np.outer(np.arange(1, 13), np.ones(12))
    plan = build({"a": (12, 12)}, ratio=4, pool=pools.Matmul(m=15))
    variables, report = fit_variables(plan, {"a": target})
    assert report.error < FULL
    left, right = variables["pool/left"], variables["pool/right"]
    spare = ~np.any(left, axis=0)
    assert np.count_nonzero(spare) == 14
    assert np.all(np.any(right[spare], axis=1))


def test_relu_can_reproduce_what_has_no_negative_value():
    target = np.maximum(normal(0, 10, 10), 0.0)
    plan = build({"a": (10, 10)}, ratio=2, pool=pools.Matmul(m=10), modifiers=["relu"])
    assert fit_variables(plan, {"a": target})[1].error < FULL
    negative = fit_variables(plan, {"a": -target})[1]
    assert negative.error == pytest.approx(1.0)  # all that relu can give of it is 0


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_scales_before_relu_are_the_best_above_zero(factor):
    target = factor * np.maximum(normal(0, 10, 10), 0.0)
    for pool in ("matmul", "hash"):
        plan = build({"a": (10, 10)}, ratio=0.6, modifiers=["relu"], pool=pool)
        variables, report = fit_variables(plan, {"a": target})
        assert variables["scale/a"] > 0.0
        for change in (0.98, 1.02) if factor > 0 else ():
            w = generated(plan, variables | {"scale/a": variables["scale/a"] * np.float32(change)})["a"]
            assert np.linalg.norm(w - target) / np.linalg.norm(target) > report.error


def test_sign_reproduces_signs_and_the_report_shows_what_it_cannot_do():
    target = np.sign(normal(0, 10, 10))
    plan = build({"a": (10, 10)}, ratio=2, pool=pools.Matmul(m=10), modifiers=["sign"])
    assert fit_variables(plan, {"a": target})[1].error == 0.0
    assert fit_variables(plan, {"a": 3.0 * target})[1].error == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.longdouble, np.int8, ml_dtypes.bfloat16])
def test_any_real_dtype_is_taken_for_its_values(dtype):
    target = np.round(8 * normal(0, 9, 9)).astype(dtype)
    plan = build({"a": (9, 9)}, ratio=2, pool=pools.Matmul(m=9))
    found = fit_variables(plan, {"a": target})[0]
    expected = fit_variables(plan, {"a": target.astype(np.float32)})[0]
    for name, x in expected.items():
        assert_same_bits(found[name], x)


def test_tiny_and_large_weights_do_not_overflow():
    plan = build({"a": (9, 9), "b": (3, 3)}, ratio=4, pool=pools.Matmul(m=10))
    values = {"a": np.float32(2e8) * np.sign(normal(0, 9, 9)), "b": 1e-9 * normal(1, 3, 3)}
    assert all(error < FULL for error in fit_variables(plan, values)[1].errors.values())


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", [1e-12, 1e-22, 1e-42])
def test_weights_below_every_grid_become_zero(name, size):
    """What is as small as that at a fixed scale cannot be generated; it must not become larger."""
    plan = smh.Plan.build({"a": (9, 9)}, ratio=0.5, pool=POOLS[name], learn_scale=False, scale=1.0)
    variables, report = fit_variables(plan, {"a": size * normal(0, 9, 9)})
    assert report.error <= 1.01
    assert all(np.all(np.isfinite(x)) for x in variables.values())


GOOD = {"a": np.ones((4, 3)), "b": np.ones((3, 2))}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"aa": np.ones(3)}, smh.UnknownNameError, r"no tensor 'aa': did you mean 'a'"),
        ({"b": None}, smh.VariableError, r"'b' must be a NumPy array; got NoneType: convert"),
        ({"a": np.ones((3, 4))}, smh.VariableError, r"'a' must have shape \(4, 3\).*got \(3, 4\)"),
        ({"a": np.full((4, 3), np.nan)}, smh.VariableError, r"finite in float32; got 12 of 12 that are not"),
        ({"a": np.asarray([[np.inf] + [0.0] * 2] * 4)}, smh.VariableError, r"finite in float32; got 4 of 12"),
        ({"a": np.full((4, 3), 1e39)}, smh.VariableError, r"finite in float32; got 12 of 12"),
        ({"a": np.ones((4, 3), dtype=complex)}, smh.VariableError, r"real numbers.*got dtype complex128"),
        ({"a": np.ones((4, 3), dtype=bool)}, smh.VariableError, r"real numbers.*got dtype bool"),
        ({"a": np.full((4, 3), "x")}, smh.VariableError, r"real numbers.*got dtype <U1"),
        ({"a": np.full((4, 3), None)}, smh.VariableError, r"real numbers.*got dtype object"),
    ],
)
def test_values_that_cannot_be_fitted_are_refused_with_the_reason(change, error, message):
    plan = build({"a": (4, 3), "b": (3, 2)}, ratio=1)
    fit_variables(plan, GOOD)
    with pytest.raises(error, match=message):
        fit_variables(plan, GOOD | change)


def test_a_missing_tensor_is_refused():
    plan = build({"a": (4, 3), "b": (3, 2)}, ratio=1)
    with pytest.raises(smh.VariableError, match=r"values of 'b' are missing: the plan needs them, shape \(3, 2\)"):
        fit_variables(plan, {"a": GOOD["a"]})


def test_values_out_of_reach_of_a_fixed_scale_are_refused():
    plan = build({"a": (4, 3)}, ratio=2, scale=1e-9, learn_scale=False)
    fit_variables(plan, {"a": np.ones((4, 3))})
    with pytest.raises(smh.VariableError, match=r"'a' must be below 2\*\*40 times its scale 1e-09; got .*1e\+04"):
        fit_variables(plan, {"a": np.full((4, 3), 1e4)})


@pytest.mark.parametrize("pool", [pools.Product("matmul", "hash"), pools.Sum("hash", pools.Product("hash", "hash"))])
def test_products_of_pools_are_refused(pool):
    plan = build({"a": (9, 9)}, ratio=1, pool=pool)
    with pytest.raises(smh.PlanError, match=r"matmul, kronecker, hash, and sums of these; got a product: Product\("):
        fit_variables(plan, {"a": np.ones((9, 9))})


def test_scipy_is_asked_for_only_when_variables_are_fitted():
    code = """
import sys
sys.modules["scipy"] = None
import numpy as np, smh as smh
from smh.models.fit import fit_variables
plan = smh.Plan.build({"a": (4, 3)}, ratio=1)
try:
    fit_variables(plan, {"a": np.ones((4, 3))})
except smh.SmhError as error:
    assert str(error) == 'fitting needs SciPy: pip install "structured-multi-hashing[fit]"', error
else:
    raise SystemExit("nothing was raised")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_reads_as_a_paragraph_and_as_a_table():
    report = FitReport({"a": 0.5, "b": 0.125, "c": 1e-7, "d": 0.25}, 0.3, 0.29)
    assert str(report) == (
        "The weights of 4 tensors are generated with a relative error of 0.3 (0.29 before rounding to integers); "
        "worst: 'a' 0.5, 'd' 0.25, 'b' 0.125."
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report)
    text = capture.get()
    assert all(found in text for found in ("relative error", "1e-07", "worst"))


def test_progress_goes_to_stderr_and_changes_nothing(capsys):
    plan = build({"a": (9, 9)}, ratio=1)
    quiet = fit_variables(plan, {"a": normal(0, 9, 9)})[0]
    nothing = capsys.readouterr()
    assert (nothing.out, nothing.err) == ("", "")
    loud = fit_variables(plan, {"a": normal(0, 9, 9)}, progress=True)[0]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(
        step in shown.err for step in ("reading tensors", "fitting the pool", "fitting scales", "measuring errors")
    )
    for name, x in quiet.items():
        assert_same_bits(loud[name], x)


def power_law(n, decay):
    """Return a matrix with the spectrum that trained networks have, about."""
    u, v = (np.linalg.qr(normal(k, n, n))[0] for k in (0, 1))
    return u * np.arange(1.0, n + 1.0) ** -decay @ v


@pytest.mark.parametrize("options", [{}, {"learn_scale": False, "scale": 0.007}])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_rounding_costs_little_of_the_accuracy(decay, options):
    """Against factors of the singular value decomposition, each rounded by itself; 8 bits lose next to nothing."""
    target = power_law(100, decay)
    for bits, share, most in ((8, 0.9, 1.01), (4, 0.3, 1.4), (3, 0.3, 2.2)):
        plan = smh.Plan.build({"a": (100, 100)}, ratio=0.3, bits=bits, **options)
        report = fit_variables(plan, {"a": target})[1]
        m, (u, s, vt) = plan.pool.m, np.linalg.svd(target)
        left, right = (u[:, :m] * np.sqrt(s[:m]), np.sqrt(s[:m])[:, None] * vt[:m])
        once = generate.on_grid(
            KERNELS,
            fixed({"a": (100, 100)}, pools.Matmul(m=m, bits=bits, gain=0)),
            {"pool/left": left.astype(np.float32), "pool/right": right.astype(np.float32)},
        )
        naive = relative(once["pool/left"].astype(np.float64) @ once["pool/right"], target)
        assert report.error_unrounded <= report.error <= most * report.error_unrounded
        assert report.error - report.error_unrounded <= share * (naive - report.error_unrounded)


@pytest.mark.parametrize("pool", ["matmul", "kronecker", "hash"])
def test_few_bits_are_used_well(pool):
    """With two bits an integer is -1, 0 or 1; a grid that held the largest value would leave hardly any but 0."""
    plan = smh.Plan.build({"a": (36, 36)}, ratio=0.5, bits=2, pool=pool)
    variables = fit_variables(plan, {"a": normal(0, 36, 36)})[0]
    for name, one in generate.put_on_grids(KERNELS, plan, variables).items():
        assert set(np.unique(one.integers)) == {-1.0, 0.0, 1.0}, name
        assert 0.3 < np.mean(one.integers != 0.0) < 0.9, name


@pytest.mark.parametrize("learn_scale", [True, False])
def test_fixed_exponents_fit_whatever_the_size_of_the_values(learn_scale):
    """The product of both units is what counts: one factor gets larger where the other has room for little."""
    for exponents in ((-3, 5), (4, 4), (0, -1)):
        pool = pools.Matmul(m=20, exponents=exponents)
        size = 2.0 ** sum(exponents)
        plan = build({"a": (20, 20)}, ratio=3, pool=pool, learn_scale=learn_scale, scale=1.0)
        assert fit_variables(plan, {"a": size * normal(0, 20, 20)})[1].error < FULL


def test_integers_make_up_for_the_errors_of_those_before():
    """The rounding in panels and blocks is that of the formula, row by row."""
    terms, n, top = 70, 300, 7.0
    x = normal(0, terms, n).astype(np.float32)
    root = np.linalg.cholesky(np.cov(normal(1, terms, 2 * terms))).T
    expected = np.zeros((terms, n))
    for k in reversed(range(terms)):
        errors = x[k + 1 :] / 0.4 - expected[k + 1 :]
        expected[k] = np.clip(np.rint(x[k] / 0.4 + root[k, k + 1 :] @ errors / root[k, k]), -top, top)
    steps = rounding.Steps(pools.Matmul(n=n, m=terms, bits=4, gain=0), free=True)
    assert steps.top == top
    found = rounding._nearest_plane(x, root, 0.4, steps, range(0, n, rounding._COLUMNS))
    assert np.mean(found != expected) < 1e-3  # ties may fall either way
    rounded = np.clip(np.rint(x / 0.4), -top, top)
    assert np.linalg.norm(root @ (found * 0.4 - x)) < 0.9 * np.linalg.norm(root @ (rounded * 0.4 - x))


def test_most_of_a_model_lost_is_a_warning():
    plan = smh.Plan.build({"a": (40, 40)}, ratio=0.1)
    with pytest.warns(UserWarning, match="most of the model is lost, so it must be trained") as found:
        fit_variables(plan, {"a": normal(0, 40, 40)})
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((1200, 1200), "matmul"),
        ((1200, 1100), "kronecker"),
        ((1200, 1200), "hash"),
        ((1200, 1200), pools.Hash(hashes=2)),
        ((1200, 1200), pools.Hash(hashes=4)),
        ((1200, 1100), pools.Sum("matmul", "hash")),
        ((1200, 1200), pools.Sum("matmul", "kronecker", pools.Hash(hashes=2))),
        ((1200, 1200), pools.Sum(*["hash"] * 6)),
    ],
    ids=["matmul", "kronecker", "hash", "2 hashes", "4 hashes", "2 parts", "3 parts", "6 parts"],
)
def test_memory_stays_within_four_times_the_weights(shape, pool, monkeypatch):
    """Whether all virtual weights are used or not, whatever the number of hash functions and parts."""
    monkeypatch.setattr(fit_pool, "_ROUNDS", 2)  # more would take no more
    monkeypatch.setattr(fit_pool, "_STEPS", 4)
    plan = smh.Plan.build({"a": shape}, ratio=0.5, pool=pool)
    values = {"a": normal(0, *shape).astype(np.float32)}
    fit_variables(smh.Plan.build({"a": (4, 4)}, ratio=1), {"a": normal(0, 4, 4)})  # imports
    tracemalloc.start()
    fit_variables(plan, values)
    peak = tracemalloc.get_traced_memory()[1] / values["a"].nbytes
    tracemalloc.stop()
    assert peak <= 4.0, f"{peak:.2f} times the weights"


@pytest.mark.parametrize("request_", ["matmul", "kronecker", pools.Hash(hashes=2)])
def test_every_phase_tells_how_far_it_is(request_):
    plan = fixed({"a": (625, 600)}, named(request_).sized(375_000, Fraction(1, 10)))
    (leaf,) = plan.pool.leaves(plan.seed)
    told = {}
    wanted = np.zeros(leaf.pool.capacity, dtype=np.float32)
    wanted[:375_000] = normal(0, 375_000)

    def tick(what, share):
        told.setdefault(what, []).append(share)

    fit_leaf(leaf, wanted, np.arange(leaf.pool.capacity) < 375_000, False, True, tick)
    for what, shares in told.items():
        assert shares == sorted(shares), what
        assert 0.0 <= shares[0] <= shares[-1] <= 1.0, what
        assert len(set(shares)) > 1, what
    phases = {"products of columns", "rounding"} if leaf.pool.kind != "hash" else {"hash indices", "least squares"}
    assert phases <= set(told)


def test_an_interrupt_ends_a_fit():
    """The signal comes from outside: a timer of the process itself would wait for the global lock, too.
    Nothing is left running that would keep the process from ending, or write to stdout meanwhile.
    """
    code = """
import signal
import numpy as np
import smh
from smh.models.fit import fit_variables
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
plan = smh.Plan.build({"a": (1500, 1500)}, ratio=0.5)
target = {"a": np.random.default_rng(0).standard_normal((1500, 1500))}
try:
    while True:
        print("started", flush=True)
        fit_variables(plan, target)
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert set(rest.splitlines()) <= {"started", "interrupted"}
    assert rest.endswith("interrupted\n")
    assert process.returncode in (0, -signal.SIGINT)  # the latter if it was busy importing


@pytest.mark.parametrize("n", [33, 200, 400])
def test_eigenvectors_of_multiple_eigenvalues_are_orthonormal(n):
    """LAPACK's fastest algorithm may give these up."""
    rotation = np.linalg.qr(normal(0, n, n))[0]
    values = np.repeat([3.0, 2.0, 1.0], -(-n // 3))[:n]
    matrix = (rotation * values) @ rotation.T
    found = largest_eigenvectors(np.asfortranarray(matrix), n, lambda *_: None, "")
    assert found @ found.T == pytest.approx(np.eye(n), abs=1e-11)
    assert matrix @ found.T == pytest.approx(found.T * values, abs=1e-11)


def test_eigenvectors_are_computed_in_steps_that_an_interrupt_can_end():
    x = normal(0, 300, 300)
    shares = []
    threads = threading.active_count()
    largest_eigenvectors(np.asfortranarray(x @ x.T), 300, lambda what, share: shares.append((share, what)), "some")
    assert len(shares) == (300 - 1) // 32 + -(-300 // 128)
    assert shares == sorted(shares)
    assert {what for _, what in shares} == {"some"}
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (2, 1), (7, 7), (31, 9), (32, 32), (33, 5), (64, 2), (65, 65), (150, 40), (300, 200)]
)
def test_eigenvectors_are_those_of_numpy(n, count):
    x = normal(n, n, n)
    gram = x @ x.T
    found = largest_eigenvectors(np.asfortranarray(np.triu(gram)), count, lambda *_: None, "")
    expected = np.linalg.eigh(gram)[1].T[::-1][:count]
    assert found.shape == (count, n)
    assert np.abs(np.sum(found * expected, axis=1)) == pytest.approx(1.0, abs=1e-9)  # up to their signs
