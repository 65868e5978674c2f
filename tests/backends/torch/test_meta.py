"""Models on the meta device: shapes without values, until a file fills them."""

import copy
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import CheckpointError, PlanError, VariableError  # noqa: E402
from smh.models.compression import RESIDENCIES  # noqa: E402


class Net(nn.Module):
    """A convolution, a norm with buffers, an attention, and an embedding tied to the last layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, i):
        h = self.norm(self.conv(self.embedding(i).transpose(1, 2))).transpose(1, 2)
        return self.out(self.attention(h, h, h)[0])


I = torch.arange(12).reshape(2, 6)  # noqa: E741


def trained(**options):
    torch.manual_seed(0)
    model = smh.compress(Net(), ratio=0.3, **options)
    for x in model.parameters():
        x.data.add_(0.01)
    model(I)  # changes running means
    return model


def on_meta():
    with torch.device("meta"):
        return Net()


def assert_same(model, other):
    assert smh.digest(model) == smh.digest(other)
    states = model.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, x in states[0].items():
        assert torch.equal(x, states[1][name]), name
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    y, z = (m.eval()(I).detach().numpy() for m in (model, other))
    assert np.array_equal(y.view(np.uint32), z.view(np.uint32))


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("learn_scale", [True, False])
def test_shapes_come_out(residency, learn_scale):
    made_there = smh.compress(on_meta(), ratio=0.3, residency=residency, learn_scale=learn_scale)
    moved = trained(residency=residency, learn_scale=learn_scale).to("meta")
    for model in (made_there, moved):
        assert model.conv.weight.shape == (16, 16, 3)
        for _ in range(2):
            with torch.no_grad():
                assert model(I.to("meta")).shape == (2, 6, 20)
        model(I.to("meta")).sum().backward()
        for x in model.parameters():
            assert x.grad.shape == x.shape
            assert x.grad.is_meta
        assert [x.shape for x in smh.materialize(model).parameters()] == [x.shape for x in Net().parameters()]


def test_plans_are_made_without_values():
    plan = smh.plan_of(trained())
    assert smh.plan_of(smh.compress(on_meta(), ratio=0.3)) == plan
    model = smh.compress(on_meta(), plan=plan)
    assert all(x.is_meta for x in model.parameters())
    assert str(smh.report(model)) == str(smh.report(smh.compress(Net(), plan=plan)))


@pytest.mark.parametrize("state", ["plain", "compressed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_fills_a_model(tmp_path, state, dtype):
    model = trained().to(dtype)
    smh.save(tmp_path / "a.safetensors", model, training=True)
    empty = on_meta().to(dtype)
    if state == "compressed":
        empty = smh.compress(empty, plan=smh.plan_of(model))
    loaded = smh.load(tmp_path / "a.safetensors", empty)
    assert loaded is empty
    assert loaded.out.weight.dtype == loaded.norm.weight.dtype == dtype
    if dtype == torch.float32:
        assert_same(loaded, model)
    else:
        assert smh.digest(loaded) == smh.digest(model)
    assert len({id(x) for x in loaded.parameters()}) == len(list(loaded.parameters()))
    loaded(I).sum().backward()
    assert loaded.pool_left.grad.abs().sum() > 0


def test_files_that_do_not_fit_change_nothing(tmp_path):
    smh.save(tmp_path / "a.safetensors", trained())
    empty = on_meta()
    empty.more = nn.Linear(3, 3, device="meta")
    before = copy.deepcopy(empty)
    with pytest.raises(CheckpointError, match=r"missing: .more\.weight., .more\.bias."):
        smh.load(tmp_path / "a.safetensors", empty)
    assert all(x.is_meta for x in empty.parameters())
    assert [name for name, _ in empty.named_parameters()] == [name for name, _ in before.named_parameters()]


def test_buffers_that_no_file_holds_are_named(tmp_path):
    def make():
        model = Net()
        model.register_buffer("angles", torch.ones(4), persistent=False)
        return model

    smh.save(tmp_path / "a.safetensors", smh.compress(make(), ratio=0.3))
    with torch.device("meta"):
        empty = make()
    with pytest.warns(
        UserWarning, match=r"no file holds .angles. \(persistent=False\), which stay on the meta device"
    ) as found:
        loaded = smh.load(tmp_path / "a.safetensors", empty)
    assert found[0].filename == __file__
    assert [name for name, x in loaded.named_buffers() if x.is_meta] == ["angles"]


@pytest.mark.parametrize(
    "use",
    [
        smh.digest,
        lambda model: smh.save("/nowhere", model),
        lambda model: smh.fit(on_meta(), ratio=0.9),
        lambda model: smh.compress(on_meta(), ratio=0.3, scale="match"),
    ],
)
def test_what_needs_values_is_refused(use):
    model = smh.compress(on_meta(), ratio=0.3)
    with pytest.raises(VariableError, match="on the meta device has no values: fill it first"):
        use(model)


def test_models_of_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="models without memory, as accelerate makes them")
    model = trained()
    smh.save(tmp_path / "a.safetensors", model, training=True)
    with accelerate.init_empty_weights():
        empty = Net()
    empty.out.weight = empty.embedding.weight  # as transformers does, in tie_weights
    assert empty.out.weight.is_meta
    assert_same(smh.load(tmp_path / "a.safetensors", empty), model)


def test_offloading_is_refused():
    accelerate = pytest.importorskip("accelerate", reason="its hooks")
    model = trained().eval()
    before = model(I)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(PlanError, match="accelerate keeps the variables of Net elsewhere until their layers run"):
        model(I)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(model(I), before)


def test_what_is_allocated_has_the_layout_of_its_shape_and_needs_no_sympy():
    code = """
import sys
import torch
from smh.backends.torch.empty import _empty_like
meta = torch.device("meta")
shapes = [
    torch.empty(3, 4, device=meta), torch.empty(4, 6, device=meta).T, torch.empty((), device=meta),
    torch.empty(2, 3, 4, 5, device=meta).to(memory_format=torch.channels_last), torch.empty(0, 3, device=meta),
    torch.empty(3, 1, device=meta).expand(3, 4), torch.empty(4, 6, device=meta, dtype=torch.int8)[:, ::2],
]
found = [_empty_like(x, torch.device("cpu")) for x in shapes]
assert "sympy" not in sys.modules
for x, y in zip(shapes, found):
    like = torch.empty_like(x, device="cpu")
    assert (y.shape, y.stride(), y.dtype, y.device) == (like.shape, like.stride(), like.dtype, like.device)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
