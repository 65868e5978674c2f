"""Kept layers load as PyTorch loads them, by every route, and an error leaves a model as it was."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import CheckpointError, PlanError, SmhError  # noqa: E402

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Derived(nn.Module):
    """Uses what it derives from its state when that is loaded."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.register_buffer("doubled", torch.zeros(6), persistent=False)
        self.note = 0

    def change(self):
        with torch.no_grad():
            self.shift += 1.0
        self.doubled = 2 * self.shift.detach()

    def forward(self, x):
        return x + self.doubled + self.note


class ByOverride(Derived):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.doubled = 2 * self.shift.detach()


class ByPreHook(Derived):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(self.derive)

    @staticmethod
    def derive(module, state, prefix, *args):
        module.doubled = 2 * state[f"{prefix}shift"]


class ByPostHook(Derived):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(lambda module, keys: setattr(module, "doubled", 2 * module.shift.data))


class ByExtraState(Derived):
    """Stores a tensor that is neither parameter nor buffer."""

    def change(self):
        super().change()
        self.note = 3

    def get_extra_state(self):
        return torch.cat([self.doubled, torch.tensor([float(self.note)])])

    def set_extra_state(self, state):
        self.doubled, self.note = state[:6], int(state[6])


class ByName(Derived):
    """Stores its parameter by another name."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}stored"] = self.shift if keep_vars else self.shift.detach()

    def _load_from_state_dict(self, state, prefix, *args):
        with torch.no_grad():
            self.shift.copy_(state[f"{prefix}stored"])
        self.doubled = 2 * self.shift.detach()


KEPT = {
    "override": ByOverride,
    "pre_hook": ByPreHook,
    "post_hook": ByPostHook,
    "extra_state": ByExtraState,
    "other_name": ByName,
    "batch_norm": lambda: nn.BatchNorm1d(6),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
    "frozen_rnn": lambda: nn.LSTM(6, 6).requires_grad_(False),
}


class Net(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.kept, self.fc = kept, nn.Linear(6, 6)

    def forward(self, x):
        y = self.kept(x)
        return self.fc(y[0] if isinstance(y, tuple) else y)


def made(kind):
    torch.manual_seed(0)
    plain = Net(KEPT[kind]())
    if isinstance(plain.kept, Derived):
        plain.kept.change()
    plain(X)  # moves statistics
    return plain.eval()


def out(model):
    with torch.no_grad():
        y = model.kept(X)
        return (y[0] if isinstance(y, tuple) else y).numpy()


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.filterwarnings("ignore:the fitted weights")
def test_kept_layers_by_every_route(kind, tmp_path):
    plain = made(kind)
    expected = out(plain)
    model = smh.compress(plain, ratio=0.8)
    path = tmp_path / "a.safetensors"
    smh.save(path, model)

    def fresh():
        torch.manual_seed(1)
        return Net(KEPT[kind]()).eval()

    def by_state():
        other = smh.compress(fresh(), plan=smh.plan_of(model))
        other.load_state_dict(model.state_dict())
        return other

    routes = {
        "compress": lambda: model,
        "compress_": lambda: smh.compress_(made(kind), ratio=0.8),
        "fit": lambda: smh.fit(plain, ratio=0.8)[0],
        "copy": lambda: copy.deepcopy(model),
        "load": lambda: smh.load(path, fresh()),
        "load into a compressed model": lambda: smh.load(path, smh.compress(fresh(), plan=smh.plan_of(model))),
        "state_dict": by_state,
        "materialize": lambda: smh.materialize(model),
        "load, materialize_": lambda: smh.materialize_(smh.load(path, fresh())),
    }
    for name, route in routes.items():
        found = route()
        assert_same_bits(out(found.eval()), expected, name)
        if name != "fit":
            assert_same_bits(found(X).detach().numpy(), model(X).detach().numpy(), name)


def test_a_root_with_a_tensor_as_extra_state(tmp_path):
    class Root(nn.Linear):
        steps = 0

        def get_extra_state(self):
            return torch.tensor([self.steps])

        def set_extra_state(self, state):
            self.steps = int(state[0])

    model = smh.compress(Root(6, 6), ratio=0.8)
    model.steps = 3
    smh.save(tmp_path / "a.safetensors", model)
    for other in (Root(6, 6), smh.compress(Root(6, 6), plan=smh.plan_of(model))):
        assert smh.load(tmp_path / "a.safetensors", other).steps == 3


@pytest.mark.filterwarnings("ignore:.*(deprecated|quantiz)")
def test_quantised_layers():
    """Their state is no tensor, so a file cannot hold it; all else works."""
    plain = Net(torch.ao.nn.quantized.dynamic.Linear(6, 6)).eval()
    model = smh.compress(plain, ratio=0.8)
    for found in (model, copy.deepcopy(model), smh.materialize(model)):
        assert_same_bits(out(found), out(plain))
    with pytest.raises(CheckpointError, match="a checkpoint holds tensors"):
        smh.save("nowhere", model)


def everything(model):
    modules = dict(model.named_modules())
    attributes = [{name: id(x) for name, x in vars(m).items() if not name.startswith("__")} for m in modules.values()]
    tensors = [x for m in modules.values() for x in (*m._parameters.items(), *m._buffers.items())]
    values = [(name, id(x), None if x is None else x.detach().clone()) for name, x in tensors]
    return [(name, id(m), type(m)) for name, m in modules.items()], attributes, values


def assert_unchanged(model, before):
    now = everything(model)
    assert now[:2] == before[:2]
    for (name, key, x), (old_name, old_key, old) in zip(now[2], before[2], strict=True):
        assert (name, key) == (old_name, old_key)
        assert (x is None and old is None) or torch.equal(x, old), name


class Failing(nn.Linear):
    """Fails late in what it is asked to do."""

    fails = False

    def register_parameter(self, name, param):
        if self.fails and name.endswith("_scale"):
            raise ValueError("not here")
        super().register_parameter(name, param)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        if self.fails:
            raise ValueError("not loaded")


def pair():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.LSTM(6, 6), Failing(6, 6))


def failing(model):
    model[3].fails = True
    return model


def dense(model):
    return {**model.state_dict(), "3.bias": torch.ones(7), "0.bias": torch.ones(6)}


ATTEMPTS = {
    "compress_": lambda: (failing(pair()), lambda m: smh.compress_(m, ratio=0.8)),
    "load": lambda path: (failing(pair()), lambda m: smh.load(path, m)),
    "load_state_dict": lambda: (smh.compress(pair(), ratio=0.8), lambda m: m.load_state_dict(dense(m))),
    "assign": lambda: (smh.compress(pair(), ratio=0.8), lambda m: m.load_state_dict(dense(m), assign=True)),
    "own error": lambda: (
        failing(smh.compress(pair(), ratio=0.8)),
        lambda m: m.load_state_dict(
            {name: x + 1 if x.dtype.is_floating_point else x for name, x in m.state_dict().items()}
        ),
    ),
}


@pytest.mark.parametrize("how", ATTEMPTS)
def test_an_error_changes_nothing(how, tmp_path):
    if how == "load":
        smh.save(tmp_path / "a.safetensors", smh.compress(pair(), ratio=0.8))
        model, attempt = ATTEMPTS[how](tmp_path / "a.safetensors")
    else:
        model, attempt = ATTEMPTS[how]()
    before = everything(model)
    with pytest.raises((SmhError, ValueError, RuntimeError)):
        attempt(model)
    assert_unchanged(model, before)


def test_loading_into_a_compressed_model_fails_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    first = smh.compress(pair(), ratio=0.8)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.5)
    smh.save(path, first)
    model = failing(smh.compress(pair(), plan=smh.plan_of(first)))
    before = everything(model)
    with pytest.raises(ValueError, match="not loaded"):
        smh.load(path, model)
    assert_unchanged(model, before)
    model[3].fails = False
    assert smh.digest(smh.load(path, model)) == smh.digest(first)


def test_layers_that_are_parametrised_after_compression():
    model = smh.compress(pair(), ratio=0.8).eval()
    digest, bias = smh.digest(model), model[0].bias.detach().clone()
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    before = everything(model)
    with pytest.raises(PlanError, match="class of '0' was changed after compression.*remove_parametrizations"):
        smh.materialize_(model)
    assert_unchanged(model, before)
    assert smh.digest(model) == digest
    parametrize.remove_parametrizations(model[0], "bias")
    plain = smh.materialize_(model)
    assert type(plain[0]) is nn.Linear
    assert torch.equal(plain[0].bias, bias)


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_distributed_checkpoints_of_another_plan_are_refused_by_load_state_dict(tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    model, other = (smh.compress(nn.Linear(20, 30), ratio=0.5, pool="hash", seed=seed) for seed in (0, 1))
    again = smh.compress(nn.Linear(20, 30), plan=smh.plan_of(model), init_seed=1)
    checkpoint.save(model.state_dict(), checkpoint_id=tmp_path)
    for target in (again, other):
        state = target.state_dict()
        checkpoint.load(state, checkpoint_id=tmp_path)
        if target is again:
            target.load_state_dict(state)
        else:
            with pytest.raises(CheckpointError, match="of a model with another plan"):
                target.load_state_dict(state)
    assert smh.digest(again) == smh.digest(model)
