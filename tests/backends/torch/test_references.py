"""A weight that a model reaches a second way is kept, or the model is refused: nothing goes stale."""

import copy
import functools
import types

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402

F = nn.functional
X = torch.linspace(-1, 1, 12).reshape(2, 6)


class Holder:
    def __init__(self, x):
        self.inner = {"x": [x]}


class Slotted:
    __slots__ = ("x",)


def slotted(x):
    found = Slotted()
    found.x = x
    return found


def closure(x):
    return lambda: x


def tied(x):
    layer = nn.Linear(6, 6, bias=False)
    layer.weight = x
    return [layer]


class Net(nn.Module):
    """Use ``a.weight`` a second time, by what ``way`` makes of it; ``read`` finds the weight in that."""

    def __init__(self, way=None, read=None):
        super().__init__()
        self.a, self.b = (nn.Linear(6, 6, bias=False) for _ in range(2))
        self.read = read
        if way is not None:
            self.second = way(self.a.weight)

    def forward(self, x):
        w = self.a.weight if self.read is None else self.read(self.second)
        return F.linear(self.b(self.a(x)), w)


KEPT = {
    "list": (lambda w: [w], lambda s: s[0]),
    "deep list": (lambda w: [[w]], lambda s: s[0][0]),
    "dict": (lambda w: {"w": (w,)}, lambda s: s["w"][0]),
    "object": (Holder, lambda s: s.inner["x"][0]),
    "slots": (slotted, lambda s: s.x),
    "partial": (lambda w: functools.partial(F.linear, weight=w), lambda s: s.keywords["weight"]),
    "layer": (tied, lambda s: s[0].weight),
    "data": (lambda w: w.data, lambda s: s),
    "detached view": (lambda w: w.detach().t(), lambda s: s.t()),
    "part": (lambda w: w.data.view(-1), lambda s: s.view(6, 6)),
    "parameter": (lambda w: nn.Parameter(w.data), lambda s: s),
    "buffer": (lambda w: nn.Buffer(w.data), lambda s: s),
}
IN_PLACE = {
    "closure": (closure, lambda s: s()),
    "default": (lambda w: eval("lambda w=w: w", {"w": w}), lambda s: s()),
    "view": (lambda w: w.t(), lambda s: s.t()),
    "result": (lambda w: w * 1.0, lambda s: s),
}


@pytest.mark.parametrize("way", {**KEPT, **IN_PLACE})
@pytest.mark.parametrize("compress", [smh.compress, smh.compress_], ids=["copy", "in_place"])
def test_second_ways(way, compress):
    plain = Net(*{**KEPT, **IN_PLACE}[way])
    if compress is smh.compress and way in IN_PLACE:
        with pytest.raises(PlanError, match="cannot be copied \\(smh.compress_ "):
            compress(plain, ratio=0.9)
        return
    model = compress(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["b.weight"]
    why = {line.name: line.why for line in smh.report(model).tensors}["a.weight"]
    assert "second" in why
    x = model.a.weight.detach()
    y = model(X)
    assert_same_bits(y.detach().numpy(), F.linear(model.b(F.linear(X, x)), x).detach().numpy())
    y.square().sum().backward()
    assert model.pool_left.grad.any()


HELD = []
TABLE = {}


def helper():
    return TABLE["w"]


class ByGlobal(Net):
    def forward(self, x):
        return F.linear(self.b(self.a(x)), [w for w in HELD if w is not None][0])


class ByHelper(Net):
    def forward(self, x):
        return F.linear(self.b(self.a(x)), helper())


class ByModule(Net):
    def forward(self, x):
        return F.linear(self.b(self.a(x)), elsewhere.WEIGHT)


elsewhere = types.ModuleType("elsewhere")


class ByClass(Net):
    weights = ()

    def forward(self, x):
        return F.linear(self.b(self.a(x)), self.weights[0])


class ByProperty(ByClass):
    @property
    def weights(self):
        return HELD


@pytest.mark.parametrize(
    ("cls", "place"),
    [
        (ByGlobal, "HELD"),
        (ByHelper, "TABLE"),
        (ByModule, "elsewhere.WEIGHT"),
        (ByClass, "ByClass.weights"),
        (ByProperty, "HELD"),
    ],
)
@pytest.mark.parametrize("way", [lambda w: w, lambda w: w.data, lambda w: w * 1.0], ids=["itself", "view", "result"])
def test_what_the_code_of_a_model_holds(cls, place, way, monkeypatch):
    plain = cls()
    second = way(plain.a.weight)
    monkeypatch.setitem(TABLE, "w", second)
    monkeypatch.setattr(f"{__name__}.HELD", [second])
    monkeypatch.setattr(elsewhere, "WEIGHT", second, raising=False)
    if cls is ByClass:
        monkeypatch.setattr(cls, "weights", (second,))
    with pytest.raises(PlanError, match=f"smh.compress_ .*'{place}' would go on using the .* of the original"):
        smh.compress(plain, ratio=0.9)
    model = smh.compress_(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["b.weight"]
    why = {line.name: line.why for line in smh.report(model).tensors}["a.weight"]
    assert f"'{place}'" in why
    x = model.a.weight.detach()
    y = model(X)
    assert_same_bits(y.detach().numpy(), F.linear(model.b(F.linear(X, x)), x).detach().numpy())
    y.square().sum().backward()
    assert model.pool_left.grad.any()


def test_tensors_that_its_code_does_not_name_are_no_second_way(monkeypatch):
    plain = Net()
    monkeypatch.setitem(globals(), "UNUSED", [plain.a.weight, plain.b.weight])
    model = smh.compress(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["a.weight", "b.weight"]


def test_a_hook_that_holds_a_weight():
    plain = Net()
    w = plain.a.weight
    plain.b.register_forward_hook(lambda module, args, y: y + w.sum())
    with pytest.raises(PlanError, match="'b._forward_hooks' would go on using the Parameter of the original"):
        smh.compress(plain, ratio=0.9)
    model = smh.compress_(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["b.weight"]


def test_a_function_that_holds_a_layer():
    """A copy would call the layer of the original."""
    plain = Net()
    plain.call = lambda x: plain.a(x)
    with pytest.raises(PlanError, match="'call' would go on using the Net of the original"):
        smh.compress(plain, ratio=0.9)
    model = smh.compress_(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["a.weight", "b.weight"]
    assert_same_bits(model.call(X).detach().numpy(), model.a(X).detach().numpy())


def test_what_goes_to_layers_is_no_second_way():
    plain = Net()
    plain.layers = [plain.a, plain.b]
    plain.method = plain.a.forward
    optimizer = plain.optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    with pytest.warns(UserWarning, match="holds parameters"):
        model = smh.compress(plain, ratio=0.9)
    del optimizer
    assert [t.name for t in smh.plan_of(model).tensors] == ["a.weight", "b.weight"]
    assert model.layers[0] is model.a
    assert_same_bits(model.method(X).detach().numpy(), model.a(X).detach().numpy())


def test_parameters_over_one_memory_stay_tied():
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    plain[1].weight = nn.Parameter(plain[0].weight.data)
    model = smh.compress_(plain, ratio=0.9)
    why = {line.name: line.why for line in smh.report(model).tensors}
    assert why["0.weight"] == "it shares memory with '1.weight'"
    assert why["1.weight"] == "it shares memory with '0.weight'"
    with torch.no_grad():
        model[0].weight.zero_()
    assert not model[1].weight.any()


def test_parts_of_one_memory_that_do_not_meet_are_generated():
    plain, flat = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(2, 6, 6)
    for layer, x in zip(plain, flat, strict=True):
        layer.weight = nn.Parameter(x)
    assert len(smh.plan_of(smh.compress(plain, ratio=0.9)).tensors) == 2


def test_another_model_that_holds_a_layer(tmp_path):
    plain = Net()
    smh.save(tmp_path / "a.safetensors", smh.compress(plain, ratio=0.9))
    for other in (nn.Sequential(plain.a), nn.ParameterList([plain.a.weight])):
        before, y = dict(plain.named_parameters()), plain(X)
        for change in (lambda: smh.compress_(plain, ratio=0.9), lambda: smh.load(tmp_path / "a.safetensors", plain)):
            with pytest.raises(PlanError, match=f"{type(other).__name__}, which is not part of the model, holds"):
                change()
        assert type(plain) is Net
        assert all(before[name] is p for name, p in plain.named_parameters())
        assert_same_bits(plain(X).detach().numpy(), y.detach().numpy())
        assert len(list(other.parameters())) == 1
        smh.compress(plain, ratio=0.9)
        del other
    around = nn.ModuleDict({"model": plain, "head": nn.Sequential(plain.b)})
    smh.compress_(plain, ratio=0.9)
    assert any(p is plain.pool_left for p in around.parameters())


def test_references_of_a_model_that_was_copied_stay_apart():
    plain = Net(*KEPT["list"])
    model = smh.compress(plain, ratio=0.9)
    assert model.second[0] is model.a.weight
    assert model.second[0] is not plain.a.weight
    again = copy.deepcopy(model)
    assert again.second[0] is again.a.weight
