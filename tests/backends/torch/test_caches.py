"""Weights that are kept are never stale: after every way of changing a variable, all residencies agree with a copy."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import VariableError  # noqa: E402

X = torch.linspace(-1, 1, 12).reshape(2, 6)
IMPLEMENTATIONS = ({}, {"foreach": True}, {"foreach": False}, {"fused": True})
SPARSE = ("SparseAdam",)  # which refuses dense gradients
OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}


def model_of(residency):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    return smh.compress(plain, ratio=0.8, residency=residency)


def assert_right(model):
    """Compare outputs with those of a copy, which has nothing that is kept, and of the plain model."""
    with torch.no_grad():
        y = model(X).numpy()
        assert_same_bits(y, copy.deepcopy(model)(X).numpy())
        assert_same_bits(y, smh.materialize(model)(X).numpy())


@pytest.mark.parametrize("residency", ["cached", "layer"])
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(SPARSE)))
def test_optimizers(name, residency):
    model, tried = model_of(residency), 0
    for options in IMPLEMENTATIONS if residency == "cached" else IMPLEMENTATIONS[::3]:
        parameters = [p for p in model.parameters() if name != "Muon" or p.ndim == 2]
        try:
            optimizer = OPTIMIZERS[name](parameters, lr=0.1, **options)
        except TypeError:
            continue
        tried += 1

        def loss(optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(X).square().sum()
            loss.backward()
            return loss

        for within in (False, True):
            before = model.pool_left.detach().clone()
            loss()
            with torch.no_grad():
                model(X)  # is kept, after the backward pass and before the step
                if within:
                    with smh.built(model):
                        model(X)
                        optimizer.step(loss if name == "LBFGS" else None)
                        y = model(X)
                        assert_same_bits(y.numpy(), copy.deepcopy(model)(X).numpy())
                else:
                    optimizer.step((lambda: torch.enable_grad()(loss)()) if name == "LBFGS" else None)
            assert not torch.equal(model.pool_left, before), options
            assert_right(model)
    assert tried > 0


def set_by_numpy(model):
    model.pool_left.detach().numpy()[0] = 0.3


def write_data(model):
    model.pool_left.data.add_(0.25)


def write_one_scale(model):
    model[0].weight_scale.data *= 1.5


def replace_data(model):
    model.pool_left.data = model.pool_left.data * 2


def replace(model):
    model.pool_left = nn.Parameter(model.pool_left.detach() * 2)


def in_place(model):
    with torch.no_grad():
        model.pool_left.mul_(1.5)


def load(model):
    model.load_state_dict({name: x * 2 if x.is_floating_point() else x for name, x in model.state_dict().items()})


def assign(model):
    state = {name: x * 2 if x.is_floating_point() else x for name, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def vector(model):
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()).detach() * 2, model.parameters())


def fused(model):
    p = model.pool_left
    torch._fused_sgd_(
        [p], [torch.ones_like(p)], [], weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=True,
    )  # fmt: skip


def poison(model):
    model.pool_left.data[0, 0] = float("nan")


WAYS = (set_by_numpy, write_data, write_one_scale, replace_data, replace, in_place, load, assign, vector, fused)


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
@pytest.mark.parametrize("change", WAYS)
def test_other_changes(change, residency):
    model = model_of(residency)
    with torch.no_grad():
        before = model(X)
        with torch.no_grad():
            change(model)
        assert not torch.equal(model(X), before)
        assert_right(model)
        assert_same_bits(model[0].weight.detach().numpy(), smh.materialize(model)[0].weight.detach().numpy())
        poison(model)
        with pytest.raises(VariableError, match="'pool/left'"):
            model(X)


def odd(model):
    """Move all variables into one memory, the first to its second number."""
    memory = torch.zeros(1 + sum(p.numel() for p in model.parameters()))
    start = 1
    for p in model.parameters():
        there = memory[start : start + p.numel()].view(p.shape)
        p.data = there.copy_(p.data)
        start += p.numel()


@pytest.mark.parametrize("residency", ["cached", "layer"])
@pytest.mark.parametrize("prepare", [nn.Module.float, odd, nn.Module.bfloat16], ids=["own", "odd", "bfloat16"])
def test_one_number_of_a_large_variable(prepare, residency):
    plain = nn.Linear(101, 101, bias=False)
    model = smh.compress(plain, plan=smh.Plan.build({"weight": plain.weight.shape}, 0.9), residency=residency)
    prepare(model)
    left, right = model.pool_left.data.view(-1), model.pool_right.data.view(-1)
    assert len(left) % 2
    assert len(left) > 4096
    x = torch.eye(101, dtype=left.dtype)
    with torch.no_grad():
        for flat in (left, right):
            for place in (0, 1, len(flat) // 2, len(flat) - 2, len(flat) - 1):
                before = model(x)
                flat[place] = 0.375 if flat[place] < 0 else -0.375  # raises no version
                assert not torch.equal(model(x), before)
                assert_same_bits(model(x).float().numpy(), copy.deepcopy(model)(x).float().numpy())


@pytest.mark.parametrize("within", [False, True], ids=["alone", "built"])
def test_what_was_handed_out_is_not_what_is_kept(within):
    """Its memory may be written to by ways that PyTorch does not see."""
    model = model_of("cached")
    with torch.no_grad():
        expected = model(X).numpy()

        def write():
            w = model[0].weight
            torch.from_dlpack(w.detach().as_subclass(torch.Tensor)).zero_()
            assert not w.any()

        if within:
            with smh.built(model):
                model(X)
                write()
                assert_same_bits(model(X).numpy(), expected)
        else:
            write()
        assert_same_bits(model(X).numpy(), expected)
        assert model[0].weight.any()


def test_a_served_model_and_its_file_agree(tmp_path):
    model = model_of("cached")
    with torch.no_grad():
        model(X)
        write_data(model)
        y = model(X)
        smh.save(tmp_path / "a.safetensors", model, training=True)
        again = smh.load(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)))
        assert_same_bits(again(X).numpy(), y.numpy())
