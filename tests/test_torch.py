import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings

import smh
from conformance.bits import assert_same_bits
from conformance.cases import cotangents_for, kinds, plans, seeds, variables_for
from conformance.vectors import load_vectors
from smh import pools

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from smh.backends import torch as smh_torch  # noqa: E402
from smh.backends.torch import backend  # noqa: E402
from smh.backends.torch.ops import TorchOps  # noqa: E402

VECTORS = [vector for vector in load_vectors() if vector.plan["arithmetic"] == "exact"]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]


def tensors(arrays, device="cpu"):
    return {name: backend.asarray(x, device) for name, x in arrays.items()}


def assert_all_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, x in actual.items():
        assert_same_bits(backend.to_numpy(x), expected[name], name)


def small(pool="matmul", arithmetic="exact", **kwargs):
    return smh.Plan.build(
        {"a": (5, 4), "b": (3, 2)},
        ratio=10,
        pool=pool,
        views={"a": "i o -> o i"},
        modifiers={"a": (), "b": ("relu",)},
        include=lambda name: True,
        arithmetic=arithmetic,
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


@pytest.fixture
def case(plan):
    """A plan, its variables and cotangents, and what the NumPy backend makes of them."""
    variables, cotangents = smh.initialize(plan), cotangents_for(plan, 0, "normal")
    return Case(plan, variables, cotangents)


class Case:
    def __init__(self, plan, variables, cotangents):
        self.plan = plan
        self.variables, self.cotangents = tensors(variables), tensors(cotangents)
        self.weights = smh.materialize(plan, variables)
        self.gradients = smh.vjp(plan, variables, cotangents)

    def loss(self, variables):
        weights = smh_torch.materialize(self.plan, variables)
        return sum((weights[name] * g).sum() for name, g in self.cotangents.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_golden_vectors(vector, device):
    plan = smh.Plan.from_json(json.dumps(vector.plan))
    variables, cotangents = tensors(vector.variables, device), tensors(vector.cotangents, device)
    weights = smh_torch.materialize(plan, variables)
    assert all(w.device.type == device for w in weights.values())
    assert_all_same_bits(weights, vector.weights)
    assert_all_same_bits(smh_torch.vjp(plan, variables, cotangents), vector.gradients)
    assert smh_torch.digest(plan, variables) == vector.digest


@settings(max_examples=60)
@given(plans(), seeds, kinds, kinds)
def test_weights_and_gradients_have_the_bits_of_numpy(plan, seed, kind, cotangent_kind):
    variables, cotangents = variables_for(plan, seed, kind), cotangents_for(plan, seed, cotangent_kind)
    mine = tensors(variables)
    weights = smh.materialize(plan, variables)
    assert_all_same_bits(smh_torch.materialize(plan, mine), weights)
    last = plan.tensors[-1].name
    assert_all_same_bits(smh_torch.materialize(plan, mine, [last]), {last: weights[last]})
    gradients = smh_torch.vjp(plan, mine, tensors(cotangents))
    assert_all_same_bits(gradients, smh.vjp(plan, variables, cotangents))
    some = dict(list(cotangents.items())[::2])
    assert_all_same_bits(smh_torch.vjp(plan, mine, tensors(some)), smh.vjp(plan, variables, some))
    assert_all_same_bits(mine, variables)  # no argument is changed
    assert not any(x.requires_grad for x in mine.values())
    found = backend.indices(plan, 0, plan.capacity)
    for name, i in smh.get_backend("numpy").indices(plan, 0, plan.capacity).items():
        assert np.array_equal(backend.to_numpy(found[name]), i)


def test_blocks_do_not_change_a_bit(case, monkeypatch):
    monkeypatch.setattr(TorchOps, "block_elements", 7)
    assert_all_same_bits(smh_torch.materialize(case.plan, case.variables), case.weights)
    assert_all_same_bits(smh_torch.vjp(case.plan, case.variables, case.cotangents), case.gradients)


def test_gradients_of_unused_weights_are_not_needed(case):
    leaves = {name: x.clone().requires_grad_() for name, x in case.variables.items()}
    (smh_torch.materialize(case.plan, leaves)["b"] * case.cotangents["b"]).sum().backward()
    expected = smh_torch.vjp(case.plan, case.variables, {"b": case.cotangents["b"]})
    assert_all_same_bits({n: x.grad for n, x in leaves.items()}, {n: backend.to_numpy(g) for n, g in expected.items()})
    assert smh_torch.materialize(case.plan, case.variables, []) == {}
    assert all(not g.any() for g in smh_torch.vjp(case.plan, case.variables, {}).values())


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(case, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_all_same_bits(smh_torch.materialize(case.plan, case.variables), case.weights)
        assert_all_same_bits(smh_torch.vjp(case.plan, case.variables, case.cotangents), case.gradients)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_modes(case, mode):
    with mode():
        variables = {name: x.clone() for name, x in case.variables.items()}
        assert_all_same_bits(smh_torch.materialize(case.plan, variables), case.weights)
        assert_all_same_bits(smh_torch.vjp(case.plan, variables, case.cotangents), case.gradients)


def test_autocast_leaves_fast_arithmetic_in_float32():
    plan = small(arithmetic="fast")
    variables = tensors(smh.initialize(plan))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = smh_torch.materialize(plan, variables)
    for name, w in smh_torch.materialize(plan, variables).items():
        assert torch.equal(weights[name], w)


def test_func_grad(case):
    assert_all_same_bits(torch.func.grad(case.loss)(case.variables), case.gradients)


def test_vmap(case):
    batch = {name: torch.stack([x, 2 * x, -x], dim=-1) for name, x in case.variables.items()}
    dims = dict.fromkeys(batch, -1)
    weights = torch.func.vmap(lambda v: smh_torch.materialize(case.plan, v), (dims,))(batch)
    gradients = torch.func.vmap(torch.func.grad(case.loss), (dims,))(batch)
    for i in range(3):
        one = {name: x[..., i].numpy() for name, x in batch.items()}
        assert_all_same_bits({n: w[i] for n, w in weights.items()}, smh.materialize(case.plan, one))
        expected = smh.vjp(case.plan, one, {n: g.numpy() for n, g in case.cotangents.items()})
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
    plan = smh.Plan.build(
        {"0.weight": (4, 6), "2.weight": (6, 3)}, ratio=1, views={"0.weight": "i o -> o i"} | {"2.weight": "i o -> o i"}
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    variables = tensors(smh.initialize(plan))
    x = torch.ones(2, 4)

    def loss(variables):
        return torch.func.functional_call(model, smh_torch.materialize(plan, variables), (x,)).square().sum()

    gradients = torch.func.grad(loss)(variables)
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}
    loss(leaves).backward()
    assert_all_same_bits(gradients, {name: x.grad.numpy() for name, x in leaves.items()})
    assert all(g.abs().max() > 0 for g in gradients.values())


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_second_derivatives_agree_with_finite_differences(plan, arithmetic):
    plan = dataclasses.replace(plan, arithmetic=arithmetic)
    variables = tensors(smh.initialize(plan))
    rng = np.random.default_rng(0)
    direction = {n: torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32)) for n, x in variables.items()}

    def cubes(variables):
        return sum(w.pow(3).sum() for w in smh_torch.materialize(plan, variables).values())

    gradient = torch.func.grad(cubes)

    def along(variables):
        return sum((g * direction[name]).sum() for name, g in gradient(variables).items())

    second = torch.func.grad(along)(variables)
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}
    first = torch.autograd.grad(cubes(leaves), list(leaves.values()), create_graph=True)
    product = sum((g * direction[name]).sum() for name, g in zip(leaves, first, strict=True))
    again = torch.autograd.grad(product, list(leaves.values()), create_graph=True)
    step = 2.0**-9
    up = gradient({name: x + step * direction[name] for name, x in variables.items()})
    down = gradient({name: x - step * direction[name] for name, x in variables.items()})
    largest = max(float(x.abs().max()) for x in second.values())
    for name, x in zip(leaves, again, strict=True):
        torch.testing.assert_close(x.detach(), second[name])
        numeric = (up[name] - down[name]) / (2 * step)
        assert float((numeric - x.detach()).abs().max()) < 5e-3 * largest, name
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(sum(x.sum() for x in again), list(leaves.values())))


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
    """Slow, so once, with a plan of few operations."""
    plan = smh.Plan.build({"a": (5, 4)}, ratio=10, pool=POOLS["matmul"], views={"a": "i o -> o i"})
    compiled_case(Case(plan, smh.initialize(plan), cotangents_for(plan, 0, "normal")), "inductor")


def test_compiled_sums_of_pools_are_rounded_between(warnings_of_compilation):
    """A compiler must not drop the roundings to float32 between a part and the sum."""
    pool = pools.Sum(*(pools.Hash(size=40, hashes=2, capacity=500) for _ in range(2)))
    plan = smh.Plan.build({"a": (20, 25)}, ratio=10, pool=pool, gain=0)
    variables = smh.initialize(plan)
    mine = tensors(variables)
    built = torch.compile(lambda v: smh_torch.materialize(plan, v), fullgraph=True)(mine)
    assert_all_same_bits(built, smh.materialize(plan, variables))


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
    plan = small()
    variables = smh_torch.initialize(plan)
    digest = smh_torch.save(tmp_path / "model", plan, variables, {"bias": torch.ones(3)})
    loaded = smh_torch.load(tmp_path / "model")
    assert loaded.digest == digest == smh_torch.digest(plan, loaded.variables)
    assert torch.equal(loaded.dense["bias"], torch.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {k: x for k, x in v.items() if k != "pool/right"}, "missing"),
        (lambda v: {**v, "pool/left": v["pool/left"].double()}, "float32; got torch.float64"),
        (lambda v: {**v, "pool/left": v["pool/left"].T}, "must have shape"),
        (lambda v: {**v, "pool/left": v["pool/left"].numpy()}, "torch.Tensor, float32; got ndarray"),
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


def test_a_device_without_float64_has_no_exact_arithmetic(monkeypatch):
    plan = small()
    variables = smh_torch.initialize(plan)
    monkeypatch.setattr("smh.backends.torch.adapter._device_type", lambda x: "mps")
    with pytest.raises(smh.BackendError, match="exact arithmetic needs float64.*'mps'"):
        smh_torch.materialize(plan, variables)
    assert smh_torch.materialize(dataclasses.replace(plan, arithmetic="fast"), variables)


class Products(TorchDispatchMode):
    """Records the types in which matrices are multiplied."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("mm", "matmul", "mv", "dot", "einsum", "conv")):
            self.types |= {x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_exact_arithmetic_multiplies_no_float32_matrices(case, device):
    variables = {name: x.to(device) for name, x in case.variables.items()}
    cotangents = {name: x.to(device) for name, x in case.cotangents.items()}
    with Products() as products:
        weights = smh_torch.materialize(case.plan, variables)
        gradients = smh_torch.vjp(case.plan, variables, cotangents)
    assert products.types == {torch.float64}
    assert_all_same_bits(weights, case.weights)
    assert_all_same_bits(gradients, case.gradients)
    with Products() as products:
        smh_torch.materialize(dataclasses.replace(case.plan, arithmetic="fast"), variables)
    assert products.types == {torch.float32}  # the check above can fail


@NEEDS_CUDA
def test_devices_are_kept():
    assert "cuda:0" in backend.devices()
    x = np.asarray([1.5, -0.0, 1e-45], dtype=np.float32)
    assert_same_bits(backend.to_numpy(backend.asarray(x, "cuda:0")), x)


def test_compiled_transforms_are_refused_rather_than_wrong(case, warnings_of_compilation):
    with pytest.raises(Exception, match="maybe_current_level|torch.func transforms"):
        torch.compile(torch.func.grad(case.loss), backend="aot_eager", fullgraph=True)(case.variables)


@pytest.mark.parametrize(
    ("values", "known"),
    [([1.0, -2.0], True), ([1.0, -0.5], False), ([np.inf, 3.0], True), ([np.nan, 0.0], False), ([0.0, np.nan], False)],
)
def test_a_flush_is_left_out_where_nothing_is_below(values, known):
    x = torch.tensor(values)
    assert TorchOps().none_below(x, 1.0) is known
    assert TorchOps().none_below(x, torch.tensor(1.0)) is known
    # Under a transform the bound is not at hand, though the values are.
    asked = []
    torch.vmap(lambda bound: asked.append(TorchOps().none_below(x, bound)) or bound)(torch.ones(2))
    assert asked == [False]
