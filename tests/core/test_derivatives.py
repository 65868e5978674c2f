"""Gradients, exact and smooth, against finite differences of an independent formula in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings

from conformance import oracle as oracle
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from tests.core.cases import plans, seeds, values

EXACT, SMOOTH = Kernels(np), Kernels(np, smooth=True)
POOLS = {
    "matmul": pools.Matmul(n=7, m=3),
    "kronecker": pools.Kronecker(d=3, t=2),
    "hash": pools.Hash(size=20, hashes=2, capacity=49),
    "sum": pools.Sum(pools.Matmul(n=7, m=2), pools.Product(pools.Hash(size=9, capacity=49), pools.Kronecker(d=3, t=2))),
    "product": pools.Product(pools.Matmul(n=7, m=2), pools.Hash(size=9, capacity=49), pools.Hash(size=30, capacity=49)),
}


def plan_of(pool, layout):
    """Return a plan of two tensors that share a pool, of the most bits, so that grids hardly show."""
    sizes = (30, 19) if layout == "basic" else (30, 40)
    return Plan.build(
        {"a": (sizes[0], 1), "b": (1, sizes[1])},
        ratio=10**9,
        pool=POOLS[pool],
        layout=layout,
        scale={"a": 0.07, "b": 0.03},
        modifiers={"a": (), "b": ("relu",)},
        views={"a": "i o -> o i"},
        bits=16,
        optimizer="adam",
    )


def formula(plan, variables):
    """Return weights in float64, without grids, floors or roundings, from the indices and signs of the oracle."""
    described, i = plan.to_dict(), np.arange(plan.capacity)
    reads, signs = oracle.indices(described, i), oracle.signs(described, i)

    def virtual(pool, path):
        parts = [virtual(part, f"{path}/{p}") for p, part in enumerate(pool.get("parts", ()))]
        if parts:
            return sum(parts) if pool["kind"] == "sum" else math.prod(parts)
        names = [f"{path}/table"] if pool["kind"] == "hash" else [f"{path}/left", f"{path}/right"]
        terms = math.prod(variables[name].reshape(-1)[reads[name]] * signs.get(name, 1) for name in names)
        return terms.sum(axis=1) * 2.0 ** (len(names) * pool["gain"])

    v, weights = virtual(described["pool"], "pool"), {}
    for tensor in plan.tensors:
        cells = np.arange(tensor.offset, tensor.stop)
        shown = v[cells % plan.capacity]
        if plan.layout == "padding":
            shown = np.where(cells < plan.capacity, shown, 0.01)
        w = shown * variables[tensor.scale_variable] * 2.0**-tensor.kappa
        for _ in tensor.modifiers:  # only relu
            w = np.maximum(w, 0)
        weights[tensor.name] = w.reshape(tensor.viewed_shape)  # views of columns and rows leave the order as it is
    return weights


@pytest.fixture(params=[(pool, layout) for pool in POOLS for layout in ("basic", "cyclic", "padding")], ids=str)
def case(request):
    """Return a plan, variables on their grids, the same in float64, cotangents, and the loss of variables."""
    plan = plan_of(*request.param)
    assert all(leaf.pool.gain for leaf in plan.pool.leaves(0)), "factors of gains are to be seen"
    variables = generate.on_grid(EXACT, plan, initial_variables(plan))
    rng = np.random.default_rng(0)
    cotangents = {tensor.name: rng.standard_normal(tensor.viewed_shape).astype(np.float32) for tensor in plan.tensors}

    def loss(variables):
        return sum(float(np.sum(w * cotangents[name])) for name, w in formula(plan, variables).items())

    return plan, variables, {name: np.float64(x) for name, x in variables.items()}, cotangents, loss


def test_weights_and_gradients_agree_with_the_formula(case):
    plan, variables, wide, cotangents, loss = case
    expected = formula(plan, wide)
    gradients = [generate.vjp(kernels, plan, variables, cotangents) for kernels in (EXACT, SMOOTH)]
    for kernels in (EXACT, SMOOTH):
        for name, w in generate.materialize(kernels, plan, variables).items():
            assert w.dtype == np.float32
            assert np.max(np.abs(w - expected[name])) < 1e-6 * np.max(np.abs(expected[name])), name
    for name, x in wide.items():
        step, numeric = 1e-6 * float(np.max(np.abs(x))), np.zeros_like(x)
        for at in np.ndindex(x.shape):
            move = np.zeros_like(x)
            move[at] = step
            numeric[at] = (loss({**wide, name: x + move}) - loss({**wide, name: x - move})) / (2 * step)
        for found in gradients:
            assert found[name].dtype == np.float32
            assert np.max(np.abs(numeric - found[name])) < 2e-5 * np.max(np.abs(numeric)), name


def test_smooth_gradients_can_be_differentiated(case):
    """Compare second derivatives that PyTorch takes of ``vjp`` with differences of differences of the loss."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import array_api_compat.torch as xp

    class TorchKernels(Kernels):
        word_dtype = torch.int64  # uint32 has no arithmetic

    plan, variables, wide, cotangents, loss = case
    rng = np.random.default_rng(1)
    along = {name: rng.standard_normal(x.shape) * np.max(np.abs(x)) for name, x in wide.items()}
    given = {name: torch.from_numpy(np.array(x)).requires_grad_() for name, x in variables.items()}
    gradients = generate.vjp(
        TorchKernels(xp, smooth=True), plan, given, {name: torch.from_numpy(g) for name, g in cotangents.items()}
    )
    first = sum((gradients[name] * torch.tensor(along[name], dtype=torch.float32)).sum() for name in gradients)
    second = dict(zip(given, torch.autograd.grad(first, list(given.values())), strict=True))

    def slope(variables, h=1e-4):
        ends = [loss({name: x + sign * h * along[name] for name, x in variables.items()}) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    for name, x in wide.items():
        step, numeric, checked = 1e-4 * float(np.max(np.abs(x))), [], list(np.ndindex(x.shape))[:5]
        for at in checked:
            move = np.zeros_like(x)
            move[at] = step
            numeric.append((slope({**wide, name: x + move}) - slope({**wide, name: x - move})) / (2 * step))
        found = second[name].numpy()
        for at, expected in zip(checked, numeric, strict=True):
            assert found[at] == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.max(np.abs(found)))), name


@settings(max_examples=60, derandomize=True)
@given(plans(), seeds)
def test_smooth_weights_and_gradients_are_close_to_exact_ones(plan, seed):
    """At values on the grid.

    The share of the largest element allows for float32 sums, and cotangents of 22 bits, that cancel; scale gradients
    are multiples of a unit that belongs to the bound of all virtual weights (specification, section 3.5). Examples are
    the same in every run, because there are plans for which no such bound holds: those in which a sum cancels so that a
    relu passes it with one kind of kernels only.
    """
    with np.errstate(all="ignore"):
        variables, cotangents = values(plan, 2 * (seed // 2) + 1, "normal")
        variables = generate.on_grid(EXACT, plan, variables)
        bounds = oracle.bounds(plan.to_dict(), variables)
        units = {
            tensor.scale_variable: tensor.size**2 * 2.0 ** (bounds[tensor.name] - 50) * np.max(np.abs(g))
            for tensor in plan.tensors
            if (g := cotangents.get(tensor.name)) is not None
        }
        for call in (
            lambda kernels: generate.materialize(kernels, plan, variables),
            lambda kernels: generate.vjp(kernels, plan, variables, cotangents),
        ):
            exact, smooth = call(EXACT), call(SMOOTH)
            for name, x in exact.items():
                if np.all(np.isfinite(x)) and np.all(np.isfinite(smooth[name])):
                    allowed = 1e-2 * float(np.max(np.abs(x))) + units.get(name, 0.0) + 1e-30
                    assert np.max(np.abs(x.astype(np.float64) - smooth[name])) <= allowed, name


def test_second_derivatives_pass_through_zeros():
    """A row of zeros makes its weights 0: half the sum of squares has the second derivative ``right**2`` there."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import array_api_compat.torch as xp

    class TorchKernels(Kernels):
        word_dtype = torch.int64

    plan = Plan.build({"w": (3, 3)}, ratio=9, pool=pools.Matmul(n=3, m=1, gain=0), scale=1.0, learn_scale=False)
    left = torch.tensor([[0.0], [0.5], [-1.0]], requires_grad=True)
    given = {"pool/left": left, "pool/right": torch.tensor([[0.25, -0.5, 0.75]], requires_grad=True)}
    smooth = TorchKernels(xp, smooth=True)
    weights = generate.materialize(smooth, plan, given)
    gradient = generate.vjp(smooth, plan, given, weights)["pool/left"]
    (second,) = torch.autograd.grad(gradient.sum(), [left])
    np.testing.assert_allclose(second.numpy(), np.full((3, 1), 0.25**2 + 0.5**2 + 0.75**2), rtol=1e-6)
