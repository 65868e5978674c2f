"""Whole families of PyTorch models, from compression over training and files to plain models, bit for bit."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch.utils import _pytree as pytree  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from tests.backends.torch.families import FAMILIES  # noqa: E402
from tests.support import of_torch, scale_of_torch  # noqa: E402

RATIOS = (0.5, 0.1, 0.02)
RESIDENCIES = ("full", "cached", "layer")
CASES = [
    pytest.param(name, ratio, RESIDENCIES[(i + j) % 3], id=f"{name}-{ratio}-{RESIDENCIES[(i + j) % 3]}")
    for i, name in enumerate(FAMILIES)
    for j, ratio in enumerate(RATIOS)
]
KEPT = {
    "tcn": {
        f"{layer}.parametrizations.weight.{part}": "its layer is parametrised"
        for layer in ("0.1", "1.branch.1")
        for part in ("original0", "original1")
    },
    "gan_discriminator": {f"{layer}.parametrizations.weight.original": "its layer is parametrised" for layer in (0, 8)},
    "gan_discriminator_old": {f"{layer}.weight_orig": "SpectralNorm computes 'weight' from it" for layer in (0, 8)},
    "experts": {"router.weight": "it is frozen"},
}
"""Parameters of two or more axes that stay, and why; all others are generated."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Run on one thread: where others use the machine too, threads of so small models mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name):
    torch.manual_seed(0)
    factory, inputs = FAMILIES[name]
    return factory(), inputs()


def variables_of(model):
    """Return the variables by the plan's names, found by the order of the plan only."""
    plan = smh.plan_of(model)
    named = dict(model.named_parameters())
    found = {f"pool/{name}": named[f"pool_{name}"] for name in plan.pool.variable_shapes()}
    return found | {t.scale_variable: named[scale_of_torch(t.name)] for t in plan.tensors if t.learn_scale}


def assert_same(a, b, what=""):
    a, b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    assert len(a) == len(b) > 0, what
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype == torch.float32
        x, y = (z.detach().numpy().view(np.uint32) for z in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=what)


def step(model, inputs):
    """Return the output and all gradients of one step in training mode, with the same dropout every time."""
    torch.manual_seed(2)
    model.train().zero_grad()
    y = model(*inputs)
    sum(leaf.square().mean() for leaf in pytree.tree_leaves(y)).backward()
    return y, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def quiet(model, inputs):
    with torch.no_grad():
        return model.eval()(*inputs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which nn.TransformerEncoder uses
@pytest.mark.parametrize(("name", "ratio", "residency"), CASES)
def test_family(name, ratio, residency, tmp_path):
    fresh, inputs = made(name)
    model = smh.compress(fresh, ratio=ratio, residency=residency)
    plan = smh.plan_of(model)
    assert plan.num_weights >= 11_000
    assert plan.ratio <= ratio
    assert type(model) is not type(fresh)
    assert isinstance(model, type(fresh))

    # One step of the compressed model, and of the plain one that it is a description of.
    plain = smh.materialize_(copy.deepcopy(model))
    y, gradients = step(model, inputs)
    z, expected = step(plain, inputs)
    assert_same(y, z, "outputs in training")
    for kept in expected.keys() & gradients.keys():
        assert_same(gradients[kept], expected[kept], kept)
    variables = variables_of(model)
    cotangents = {tensor.name: of_torch(expected, tensor.name) for tensor in plan.tensors}
    before = {name: v.detach().clone().reshape(plan.variable_shapes[name]) for name, v in variables.items()}
    for variable, gradient in smh.vjp(plan, before, cotangents).items():
        assert gradient.isfinite().all(), variable
        assert_same(variables[variable].grad.reshape(gradient.shape), gradient, variable)
    torch.optim.Adam(model.parameters(), 1e-3).step()
    for variable, v in variables.items():
        assert v.isfinite().all(), variable
    for variable in plan.pool.variable_shapes():
        assert not torch.equal(variables[f"pool/{variable}"], before[f"pool/{variable}"]), variable

    # The file, in a model that has other weights.
    y = quiet(model, inputs)
    assert all(leaf.isfinite().all() for leaf in pytree.tree_leaves(y))
    path = tmp_path / "model.safetensors"
    digest = smh.save(path, model)
    loaded = smh.load(path, FAMILIES[name][0]())
    assert smh.digest(loaded) == digest == smh.digest(model)
    assert_same(quiet(loaded, inputs), y, "outputs of the loaded model")

    # The plain model.
    plain = smh.materialize_(copy.deepcopy(model))
    assert [type(module) for module in plain.modules()] == [type(module) for module in fresh.modules()]
    assert list(plain.state_dict()) == list(fresh.state_dict())
    assert [(n, type(p), p.shape, p.requires_grad) for n, p in plain.named_parameters()] == [
        (n, type(p), p.shape, p.requires_grad) for n, p in fresh.named_parameters()
    ]
    assert_same(quiet(plain, inputs), y, "outputs of the plain model")
    assert_same(plain.eval()(*inputs), model.eval()(*inputs), "outputs with gradients")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept(name):
    model = smh.compress_(made(name)[0], ratio=0.1)
    lines = (line for line in smh.report(model).tensors if len(line.shape) > 1 and not line.generated)
    kept = {line.name: line.why for line in lines if line.why != "it is a buffer"}
    expected = KEPT.get(name, {})
    assert kept.keys() == expected.keys()
    for tensor, reason in expected.items():
        assert reason in kept[tensor], tensor
