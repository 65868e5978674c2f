"""Freezing compressed PyTorch models: what is frozen stays bit for bit the same, or freezing it is refused."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import VariableError  # noqa: E402

X = torch.linspace(-1, 1, 18).reshape(3, 6)
RESIDENCIES = ("full", "cached", "layer")


class Net(nn.Module):
    """Layers with and without biases, alone and in a block, and a tie."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6))
        self.rnn = nn.GRU(6, 6)
        self.norm = nn.LayerNorm(6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.norm(self.rnn(self.block(self.first(x)))[0]))


PARTS = ["first", "block", "block.0", "block.2", "rnn"]


def plain():
    torch.manual_seed(0)
    return Net()


def net(**options):
    return smh.compress(plain(), ratio=0.5, optimizer="adam", **options)


def train(model, parameters=None, steps=2):
    optimizer = torch.optim.AdamW(parameters or model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def state_of(model):
    return {name: (x.detach().clone(), x.requires_grad) for name, x in model.state_dict(keep_vars=True).items()}


def assert_same_state(model, before):
    now = state_of(model)
    assert {name: flag for name, (_, flag) in now.items()} == {name: flag for name, (_, flag) in before.items()}
    for name, (x, _) in before.items():
        assert torch.equal(x, now[name][0]), name


def by_module(part):
    part.requires_grad_(False)


def by_parameter(part):
    for p in part.parameters():
        p.requires_grad = False


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("options", [{}, {"learn_scale": False}], ids=["scales", "fixed scales"])
def test_a_part_cannot_be_frozen(part, options):
    model = net(**options)
    before = state_of(model)
    with pytest.raises(VariableError, match=r"cannot be frozen by itself.*before smh\.compress"):
        model.get_submodule(part).requires_grad_(False)
    assert_same_state(model, before)


@pytest.mark.parametrize(("part", "residency"), list(zip(PARTS, 2 * RESIDENCIES, strict=False)))
def test_a_part_that_is_frozen_by_its_parameters_does_not_train(part, residency):
    model = net(residency=residency)
    expected = model(X)
    by_parameter(model.get_submodule(part))
    before = state_of(model)
    with pytest.raises(VariableError, match="the scales of .* are frozen"):
        train(model)
    assert_same_state(model, before)
    with torch.no_grad():
        assert_same_bits(model(X).numpy(), expected.detach().numpy())
    model.get_submodule(part).requires_grad_(True)
    train(model)


def test_all_parts_frozen_one_by_one_are_frozen_parts():
    model = net()
    for part in model.children():
        by_parameter(part)
    with pytest.raises(VariableError, match="'first.weight', 'block.0.weight'"):
        model(X)


@pytest.mark.parametrize("part", ["first", "block", "block.2", "rnn"])
def test_without_scales_a_part_that_is_frozen_by_its_parameters_does_not_train(part):
    model = net(learn_scale=False)
    by_parameter(model.get_submodule(part))
    before = state_of(model)
    with pytest.raises(VariableError, match=r"all parameters of the (Linear|GRU) '.*' are frozen.*biases alone"):
        train(model)
    assert_same_state(model, before)
    model.get_submodule(part).requires_grad_(True)
    train(model)


def test_without_scales_biases_may_be_frozen_before():
    model = plain()
    model.first.bias.requires_grad = False
    bias = model.first.bias.detach().clone()
    model = smh.compress(model, ratio=0.5, learn_scale=False)
    digest = smh.digest(model)
    train(model)
    assert smh.digest(model) != digest
    assert_same_bits(model.first.bias.detach().numpy(), bias.numpy())


@pytest.mark.parametrize("freeze", [by_module, by_parameter])
@pytest.mark.parametrize("options", [{}, {"learn_scale": False}], ids=["scales", "fixed scales"])
def test_the_whole_is_frozen_and_unfrozen(freeze, options):
    model = nn.Sequential(net(**options), nn.Linear(6, 2))
    freeze(model[0])
    digest = smh.digest(model[0])
    before = state_of(model[0])
    train(model)
    assert smh.digest(model[0]) == digest
    assert_same_state(model[0], before)
    freeze(model[0].block)  # which is frozen already
    copied = copy.deepcopy(model[0])
    assert not any(p.requires_grad for p in smh.materialize_(copied).parameters())
    model[0].requires_grad_(True)
    train(model)
    assert smh.digest(model[0]) != digest


def test_a_part_unfrozen_alone_is_warned_of():
    model = net().requires_grad_(False)
    with pytest.warns(UserWarning, match="Linear, is unfrozen, but the pool is not") as found:
        model.first.requires_grad_(True)
    assert found[0].filename == __file__


def test_what_is_kept_may_be_frozen():
    model = net()
    by_module(model.norm)
    model.first.bias.requires_grad = False
    before = state_of(model)
    train(model)
    for name in ("norm.weight", "norm.bias", "first.bias"):
        assert_same_bits(model.get_parameter(name).detach().numpy(), before[name][0].numpy())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_frozen_before_is_kept(part):
    model = plain()
    by_module(model.get_submodule(part))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    compressed = smh.compress(model, ratio=0.9, optimizer="adam")
    train(compressed)
    for name, x in frozen.items():
        assert_same_bits(compressed.get_parameter(name).detach().numpy(), x.numpy())
