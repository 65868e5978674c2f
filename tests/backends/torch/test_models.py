"""Compressed PyTorch models: what users do with models, and what they must not lose."""

import copy
import inspect
import io
import pickle
import socket
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import smh as numpy_smh  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.backends.torch import store  # noqa: E402
from smh.backends.torch.store import Store  # noqa: E402
from tests.support import of_torch, scale_of_torch  # noqa: E402

F = nn.functional
RESIDENCIES = ("full", "cached", "layer")


class Net(nn.Module):
    """Convolution, norm, linear, recurrent, attention, and an embedding tied to the last layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8 * 16, 10)])})
        self.rnn = nn.LSTM(10, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.embedding = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x))).flatten(1)
        h = self.blocks["a"][0](h)[:, None, :].repeat(1, 3, 1)
        h, _ = self.rnn(h)
        h, _ = self.attention(h, h, h)
        return self.out(h + self.embedding.weight[:1])


GENERATED = (
    "conv.weight",
    "blocks.a.0.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "attention.in_proj_weight.query",
    "attention.in_proj_weight.key",
    "attention.in_proj_weight.value",
    "attention.out_proj.weight",
    "embedding.weight",
)


def net(**options):
    torch.manual_seed(0)
    return smh.compress(Net(), **{"ratio": 0.3, **options})


def x_of(rows=4):
    return torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def variables_of(model):
    """Return the variables by the plan's names, found by the order of the plan only."""
    plan = smh.plan_of(model)
    named = dict(model.named_parameters())
    found = {f"pool/{name}": named[f"pool_{name}"] for name in plan.pool.variable_shapes()}
    return found | {t.scale_variable: named[scale_of_torch(t.name)] for t in plan.tensors if t.learn_scale}


def of_plan(model):
    """Return the variables as functions that take a plan want them: a scale has no axes there."""
    shapes = smh.plan_of(model).variable_shapes
    return {name: v.detach().reshape(shapes[name]) for name, v in variables_of(model).items()}


def bits(x):
    return np.asarray(x.detach().cpu().numpy()).view(np.uint32)


def read(model, name):
    whole = name.rpartition(".")[0] if "in_proj_weight." in name else name
    module, _, attribute = whole.rpartition(".")
    return of_torch({whole: getattr(model.get_submodule(module), attribute)}, name)


def assert_same(a, b, what=""):
    np.testing.assert_array_equal(bits(a), bits(b), err_msg=what)


def step(model, x):
    """Return the output and all gradients of one step."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one, other):
    assert_same(one[0], other[0], "outputs")
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert_same(gradient, other[1][name], name)


def test_the_model_stays_what_it_was():
    plain, model = Net(), net()
    assert isinstance(model, Net)
    assert isinstance(model.conv, nn.Conv2d)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert type(model.conv).__name__ == "Conv2d"
    assert model.conv.weight.shape == plain.conv.weight.shape
    assert model.conv.out_channels == 8
    assert [t.name for t in smh.plan_of(model).tensors] == list(GENERATED)


def test_variables_are_in_the_state_dict_once():
    model = net()
    names = list(model.state_dict())
    assert names[:2] == ["pool_left", "pool_right"]
    assert {name for name in names if name.endswith("_scale")} == {scale_of_torch(name) for name in GENERATED}
    assert not set(GENERATED) & set(names)
    assert len(names) == len(set(names)) == len({x.data_ptr() for x in model.state_dict().values()})
    stored = sum(x.numel() for x in model.parameters())
    assert stored == smh.plan_of(model).num_variables + 8 * 3 + 10 + 2 * 24 + 18 + 6


def test_weights_have_the_bits_of_numpy():
    model = net()
    plan = smh.plan_of(model)
    variables = {name: v.numpy() for name, v in of_plan(model).items()}
    for name, expected in numpy_smh.get_backend("numpy").materialize(plan, variables).items():
        np.testing.assert_array_equal(bits(read(model, name)), expected.view(np.uint32), err_msg=name)
    assert model.out.weight.shape == (7, 6)
    assert_same(model.out.weight, model.embedding.weight)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_gradients_of_variables_have_the_bits_of_vjp(residency):
    model = net(residency=residency)
    plain = smh.materialize_(copy.deepcopy(model))
    named = dict(plain.named_parameters())
    x = x_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with torch.no_grad():
            for name, w in smh.materialize(smh.plan_of(model), of_plan(model)).items():
                of_torch(named, name).copy_(w)
        y, found = step(plain, x)
        mine, gradients = step(model, x)
        assert_same(y, mine)
        cotangents = {name: of_torch(found, name) for name in GENERATED}
        expected = smh.vjp(smh.plan_of(model), of_plan(model), cotangents)
        for name, v in variables_of(model).items():
            assert v.grad.shape == v.shape
            assert_same(v.grad.reshape(expected[name].shape), expected[name], name)
        for name in set(found) & set(gradients):
            assert_same(gradients[name], found[name], name)
        optimizer.step()
        with torch.no_grad():
            for name in set(found) & set(gradients):
                named[name].copy_(dict(model.named_parameters())[name])


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_residencies_agree(residency):
    model, x = net(), x_of()
    for train in (True, False):
        model.train(train)
        state = copy.deepcopy(model.state_dict())
        smh.set_residency(model, "full")
        expected = step(model, x)
        with torch.no_grad():
            quiet = model(x)
        model.load_state_dict(state)
        smh.set_residency(model, residency)
        assert_same_step(step(model, x), expected)
        with torch.no_grad():
            assert_same(model(x), quiet)
        with torch.inference_mode():
            assert_same(model(x), smh.materialize_(copy.deepcopy(model))(x))
        assert smh.report(model).residency == residency


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(residency, reentrant):
    class Checkpointed(Net):
        def forward(self, x):
            if not self.training:
                return super().forward(x)
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    torch.manual_seed(0)
    model = smh.compress(Checkpointed(), ratio=0.3, residency=residency)
    model.norm.momentum = 0.0
    x = x_of().requires_grad_()
    y, gradients = step(model, x)
    z, expected = step(net(), x)
    torch.testing.assert_close(y, z)  # without gradients at first, PyTorch takes other kernels
    if not reentrant:
        assert_same(y, z)
    for name, gradient in expected.items():
        if reentrant:  # every reading of a weight sends its gradient on its own, and these are added
            torch.testing.assert_close(gradients[name], gradient)
        else:
            assert_same(gradients[name], gradient, name)


def test_cached_weights_are_built_again_only_after_a_change(monkeypatch):
    model, x = net(residency="cached").eval(), x_of()
    built = []
    build = Store.build
    monkeypatch.setattr(Store, "build", lambda self, names=None: built.append(names) or build(self, names))
    with torch.no_grad():
        first = model(x)
        model(x)
        _ = model.conv.weight
        assert len(built) == 1
        model.pool_left.mul_(1.5)
        assert not torch.equal(model(x), first)
        assert len(built) == 2
        model.load_state_dict(net().state_dict())
        assert_same(model(x), first)
        assert len(built) == 3
        model.pool_left.data = model.pool_left.data * 2
        assert not torch.equal(model(x), first)
    model(x).sum().backward()
    assert model.pool_left.grad is not None


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_copies(residency):
    model, x = net(residency=residency).eval(), x_of()
    y = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert_same(copied(x), y)
        with torch.no_grad():
            copied.pool_left.zero_()
        assert not copied.conv.weight.any()
        assert_same(model(x), y, "the copy is of the model, not it")


def test_state_dicts_round_trip():
    model, x = net().eval(), x_of()
    other = smh.compress(Net(), plan=smh.plan_of(model)).eval()
    with torch.no_grad():
        other.pool_left.zero_()
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert_same(other(x), model(x))
    part = {name: value for name, value in model.state_dict().items() if name != "pool_left"}
    assert other.load_state_dict({**part, "more": torch.ones(1)}, strict=False).missing_keys == ["pool_left"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(part)


def test_scales_have_an_axis_in_models_only(tmp_path):
    """Libraries that shard parameters take none without axes."""
    model = net()
    assert all(p.ndim > 0 for p in model.parameters())
    assert model.conv.weight_scale.shape == (1,)
    smh.save(tmp_path / "a.safetensors", model)
    assert smh.load(tmp_path / "a.safetensors").variables["scale/conv.weight"].shape == ()


def test_states_name_their_plan(tmp_path):
    model, x = net().eval(), x_of()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    same = smh.compress(Net(), plan=smh.plan_of(model)).eval()
    with torch.no_grad():
        same.pool_left.zero_()
    same.load_state_dict(state)
    assert_same(same(x), model(x))
    nn.DataParallel(same).load_state_dict({f"module.{name}": value for name, value in state.items()})
    for options in ({"seed": 1}, {"optimizer": "adam"}, {"bits": 9}):  # of the same shapes
        other = net(**options)
        before = {name: value.clone() for name, value in other.state_dict().items()}
        fingerprints = [smh.plan_of(one).fingerprint for one in (model, other)]
        for strict in (True, False):
            with pytest.raises(numpy_smh.CheckpointError, match="another plan: .*{}.*{}.*plan=".format(*fingerprints)):
                other.load_state_dict(state, strict=strict)
        for name, value in other.state_dict().items():
            assert torch.equal(value, before[name])
    with pytest.raises(numpy_smh.CheckpointError, match="does not name the plan"):
        same.load_state_dict({**state, "_extra_state": "?"})


def test_states_that_name_no_plan():
    model, x = net().eval(), x_of()
    state = {name: value for name, value in model.state_dict().items() if name != "_extra_state"}
    other = smh.compress(Net(), plan=smh.plan_of(model)).eval()
    with torch.no_grad():
        other.pool_left.zero_()
    with (
        pytest.warns(UserWarning, match="does not say by which plan"),
        pytest.raises(RuntimeError, match="Missing key.*_extra_state"),
    ):
        other.load_state_dict(state)
    with pytest.warns(UserWarning, match="does not say by which plan") as found:
        result = other.load_state_dict(state, strict=False)
    assert found[0].filename == __file__
    assert result.missing_keys == ["_extra_state"]
    assert_same(other(x), model(x))
    del state["pool_left"], state["pool_right"]
    other.load_state_dict(state, strict=False)  # which needs no plan, and no warning


class Extra(nn.Linear):
    """A model that stores more than tensors."""

    steps = 0

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def test_models_keep_their_own_extra_state():
    model, other = (smh.compress(Extra(8, 8), ratio=0.5) for _ in range(2))
    model.steps = 3
    other.load_state_dict(model.state_dict())
    assert other.steps == 3
    with pytest.raises(numpy_smh.CheckpointError, match="another plan"):
        smh.compress(Extra(8, 8), ratio=0.5, seed=1).load_state_dict(model.state_dict())
    assert smh.materialize_(model).state_dict()["_extra_state"] == {"steps": 3}
    with pytest.raises(numpy_smh.CheckpointError, match="a checkpoint holds tensors; .*'_extra_state' is dict"):
        smh.save("nowhere", other)


def test_options(tmp_path):
    model = net(ratio=None, size="1.5 kB", bits=4, optimizer="adam", seed=3)
    plan = smh.plan_of(model)
    assert plan.pool.bits == 4
    assert plan.seed == 3
    assert [t.kappa for t in plan.tensors] != [t.kappa for t in smh.plan_of(net()).tensors]
    found = smh.report(model)
    assert 1_400 < found.bytes_after <= 1_500
    assert {round(t.scale * 2**20) for t in found.tensors if t.generated} == {
        round(t.initial_scale * 2**20) for t in plan.tensors
    }
    smh.save(tmp_path / "a", model)
    assert found.bytes_after < (tmp_path / "a").stat().st_size
    grown = smh.compress(nn.Linear(8, 8), ratio=3, allow_expansion=True)
    assert smh.plan_of(grown).ratio > 1
    views = {"weight": ("o i -> i o", {})}
    fixed = smh.compress(
        nn.Linear(8, 8), ratio=0.5, pool=smh.pools.Hash(hashes=2), layout="cyclic", scale=0.5, learn_scale=False,
        modifiers=["relu"], views=views, include=["weight"], axes={"weight": "i o"},
    )  # fmt: skip
    assert list(fixed.state_dict()) == ["bias", "pool_table", "_extra_state"]
    assert (fixed.weight >= 0).all()
    assert smh.plan_of(fixed).layout == "cyclic"


def test_training_values_are_stored_if_asked_for(tmp_path):
    model = net().eval()
    digest = smh.save(tmp_path / "small", model)
    assert smh.save(tmp_path / "large", model, training=True) == digest
    assert smh.load(tmp_path / "large").training
    again, rounded = (smh.load(tmp_path / name, Net().eval()) for name in ("large", "small"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not torch.equal(rounded.pool_left, model.pool_left)
    assert_same(rounded(x_of()), model(x_of()))


def test_a_dense_state_dict_is_refused_also_when_not_strict():
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="'conv.weight' is generated and cannot be loaded"):
            net().load_state_dict(Net().state_dict(), strict=strict)


def test_buffers_of_other_types_pass_bit_for_bit(tmp_path):
    class Buffers(nn.Linear):
        def __init__(self, turn):
            super().__init__(6, 6)
            x = torch.linspace(-2, 2, 12).reshape(3, 4).roll(turn)
            self.register_buffer("angles", torch.polar(x, x * x))
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
                self.register_buffer(str(dtype)[6:], x.to(dtype))

    model = smh.compress(Buffers(0), ratio=0.9)
    smh.save(tmp_path / "a", model)
    loaded = smh.load(tmp_path / "a", Buffers(1))
    expected = Buffers(0)
    assert {x.dtype for x in loaded.buffers()} == {torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2}
    for name, x in loaded.named_buffers():
        assert torch.equal(x.view(torch.uint8), expected.get_buffer(name).view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, tmp_path):
    model = net().eval()
    expected = model.conv.weight.detach()
    model.to(dtype)
    assert model.conv.weight.dtype == dtype
    assert model(x_of().to(dtype)).dtype == dtype
    smh.save(tmp_path / "a", model)
    again = smh.load(tmp_path / "a", Net().to(dtype).eval())
    assert torch.equal(again(x_of().to(dtype)), model(x_of().to(dtype)))
    if dtype == torch.float64:
        assert_same(model.float().conv.weight, expected)


def test_autocast_never_multiplies_the_pool_in_bfloat16():
    model, x = net().eval(), x_of()
    expected = {name: read(model, name).detach() for name in GENERATED}
    seen = {}
    for name in ("conv", "blocks.a.0"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({f"{name}.weight": module.weight.detach()})
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    for name, weight in seen.items():
        assert_same(weight, expected[name], name)
    assert len(seen) == 2
    assert model.pool_left.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_compiled(residency):
    torch.compiler.reset()  # PyTorch limits how often a process compiles a function
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    model = smh.compress(plain, ratio=0.4, residency=residency)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = x_of()
    y, expected = step(model, x)
    z, found = step(compiled, x)
    assert_same(y, z)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient)
    with torch.no_grad():
        assert_same(compiled(x), model(x))
        model.pool_left.mul_(2.0)
        assert_same(compiled(x), model(x))
    assert smh.plan_of(compiled) == smh.plan_of(model)


def test_functional_call_and_transforms():
    torch.manual_seed(0)
    model = smh.compress(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), ratio=0.5)
    named = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 6)

    def loss(named, x):
        return torch.func.functional_call(model, named, (x,)).square().sum()

    expected = step(model, x)[1]
    found = torch.func.grad(loss)(named, x)
    for name, gradient in expected.items():
        assert_same(found[name], gradient, name)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(named, x[:, None])
    torch.testing.assert_close(each["pool_left"].sum(0), expected["pool_left"])
    doubled = torch.func.functional_call(model, {**named, "pool_left": named["pool_left"] * 2}, (x,))
    assert not torch.equal(doubled, model(x))


def test_a_module_called_twice_and_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = self.a
            self.c = nn.Linear(6, 6)

        def forward(self, x):
            return self.c(self.b(self.a(x).relu()).relu())

    torch.manual_seed(0)
    model = smh.compress(Twice(), ratio=0.5)
    assert [t.name for t in smh.plan_of(model).tensors] == ["a.weight", "c.weight"]
    assert model.a is model.b
    x = torch.randn(3, 6)
    expected = step(model, x)
    plain = smh.materialize_(copy.deepcopy(model))
    assert plain.a is plain.b
    assert_same(plain(x), expected[0])
    smh.set_residency(model, "layer")
    assert_same_step(step(model, x), expected)


def test_materialized_models_are_plain_again():
    model, x = net().eval(), x_of()
    y = model(x)
    with torch.no_grad():
        quiet = model(x)
    plain = smh.materialize_(model)
    assert plain is model
    assert type(plain) is Net
    assert type(plain.conv) is nn.Conv2d
    assert type(plain.rnn) is nn.LSTM
    assert list(plain.state_dict()) == list(Net().state_dict())
    assert plain.out.weight is plain.embedding.weight
    assert all(type(p) is nn.Parameter and p.requires_grad for p in plain.parameters())
    assert_same(plain(x), y)
    with torch.no_grad():
        assert_same(plain(x), quiet)
    plain.load_state_dict(Net().state_dict())
    pickle.dumps(plain)
    with pytest.raises(numpy_smh.PlanError, match="not compressed"):
        smh.materialize_(plain)


def test_a_model_that_is_one_layer():
    model = smh.compress(nn.Linear(12, 8), ratio=0.3)
    assert list(model.state_dict()) == ["bias", "pool_left", "pool_right", "weight_scale", "_extra_state"]
    for residency in RESIDENCIES:
        smh.set_residency(model, residency)
        step(model, torch.randn(2, 12))
    assert type(smh.materialize_(model)) is nn.Linear


def test_an_exception_leaves_no_trace():
    for residency in RESIDENCIES:
        model = net(residency=residency)
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 1, 1, 1))
        with torch.no_grad():
            before = model.conv.weight.clone()
            model.pool_left.mul_(2.0)
            assert not torch.equal(model.conv.weight, before)


REFUSED = {
    "assigned": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(8, 3, 3, 3))),
    "deleted": lambda m: delattr(m.conv, "weight"),
    "data": lambda m: setattr(m.conv.weight, "data", torch.ones(1)),
    "merged": lambda m: m.conv.weight.data.__iadd__(1.0),
    "in place": lambda m: m.conv.weight.mul_(2.0),
    "item": lambda m: m.conv.weight.__setitem__(0, 1.0),
    "view": lambda m: m.conv.weight[0].detach().view(-1).zero_(),
    "out": lambda m: torch.add(torch.ones(()), 1.0, out=m.conv.weight),
    "init": lambda m: nn.init.zeros_(m.conv.weight),
    "frozen": lambda m: m.conv.weight.requires_grad_(False),
    "pruned": lambda m: __import__("torch.nn.utils.prune").nn.utils.prune.l1_unstructured(m.conv, "weight", 0.5),
    "quantised": lambda m: setattr(m.conv, "qconfig", None),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_changing_a_generated_weight_is_refused(how, residency):
    model = net(residency=residency)
    before = model.conv.weight.detach().clone()
    with torch.no_grad(), pytest.raises(numpy_smh.VariableError, match="materialize_"):
        REFUSED[how](model)
    assert_same(model.conv.weight, before)


def test_parameters_of_variables_may_be_replaced():
    """As libraries do that shard parameters."""
    model = net()
    model.conv.weight_scale = nn.Parameter(torch.zeros(1))
    assert not model.conv.weight.any()


def test_every_option_is_written_out():
    """So that an editor completes it, and a wrong one is refused."""
    options = set(inspect.signature(numpy_smh.Plan.build).parameters) - {"cls", "shapes", "values", "kept_bytes"}
    for function in (smh.compress, smh.compress_, smh.fit):
        parameters = inspect.signature(function).parameters
        own = {"progress" if function is smh.fit else "init_seed", "allow_expansion"}
        assert options | own | {"model", "plan", "residency", "gradients"} == set(parameters)
        assert all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values())
    assert not hasattr(smh, "parameter_groups")
    assert all(hasattr(smh, name) for name in smh.__all__)


def test_reading_a_generated_weight_is_free():
    model = net()
    w = model.conv.weight
    loss = (w * 2).sum() + w.square().mean() + w[0].flatten().norm()
    assert type(loss) is torch.Tensor
    loss += 1
    loss.backward()
    assert model.pool_left.grad.any()
    torch.ones_like(w).copy_(w).add_(w)
    assert isinstance(w.detach().numpy(), np.ndarray)


def test_optimizers_from_before_are_warned_of():
    for compress in (smh.compress, smh.compress_):
        plain = nn.Linear(8, 8)
        optimizer = torch.optim.SGD(plain.parameters(), 0.1)
        with pytest.warns(UserWarning, match="SGD holds parameters .* build the optimizer after") as found:
            compress(plain, ratio=0.5)
        assert found[0].filename == __file__
        del optimizer


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.renormed = nn.Embedding(5, 4, max_norm=1.0)
        self.sparse = nn.Embedding(5, 4, sparse=True)
        self.half = nn.Linear(4, 4).half()
        self.fc = nn.Linear(4, 4)
        self.list = nn.ParameterList([torch.ones(3, 4)])
        self.register_buffer("table", torch.ones(3, 4))


def test_what_is_kept_and_why():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 4), Odd())
    model = smh.compress(first, ratio=0.9)
    lines = {line.name: line for line in smh.report(model).tensors}
    why = {name: line.why for name, line in lines.items() if not line.generated}
    assert [name for name, line in lines.items() if line.generated] == ["0.weight", "1.fc.weight", "1.list.0"]
    assert "parametrized" in why["1.normed.parametrizations.weight.original1"]
    assert "frozen" in why["1.frozen.weight"]
    assert "max_norm" in why["1.renormed.weight"]
    assert "sparse" in why["1.sparse.weight"]
    assert "float16" in why["1.half.weight"]
    assert "buffer" in why["1.table"]
    assert why["0.bias"] == "fewer than two axes"
    assert model[1].list[0].shape == (3, 4)
    assert not model[1].normed(torch.ones(1, 4)).isnan().any()


def test_parameters_that_are_held_elsewhere_are_kept():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(6, 6, bias=False) for _ in range(4))
            self.tied = [self.a.weight]
            self.named = {"b": self.b.weight}
            object.__setattr__(self, "alone", self.c.weight)

    model = smh.compress(Held(), ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["d.weight"]
    assert model.tied[0] is model.a.weight
    why = {t.name: t.why for t in smh.report(model).tensors}
    assert [("'tied'" in why["a.weight"]), ("'named'" in why["b.weight"]), ("'alone'" in why["c.weight"])] == [True] * 3


def test_layers_with_their_own_way_of_copying_or_pickling_say_so():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            return type(self)(self.in_features, self.out_features)

    model = smh.compress_(nn.Sequential(Own(6, 6)), ratio=0.9)
    with pytest.raises(numpy_smh.PlanError, match="Own has its own way of copying.*materialize_"):
        copy.deepcopy(model)
    graph = smh.compress_(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 6))), ratio=0.9)
    graph(torch.ones(1, 6)).sum().backward()
    with pytest.raises(numpy_smh.PlanError, match="own way of copying"):
        copy.deepcopy(graph)
    with pytest.raises(pickle.PicklingError, match="own way of pickling"):
        pickle.dumps(graph)


def test_old_weight_norm_is_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    plain = nn.Sequential(layer, nn.Linear(4, 4))
    with pytest.raises(numpy_smh.PlanError, match=r"\(smh.compress_ compresses it in place\): Only Tensors created"):
        smh.compress(plain, ratio=0.9)
    model = smh.compress_(plain, ratio=0.9)
    assert [t.name for t in smh.plan_of(model).tensors] == ["1.weight"]
    assert "WeightNorm computes 'weight' from it" in {t.name: t.why for t in smh.report(model).tensors}["0.weight_v"]


def with_lazy(layer):
    return nn.Sequential(layer, nn.LazyBatchNorm2d())


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: smh.compress(nn.BatchNorm1d(4), ratio=0.1), "nothing to generate"),
        (lambda: smh.compress(nn.ReLU(), ratio=0.1), "nothing to generate: it has no tensors"),
        (lambda: smh.compress(net(), ratio=0.1), "compressed already"),
        (lambda: smh.compress(nn.Sequential(net()), ratio=0.1), r"compressed already \(0\)"),
        (lambda: smh.compress({"a": 1}, ratio=0.1), "a model is a torch.nn.Module; got dict"),
        (lambda: smh.compress(Net()), "pass ratio"),
        (lambda: smh.compress(Net(), ratio=10), "did you mean 0.1"),
        (lambda: smh.compress(Net(), ratio=0.1, size="1 kB"), "either ratio or size"),
        (lambda: smh.compress(Net(), size="40 B"), "does not fit|too small|at least"),
        (lambda: smh.compress(Net(), ratio=0.1, bits=1), "bits must be"),
        (lambda: smh.compress(Net(), ratio=0.1, optimizer="lion"), "optimizer must be one of 'sgd', 'adam'"),
        (lambda: smh.compress(Net(), ratio=0.1, residency="disk"), "residency must be one of"),
        (lambda: smh.compress(Net(), ratio=0.1, plan=smh.plan_of(net())), "leave out ratio"),
        (lambda: smh.compress(nn.Linear(2, 2), plan=smh.plan_of(net())), "the model does not have: 'conv.weight'"),
        (lambda: smh.compress(nn.LazyLinear(3), ratio=0.1), "call the model once"),
        (lambda: smh.compress(with_lazy(nn.Linear(4, 4)), ratio=0.9), "the shape of '1.weight' .* call the model once"),
        (lambda: smh.fit(with_lazy(nn.Linear(4, 4)), ratio=0.9), "the shape of '1.weight' .* call the model once"),
        (lambda: smh.set_residency(nn.Linear(2, 2), "full"), "not compressed"),
        (lambda: smh.set_residency(net(), "none"), "residency must be one of"),
        (lambda: smh.report(nn.Linear(2, 2)), "not compressed"),
    ],
)
def test_errors(attempt, message):
    with pytest.raises(numpy_smh.PlanError, match=message):
        attempt()


def test_names_that_variables_need():
    class Taken(nn.Linear):
        pool_left = None

    with pytest.raises(numpy_smh.PlanError, match="has an attribute 'pool_left'"):
        smh.compress(Taken(8, 8), ratio=0.5)


def test_files(tmp_path):
    model, x = net(), x_of()
    model(x)  # moves the statistics of the norm
    model.eval()
    digest = smh.save(tmp_path / "a.safetensors", model)
    assert digest == smh.digest(model)
    for other in (Net().eval(), smh.compress(Net(), plan=smh.plan_of(model)).eval()):
        loaded = smh.load(tmp_path / "a.safetensors", other)
        assert loaded is other
        assert smh.digest(loaded) == digest
        assert_same(loaded(x), model(x))
    found = smh.load(tmp_path / "a.safetensors")
    assert found.plan == smh.plan_of(model)
    assert "norm.running_mean" in found.dense
    assert not set(GENERATED) & set(found.dense)
    assert numpy_smh.load(tmp_path / "a.safetensors").digest == digest


def test_foreign_files_change_nothing(tmp_path):
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(3, 1)
            del self.norm
            self.norm = nn.GroupNorm(2, 8)

    path = tmp_path / "a.safetensors"
    smh.save(path, net())
    plain, compressed, other = Net(), net(seed=5), Other()
    for model, error, message in [
        (compressed, numpy_smh.CheckpointError, "another plan"),
        (
            other,
            numpy_smh.CheckpointError,
            "missing: 'more.weight', 'more.bias'; unexpected: 'norm.num_batch",
        ),
        (nn.Linear(3, 3), numpy_smh.PlanError, "does not have"),
    ]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        kind = type(model)
        with pytest.raises(error, match=message):
            smh.load(path, model)
        assert type(model) is kind
        assert before.keys() == model.state_dict().keys()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(numpy_smh.CheckpointError):
        smh.load(path, plain)
    assert type(plain) is Net


def test_training_as_usual():
    torch.manual_seed(0)
    model = smh.compress(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)), ratio=0.3)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    x = torch.randn(64, 10)
    y = x[:, :3].argmax(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        for part in (slice(0, 32), slice(32, 64)):  # accumulates
            loss = F.cross_entropy(model(x[part]), y[part]) / 2
            loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
    assert losses[-1] < losses[0] / 2
    assert F.cross_entropy(average(x), y) < losses[0]
    assert not torch.equal(average.module[0].weight, model[0].weight)
    assert smh.plan_of(average) == smh.plan_of(model)


def test_warm_start():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model, report = smh.fit(plain, ratio=2.1, bits=16, allow_expansion=True)
    assert report.error < 1e-3
    torch.testing.assert_close(model[0].weight.detach(), plain[0].weight.detach(), rtol=0, atol=1e-3)
    with pytest.warns(UserWarning, match="most of the model is lost") as found:
        smh.fit(plain, ratio=0.2)
    assert found[0].filename == __file__
    errors = [smh.fit(plain, ratio=ratio, allow_expansion=True)[1].error for ratio in (0.9, 1.2, 1.5)]
    assert errors == sorted(errors, reverse=True)


def test_match_takes_the_scales_of_the_model():
    plain = nn.Linear(40, 30)
    model = smh.compress(plain, ratio=0.1, scale="match")
    (tensor,) = smh.plan_of(model).tensors
    assert model.weight_scale.item() * 2.0**-tensor.kappa == pytest.approx(
        plain.weight.std(correction=0).item(), rel=1e-6
    )


def _train_in_parallel(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        model = net()
        model.norm.momentum = 0.0
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            parallel(x_of(8)[4 * rank : 4 * rank + 4]).square().mean().backward()
            optimizer.step()
        smh.save(f"{folder}/{rank}", parallel)
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_in_parallel, (port, str(tmp_path)), nprocs=2)
    files = [numpy_smh.load(tmp_path / str(rank)) for rank in range(2)]
    assert files[0].digest == files[1].digest
    assert files[0].digest != smh.digest(net())


def test_matrices_in_one_parameter_are_generated_one_by_one():
    attention = nn.MultiheadAttention(6, 2)
    parts = [f"in_proj_weight.{part}" for part in ("query", "key", "value")]
    for residency in RESIDENCIES:
        model = smh.compress(attention, ratio=0.3, residency=residency, scale="match")
        assert [t.name for t in smh.plan_of(model).tensors] == [*parts, "out_proj.weight"]
        found = smh.materialize(smh.plan_of(model), of_plan(model))
        assert_same(model.in_proj_weight, torch.cat([found[part] for part in parts]))
        for part in parts:
            tensor = next(t for t in smh.plan_of(model).tensors if t.name == part)
            scale = getattr(model, scale_of_torch(part)).item() * 2.0**-tensor.kappa
            assert scale == pytest.approx(read(attention, part).std(correction=0).item(), rel=1e-6)


def test_matrices_in_one_parameter_are_fitted():
    assert smh.fit(nn.MultiheadAttention(6, 2), ratio=1.9, allow_expansion=True)[1].error < 0.05


def test_matrices_in_one_parameter_may_be_generated_as_one(tmp_path):
    attention = nn.MultiheadAttention(6, 2)
    plan = numpy_smh.Plan.build({"in_proj_weight": (18, 6)}, ratio=0.3, axes={"in_proj_weight": "o i"})
    model = smh.compress(attention, plan=plan)
    assert "in_proj_weight_scale" in model.state_dict()
    digest = smh.save(tmp_path / "a.safetensors", model)
    assert smh.digest(smh.load(tmp_path / "a.safetensors", nn.MultiheadAttention(6, 2))) == digest


def test_a_part_of_a_parameter_cannot_be_generated_alone():
    attention = nn.MultiheadAttention(6, 2)
    before = {name: x.clone() for name, x in attention.state_dict().items()}
    with pytest.raises(numpy_smh.PlanError, match=r"all of which are generated or none.*lacks 'in_proj_weight.value'"):
        smh.compress_(attention, ratio=0.5, exclude=["value"])
    assert type(attention) is nn.MultiheadAttention
    for name, x in attention.state_dict().items():
        assert_same(x, before[name])


def test_another_thread_may_forget_the_cache_while_a_weight_is_read(monkeypatch):
    layer = smh.compress(nn.Linear(30, 20), ratio=0.5, residency="cached")
    same = store.same

    def forgets_first(*states):
        smh.set_residency(layer, "cached")
        return same(*states)

    with torch.no_grad():
        expected = layer.weight.clone()
        monkeypatch.setattr(store, "same", forgets_first)
        assert torch.equal(layer.weight, expected)
