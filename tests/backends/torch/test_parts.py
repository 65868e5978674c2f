"""Parts of compressed PyTorch models without the model that owns the pool, and models around compressed ones."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402

X = torch.linspace(-1, 1, 18).reshape(3, 6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(x)


class Net(nn.Module):
    """One part of each kind: plain, recurrent, of several matrices in one parameter, tied, nested, a list."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.rnn = nn.LSTM(6, 6, bidirectional=True)
        self.attention = nn.MultiheadAttention(6, 2)
        self.tied = Tied()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ModuleDict({"a": nn.Linear(6, 6)}), nn.BatchNorm1d(6))
        self.list = nn.ParameterList([torch.randn(6, 6), torch.ones(6), torch.randn(6, 6)])

    def forward(self, x):
        for matrix in self.list[::2]:
            x = x @ matrix
        return self.tied(self.block[1]["a"](self.block[0](self.first(x + self.list[1:2][0]))))


def plain():
    torch.manual_seed(0)
    return Net()


def net(**options):
    return smh.compress(plain(), ratio=0.5, **options)


def assert_same_states(one, other):
    assert list(one) == list(other)
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


PARTS = ["first", "rnn", "attention", "tied", "tied.out", "block", "block.0", "block.1", "list"]


@pytest.mark.parametrize("name", PARTS)
def test_a_copy_of_a_part_is_plain(name):
    model = net().eval()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    whole = smh.materialize(model)
    found, expected = copy.deepcopy(model.get_submodule(name)), whole.get_submodule(name)
    assert [type(part) for part in found.modules()] == [type(part) for part in expected.modules()]
    assert_same_states(found.state_dict(), expected.state_dict())
    assert all(type(p) is nn.Parameter and p.requires_grad and p.is_leaf for p in found.parameters())
    assert len(list(found.parameters())) == len(list(expected.parameters()))  # tied where they were
    assert len(pickle.dumps(found)) <= len(pickle.dumps(expected)) + 100
    with torch.no_grad():
        for p in found.parameters():
            p.zero_()
    assert_same_states(model.state_dict(), before)


def test_copies_of_recurrent_parts_run():
    model = net()
    assert_same_bits(copy.deepcopy(model.rnn)(X)[0].detach().numpy(), model.rnn(X)[0].detach().numpy())


class Holder(nn.Module):
    """What holds a part before it holds the model, as some training frameworks do."""

    def __init__(self, model):
        super().__init__()
        self.part, self.deep, self.model = model.block, model.block[1]["a"], model


def test_a_part_that_is_copied_before_its_model_is_a_part_of_the_copy():
    model = net()
    holder = copy.deepcopy(Holder(model))
    assert holder.part is holder.model.block
    assert holder.deep is holder.model.block[1]["a"]
    assert smh.digest(holder.model) == smh.digest(model)
    assert_same_bits(holder.model(X).detach().numpy(), model(X).detach().numpy())
    with torch.no_grad():
        holder.model.pool_left.zero_()
    assert not holder.deep.weight.any()
    assert model.block[0].weight.any()
    for name, p in holder.named_parameters():
        assert name in dict(Holder(model).named_parameters())
        assert p is not dict(Holder(model).named_parameters())[name]


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_parts_in_another_container_train_as_plain_ones_when_copied(residency):
    model = net(residency=residency)
    part = copy.deepcopy(nn.Sequential(model.first, model.block[0]))
    optimizer = torch.optim.SGD(part.parameters(), 0.1)
    part(X).square().sum().backward()
    before = part[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(part[0].weight, before)


def loop(run, parameters, **options):
    optimizer = torch.optim.AdamW(parameters, 1e-2, **options)
    for _ in range(4):
        optimizer.zero_grad()
        run(X).square().sum().backward()
        optimizer.step()


def children(model):
    return nn.Sequential(model.first, model.block[0])


UNTRAINED = {
    "children": lambda m: (children(m), children(m).parameters()),
    "a layer": lambda m: (m.first, m.first.parameters()),
    "a block": lambda m: (m.block[0:1], m.block[0].parameters()),
    "groups of layers": lambda m: (m, [{"params": part.parameters()} for part in m.children()]),
    "biases": lambda m: (m, [p for name, p in m.named_parameters() if name.endswith("bias")]),
    "a pickled layer": lambda m: (pickled(m.first), None),
}


def pickled(part):
    with pytest.warns(UserWarning, match="the whole is pickled"):
        return pickle.loads(pickle.dumps(part))


@pytest.mark.parametrize("residency", ["full", "layer"])
@pytest.mark.parametrize("how", UNTRAINED)
@pytest.mark.parametrize("fused", [False, True])
def test_a_part_that_trains_without_the_pool_is_warned_of_once(how, residency, fused):
    run, parameters = UNTRAINED[how](net(residency=residency, learn_scale=not fused))
    with pytest.warns(UserWarning, match="parts of a compressed Net are trained, but not the pool") as found:
        loop(run, parameters or run.parameters(), fused=fused)
    assert len(found) == 1


TRAINED = {
    "whole": lambda m: (m, m.parameters()),
    "parts": lambda m: (children(m), m.parameters()),
    "around": lambda m: (nn.Sequential(m, nn.Linear(5, 2)), nn.Sequential(m, nn.Linear(5, 2)).parameters()),
    "frozen": lambda m: (nn.Sequential(m.requires_grad_(False), last := nn.Linear(5, 2)), last.parameters()),
    "behind": lambda m: (nn.Sequential(children(m), last := nn.Linear(6, 2)), last.parameters()),
}


@pytest.mark.parametrize("how", TRAINED)
def test_training_with_the_pool_or_nothing_is_not_warned_of(how):
    run, parameters = TRAINED[how](net())
    loop(run, list(parameters), fused=how == "parts")


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_accumulated_gradients_are_not_taken_for_a_pool_that_is_not_trained(steps):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(3 * steps):
        model.tied(model.block[0](model.first(X))).square().sum().backward()
        if step % steps == steps - 1:
            optimizer.step()


def test_what_is_stored_of_a_part_is_warned_of_once():
    model = net()
    with pytest.warns(UserWarning, match="state_dict of a part of a compressed model lacks the pool"):
        model.block.state_dict()
    nn.Sequential(model.first).state_dict()
    with pytest.warns(UserWarning, match="use the whole model"):
        torch.save(model.first, io.BytesIO())
    pickle.dumps(model.block)
    around = nn.ModuleDict({"a": net(), "b": nn.Linear(6, 6)})
    around.state_dict()
    for one in (around, around["a"], copy.copy(around["a"])):
        again = pickle.loads(pickle.dumps(one))
        copy.deepcopy(again).state_dict()
    torch.save(around, io.BytesIO())


def test_shallow_copies_are_compressed():
    model = net()
    shallow = copy.copy(model)
    assert smh.digest(shallow) == smh.digest(model)
    assert str(smh.report(shallow)) == str(smh.report(model))
    loop(shallow, shallow.parameters())
    assert_same_bits(shallow(X).detach().numpy(), model(X).detach().numpy())
    assert smh.digest(copy.deepcopy(shallow)) == smh.digest(model)
    assert_same_states(shallow.state_dict(), model.state_dict())
    y = model(X).detach()
    assert smh.materialize_(shallow) is shallow
    for one in (shallow, model):
        assert type(one) is Net
        assert list(one.state_dict()) == list(plain().state_dict())
        assert_same_bits(one(X).detach().numpy(), y.numpy())


def test_slices_compute_what_they_computed():
    model = net()
    expected = smh.materialize(model)
    assert_same_bits(model(X).detach().numpy(), expected(X).detach().numpy())
    model(X).sum().backward()
    x = X.clone()
    for lists in (model.list[:2], model.list[2:], model.list[::-1]):
        assert isinstance(lists, nn.ParameterList)
        assert len(lists) == len(list(lists))
        x = x @ (lists[0] if lists[0].ndim == 2 else torch.eye(6))
    for p in (model.list.get_parameter("0_scale"), model.list.get_parameter("2_scale"), model.list[1]):
        assert p.grad.any()
    for make in (lambda m: m.block[:1], lambda m: m.block[:1] + m.block[:1], lambda m: m.block[0:1] * 2):
        assert_same_bits(make(model)(X).detach().numpy(), make(expected)(X).detach().numpy())


@pytest.mark.parametrize(
    ("inside", "match"),
    [
        (nn.Sequential(nn.ReLU(), net()), "in it: '1'.*get_submodule"),
        (nn.ModuleDict({"a": net(), "b": nn.Sequential(net())}), r"in it: 'a', 'b\.0'"),
        (net().block, "is a part of a compressed Net"),
        (nn.Sequential(net().block), "compress it first: smh.compress"),
    ],
)
def test_the_wrong_object_says_where_the_right_one_is(inside, match, tmp_path):
    for attempt in (
        smh.digest,
        smh.report,
        smh.plan_of,
        smh.materialize,
        smh.materialize_,
        smh.built,
        lambda m: smh.save(tmp_path / "a", m),
        lambda m: smh.set_residency(m, "full"),
        lambda m: smh.set_gradients(m, "fast"),
    ):
        with pytest.raises(PlanError, match=match):
            attempt(inside)


def test_compressing_again_says_what_to_turn_back():
    for model, match in [
        (net(), "turn the whole model back first, by smh.materialize_"),
        (net().block, "a part of a model that is compressed already"),
        (nn.Sequential(net()), r"compressed already \(0\).*get_submodule\('0'\)"),
    ]:
        for compress in (smh.compress, smh.compress_, smh.fit):
            with pytest.raises(PlanError, match=match):
                compress(model, ratio=0.5)


@pytest.mark.parametrize("residency", ["full", "cached"])
def test_a_part_without_gradients_may_call_the_model_with_them(residency):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.owner = nn.Linear(16, 16), []

        def forward(self, x):
            if not self.owner:
                return self.inner(x)
            owner, self.owner = self.owner, []
            with torch.enable_grad():
                return owner[0](self.inner(x))

    model = smh.compress(nn.Sequential(Calls(), nn.Linear(16, 16)), ratio=0.5, optimizer="adam", residency=residency)
    part = model[0]
    with torch.no_grad():
        part(torch.ones(2, 16))
        part.owner = [model]
        y = part(torch.ones(2, 16))
    y.sum().backward()
    assert all(x.grad is not None and bool(x.grad.any()) for x in model.parameters() if x.numel() > 100)
