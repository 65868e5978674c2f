"""Tensors of PyTorch: the bits of the specification in every way of running it, and derivatives."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smh
from conformance import oracle as oracle
from conformance.bits import assert_same_bits
from conformance.cases import golden_cases
from smh import pools
from smh.core import generate
from smh.core.kernels import Kernels
from tests.core import cases

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from smh.backends import torch as smh_torch  # noqa: E402
from smh.backends.torch import backend  # noqa: E402
from smh.backends.torch.kernels import TorchKernels  # noqa: E402

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]
QUICK = ("eager", "inference", "autocast", "medium", "tf32", "threads", "no-float64", "vmap", "checkpoint")
"""Modes that compile nothing."""


def tensors(arrays, device="cpu"):
    return {name: backend.asarray(x, device) for name, x in arrays.items()}


def assert_all_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, x in actual.items():
        assert_same_bits(backend.to_numpy(x), backend.to_numpy(expected[name]), name)


def small(pool="matmul", **kwargs):
    return smh.Plan.build(
        {"a": (5, 4), "b": (3, 2)},
        ratio=10,
        pool=pool,
        views={"a": "i o -> o i"},
        modifiers={"a": (), "b": ("relu",)},
        include=lambda name: True,
        **kwargs,
    )


POOLS = {
    "matmul": pools.Matmul(n=6, m=3),
    "combined": pools.Sum(
        pools.Matmul(n=6, m=2),
        pools.Product(pools.Hash(size=9, hashes=2, capacity=30), pools.Kronecker(d=3, t=2)),
    ),
}


@pytest.fixture(params=POOLS)
def plan(request):
    return small(POOLS[request.param])


class Case:
    """A plan, its variables and cotangents, and what the oracle makes of them."""

    def __init__(self, plan):
        variables, cotangents = smh.initialize(plan), cases.values(plan, 1, "normal")[1]
        described = json.loads(plan.to_json())
        self.plan = plan
        self.variables, self.cotangents = tensors(variables), tensors(cotangents)
        self.weights = oracle.weights(described, variables)
        found = oracle.gradients(described, variables, cotangents)
        self.gradients = {name: found[name] for name in plan.variable_shapes}

    def loss(self, variables):
        weights = smh_torch.materialize(self.plan, variables)
        return sum((weights[name] * g).sum() for name, g in self.cotangents.items())


@pytest.fixture
def case(plan):
    return Case(plan)


@settings(max_examples=12)
@given(cases.plans(), cases.seeds, st.sampled_from(cases.KINDS))
def test_drawn_plans_have_the_bits_of_the_oracle_in_every_mode(plan, seed, kind):
    variables, cotangents = cases.values(plan, seed, kind)
    described = json.loads(plan.to_json())
    with np.errstate(all="ignore"):
        expected, gradients = oracle.weights(described, variables), oracle.gradients(described, variables, cotangents)
    mine, given_cotangents = tensors(variables), tensors(cotangents)
    for name in QUICK:
        moded = backend.in_mode(name)
        assert_all_same_bits(moded.materialize(plan, mine), expected)
        found = moded.vjp(plan, mine, given_cotangents)
        assert_all_same_bits(found, {variable: gradients[variable] for variable in plan.variable_shapes})
    last = plan.tensors[-1].name
    assert_all_same_bits(smh_torch.materialize(plan, mine, [last]), {last: expected[last]})
    assert_all_same_bits(mine, variables)  # no argument is changed
    assert not any(x.requires_grad for x in mine.values())
    for variable, i in oracle.indices(described, np.arange(plan.capacity)).items():
        assert np.array_equal(backend.to_numpy(backend.indices(plan, 0, plan.capacity)[variable]), i)


@pytest.mark.parametrize("device", DEVICES)
def test_golden_vectors(device):
    for case in golden_cases():
        variables, cotangents = tensors(case.variables, device), tensors(case.cotangents, device)
        weights = smh_torch.materialize(case.plan, variables)
        assert all(w.device.type == device for w in weights.values())
        assert_all_same_bits(weights, case.weights)
        gradients = {name: case.gradients[name] for name in case.plan.variable_shapes}
        assert_all_same_bits(smh_torch.vjp(case.plan, variables, cotangents), gradients)
        assert smh_torch.digest(case.plan, variables) == case.digest


def test_modes_change_what_they_say():
    """Each context is there while a function runs, and gone afterwards."""
    seen = {}
    for mode in backend.modes():
        for name, ask in {
            "autocast": lambda: torch.is_autocast_enabled("cpu"),
            "medium": lambda: torch.get_float32_matmul_precision() == "medium",
            "tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        }.items():
            if mode.name == name:
                seen[name] = mode.around(ask)(), ask()
    assert seen == dict.fromkeys(("autocast", "medium", "tf32"), (True, False))


@pytest.mark.parametrize("bits", [2, 9, 10, 16])
def test_long_sums_in_low_precision(bits):
    """More terms than float32 adds exactly, and integers that bfloat16 does not hold, take float64."""
    plan = smh.Plan.build({"a": (6, 6)}, ratio=10**9, pool=pools.Matmul(n=6, m=700, gain=0), bits=bits)
    case = Case(plan)
    for name in ("eager", "autocast", "medium"):
        moded = backend.in_mode(name)
        assert_all_same_bits(moded.materialize(plan, case.variables), case.weights)
        assert_all_same_bits(moded.vjp(plan, case.variables, case.cotangents), case.gradients)


def test_segments_are_added_like_the_default_does():
    rng = np.random.default_rng(0)
    x, segments = rng.integers(-(2**40), 2**40, 50).astype(np.float64), rng.integers(0, 9, 50)
    mine = TorchKernels().segment_sum(torch.from_numpy(x), torch.from_numpy(segments), 11)
    assert np.array_equal(mine.numpy(), Kernels(np).segment_sum(x, segments, 11))


def test_gradients_of_unused_weights_are_not_needed(case):
    leaves = {name: x.clone().requires_grad_() for name, x in case.variables.items()}
    (smh_torch.materialize(case.plan, leaves)["b"] * case.cotangents["b"]).sum().backward()
    expected = smh_torch.vjp(case.plan, case.variables, {"b": case.cotangents["b"]})
    assert_all_same_bits({name: x.grad for name, x in leaves.items()}, expected)
    assert smh_torch.materialize(case.plan, case.variables, []) == {}
    assert all(not g.any() for g in smh_torch.vjp(case.plan, case.variables, {}).values())


def test_func_grad(case):
    assert_all_same_bits(torch.func.grad(case.loss)(case.variables), case.gradients)


def test_vmap(case):
    batch = {name: torch.stack([x, 2 * x, -x], dim=-1) for name, x in case.variables.items()}
    dims = dict.fromkeys(batch, -1)
    weights = torch.func.vmap(lambda v: smh_torch.materialize(case.plan, v), (dims,))(batch)
    gradients = torch.func.vmap(torch.func.grad(case.loss), (dims,))(batch)
    for i in range(3):
        one = {name: x[..., i] for name, x in batch.items()}
        assert_all_same_bits({n: w[i] for n, w in weights.items()}, smh_torch.materialize(case.plan, one))
        expected = smh_torch.vjp(case.plan, one, case.cotangents)
        assert_all_same_bits({n: g[i] for n, g in gradients.items()}, expected)


def test_vmap_over_some_arguments(case):
    name, x = next(iter(case.variables.items()))
    weights = torch.func.vmap(lambda x: smh_torch.materialize(case.plan, {**case.variables, name: x}))(x[None])
    assert_all_same_bits({n: w[0] for n, w in weights.items()}, case.weights)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(case, reentrant):
    leaves = {name: x.clone().requires_grad_() for name, x in case.variables.items()}

    def loss(*flat):
        return case.loss(dict(zip(leaves, flat, strict=True)))

    checkpoint(loss, *leaves.values(), use_reentrant=reentrant).backward()
    assert_all_same_bits({name: x.grad for name, x in leaves.items()}, case.gradients)


def test_functional_call():
    views = {"0.weight": "i o -> o i", "2.weight": "i o -> o i"}
    plan = smh.Plan.build({"0.weight": (4, 6), "2.weight": (6, 3)}, ratio=1, views=views)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    variables = tensors(smh.initialize(plan))
    x = torch.ones(2, 4)

    def loss(variables):
        return torch.func.functional_call(model, smh_torch.materialize(plan, variables), (x,)).square().sum()

    gradients = torch.func.grad(loss)(variables)
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}
    loss(leaves).backward()
    assert_all_same_bits(gradients, {name: x.grad for name, x in leaves.items()})
    assert all(g.abs().max() > 0 for g in gradients.values())


def virtual_weights(pool, variables, seed, path="pool/"):
    """Return virtual weights by the plain formulas, without grids, in the type of the variables."""
    if isinstance(pool, pools.Sum | pools.Product):
        parts = [
            virtual_weights(part, variables, part_seed, part_path)[: pool.capacity]
            for part, part_seed, part_path in pool._placed(seed, path)
        ]
        return torch.stack(parts).sum(0) if isinstance(pool, pools.Sum) else torch.stack(parts).prod(0)
    kernels, i = TorchKernels(), torch.arange(pool.capacity)
    terms = [variables[path + name].flatten()[k] for name, k in pool.indices(kernels, i, seed).items()]
    if isinstance(pool, pools.Hash):
        terms.append(pool.signs(kernels, i, seed))
    return torch.stack(terms).prod(0).sum(1) * pool.factor


def test_second_derivatives_agree_with_differences_in_float64(plan):
    """Those of the formulas without rounding, at the values on the grid."""
    variables = tensors(smh.initialize(plan))
    rng = np.random.default_rng(0)
    direction = {name: torch.from_numpy(rng.standard_normal(x.shape)) for name, x in variables.items()}

    def cubes(variables):
        return sum(w.pow(3).sum() for w in smh_torch.materialize(plan, variables).values())

    def along(variables):
        found = torch.func.grad(cubes)(variables)
        return sum((g * direction[name].float()).sum() for name, g in found.items())

    second = torch.func.grad(along)(variables)
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}
    first = torch.autograd.grad(cubes(leaves), list(leaves.values()), create_graph=True)
    product = sum((g * direction[name].float()).sum() for name, g in zip(leaves, first, strict=True))
    again = torch.autograd.grad(product, list(leaves.values()), create_graph=True)

    def smooth(variables):
        v, total = virtual_weights(plan.pool, variables, plan.seed), 0.0
        for tensor in plan.tensors:
            w = v[tensor.offset : tensor.stop] * variables[tensor.scale_variable] * 2.0**-tensor.kappa
            total += (torch.relu(w) if tensor.modifiers else w).pow(3).sum()
        return total

    on_grid = {name: x.double() for name, x in generate.on_grid(TorchKernels(), plan, variables).items()}
    step = 2.0**-20
    up = torch.func.grad(smooth)({name: x + step * direction[name] for name, x in on_grid.items()})
    down = torch.func.grad(smooth)({name: x - step * direction[name] for name, x in on_grid.items()})
    assert any(not torch.equal(x.double(), on_grid[name]) for name, x in variables.items())
    for name, x in zip(leaves, again, strict=True):
        torch.testing.assert_close(x.detach(), second[name])
        numeric = (up[name] - down[name]) / (2 * step)
        assert x.detach().abs().max() > 0
        assert float((numeric - x.detach()).abs().max()) < 1e-4 * float(numeric.abs().max()), name
    third = torch.autograd.grad(sum(x.sum() for x in again), list(leaves.values()))
    assert all(torch.isfinite(x).all() for x in third)
    assert all(x.any() for x in third)


def test_jacobians(plan):
    """A whole second derivative: vmap over gradients of gradients."""
    variables = tensors(smh.initialize(plan))

    def loss(scale):
        weights = smh_torch.materialize(plan, {**variables, "scale/a": scale})
        return weights["a"].pow(2).sum()

    second = torch.func.jacrev(torch.func.jacrev(loss))(variables["scale/a"])
    torch.testing.assert_close(second, 2 * loss(variables["scale/a"]) / variables["scale/a"] ** 2)


@pytest.fixture
def warnings_of_compilation():
    """Warnings are errors, but for those that PyTorch gives about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.compile_fx
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autograd.function.Function.* should not be instantiated")
        yield
    torch._dynamo.reset()


def compiled_case(case, compiler):
    names = list(case.variables)

    def weights(*flat):
        return smh_torch.materialize(case.plan, dict(zip(names, flat, strict=True)))

    compiled = torch.compile(weights, fullgraph=True, backend=compiler)
    leaves = [x.clone().requires_grad_() for x in case.variables.values()]
    built = compiled(*leaves)
    assert_all_same_bits(built, case.weights)
    gradients = torch.autograd.grad(list(built.values()), leaves, list(case.cotangents.values()))
    assert_all_same_bits(dict(zip(names, gradients, strict=True)), case.gradients)
    return compiled


def test_traced_as_one_graph(case, warnings_of_compilation):
    compiled = compiled_case(case, "aot_eager")
    with torch.no_grad():
        assert_all_same_bits(compiled(*case.variables.values()), case.weights)


def test_compiled(warnings_of_compilation):
    """Slow, so once, with a plan of few operations, and with float32 products of low precision."""
    plan = smh.Plan.build({"a": (5, 4)}, ratio=10, pool=POOLS["matmul"], views={"a": "i o -> o i"})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        compiled_case(Case(plan), "inductor")
    finally:
        torch.set_float32_matmul_precision(before)


def test_compiled_sums_of_pools_are_rounded_between(warnings_of_compilation):
    """A compiler must not drop the roundings to float32 between a part and the sum."""
    pool = pools.Sum(*(pools.Hash(size=40, hashes=2, capacity=500, gain=0) for _ in range(2)))
    case = Case(smh.Plan.build({"a": (20, 25)}, ratio=10, pool=pool))
    built = torch.compile(lambda v: smh_torch.materialize(case.plan, v), fullgraph=True)(case.variables)
    assert_all_same_bits(built, case.weights)


def test_compiled_transforms_are_refused_rather_than_wrong(case, warnings_of_compilation):
    with pytest.raises(Exception, match="maybe_current_level|torch.func transforms"):
        torch.compile(torch.func.grad(case.loss), backend="aot_eager", fullgraph=True)(case.variables)


def test_arrays(tmp_path):
    x = np.asarray([1.5, -0.0, np.nan, 1e-45], dtype=np.float32)
    y = backend.asarray(x, "cpu")
    z = backend.asarray(y)
    y[0] = 2
    assert x[0] == 1.5 == float(z[0])
    assert_same_bits(backend.to_numpy(z), x)
    assert backend.asarray(np.float32(3)).shape == ()
    assert backend.devices()[0] == "cpu"
    with pytest.raises(smh.BackendError, match="has the devices .'cpu'"):
        backend.asarray(x, "nowhere")


def test_files_of_plans_and_variables(tmp_path):
    plan = small()
    variables = smh_torch.initialize(plan)
    digest = smh_torch.save(tmp_path / "model", plan, variables, {"bias": torch.ones(3)})
    loaded = smh_torch.load(tmp_path / "model")
    assert loaded.digest == digest == smh_torch.digest(plan, loaded.variables)
    assert loaded.variables["scale/a"].shape == ()
    assert torch.equal(loaded.dense["bias"], torch.ones(3))
    assert not torch.equal(loaded.variables["pool/left"], variables["pool/left"])
    assert smh_torch.save(tmp_path / "training", plan, variables, training=True) == digest
    assert_all_same_bits(smh_torch.load(tmp_path / "training").variables, variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/left": v["pool/left"].double()}, "float32; got torch.float64"),
        (lambda v: {**v, "pool/left": v["pool/left"].T}, "must have shape"),
        (lambda v: {**v, "pool/left": v["pool/left"].numpy()}, "torch.Tensor, float32; got ndarray"),
        (lambda v: {**v, "pool/left": v["pool/left"].to_sparse()}, "a dense tensor.*; got torch.sparse_coo"),
        (lambda v: {**v, "pool/right": v["pool/right"].to("meta")}, "'pool/right' must be on cpu, .*; got meta"),
        (lambda v: {**v, "scale/a": v["scale/a"].to("meta")}, "'scale/a' must be on cpu, .*; got meta"),
    ],
)
def test_variables_that_do_not_fit_are_refused(change, message):
    plan = small()
    variables = change(smh_torch.initialize(plan))
    for call in (smh_torch.materialize, lambda *args: smh_torch.vjp(*args, {})):
        with pytest.raises(smh.VariableError, match=message):
            call(plan, variables)


def test_names_and_cotangents_that_do_not_fit_are_refused():
    plan = small()
    variables = smh_torch.initialize(plan)
    with pytest.raises(smh.UnknownNameError):
        smh_torch.materialize(plan, variables, ["c"])
    with pytest.raises(smh.UnknownNameError):
        smh_torch.vjp(plan, variables, {"c": torch.ones(1)})
    with pytest.raises(smh.VariableError, match="must have shape"):
        smh_torch.vjp(plan, variables, {"b": torch.ones(1)})
    with pytest.raises(smh.VariableError, match="the cotangent of 'b' must be on cpu, .*; got meta"):
        smh_torch.vjp(plan, variables, {"b": torch.ones(3, 2, device="meta")})


def test_variables_on_meta_have_shapes_and_no_values(tmp_path):
    plan = small()
    variables = {name: x.to("meta") for name, x in smh_torch.initialize(plan).items()}
    shapes = {tensor.name: tensor.viewed_shape for tensor in plan.tensors}
    assert {name: tuple(x.shape) for name, x in smh_torch.materialize(plan, variables).items()} == shapes
    for call in (smh_torch.digest, lambda *args: smh_torch.save(tmp_path / "x", *args)):
        with pytest.raises(smh.VariableError, match="on the meta device has no values: fill it first"):
            call(plan, variables)
    assert not list(tmp_path.iterdir())
    with pytest.raises(smh.VariableError, match="the cotangent of 'b' must be on meta, .*; got cpu"):
        smh_torch.vjp(plan, variables, {"b": torch.ones(3, 2)})


@NEEDS_CUDA
def test_devices_are_kept():
    assert "cuda:0" in backend.devices()
    x = np.asarray([1.5, -0.0, 1e-45], dtype=np.float32)
    assert_same_bits(backend.to_numpy(backend.asarray(x, "cuda:0")), x)
