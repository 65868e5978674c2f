"""How often the weights of PyTorch models are built, however a model is entered, and that they are never stale."""

import copy
import pickle
import threading
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import smh as any_smh  # noqa: E402
from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.backends.torch import packed  # noqa: E402
from smh.backends.torch.autograd import Materialize  # noqa: E402
from smh.errors import PlanError, VariableError  # noqa: E402


class Net(nn.Module):
    """An encoder and a decoder, and the ways in which libraries enter models."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 6)))
        self.decoder = nn.Linear(6, 6)
        self.reentrant = None

    def forward(self, x):
        for part in self.encoder:
            x = part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)
        return self.decoder(x)

    @torch.no_grad()
    def generate(self, x, steps=4):
        for _ in range(steps):
            x = self(x)
        return x

    def forward_features(self, x):
        return self.encoder[2](self.encoder[1](self.encoder[0](x)))

    def training_step(self, x):
        return (self(x) - self.decoder(self.encoder(x)) + self.encoder[0].weight.sum()).square().sum()

    def learn(self, x, rate, steps=2):
        for _ in range(steps):
            for _ in range(2):  # adds up the gradients of two passes
                self.decoder(self.encoder(x)).square().sum().backward()
            with torch.no_grad():
                for p in self.parameters():
                    p -= rate * p.grad
                    p.grad = None
        return self(x)


@pytest.fixture
def builds(monkeypatch):
    """Return a list of the names that were built, one item for each time."""
    found, forward, one_by_one = [], Materialize.forward, packed.materialize

    def counted(*args):
        found.append(args[1])
        return forward(*args)

    def counted_layer(*args):
        found.append(args[3])
        return one_by_one(*args)

    monkeypatch.setattr(Materialize, "forward", staticmethod(counted))
    monkeypatch.setattr(packed, "materialize", counted_layer)
    return found


@pytest.fixture
def model():
    torch.manual_seed(0)
    return smh.compress(Net(), ratio=0.5)


def plain(model):
    return smh.materialize(model)


X = torch.linspace(-1, 1, 12).reshape(2, 6)


@pytest.mark.parametrize("residency", ["full", "cached"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    "enter",
    [
        lambda m: m(X),
        lambda m: m.generate(X),
        lambda m: m.forward_features(X),
        lambda m: m.training_step(X),
        lambda m: m.encoder(X),
        lambda m: m.encoder[2](X @ torch.ones(6, 20)),
        lambda m: m.decoder(X),
    ],
    ids=["forward", "generate", "forward_features", "training_step", "encoder", "nested", "layer"],
)
def test_one_build_however_a_model_is_entered(builds, model, residency, grad, enter):
    expected = plain(model)
    smh.set_residency(model, residency)
    builds.clear()
    with torch.set_grad_enabled(grad):
        y = enter(model)
    assert len(builds) == 1, builds
    assert_same_bits(y.detach().numpy(), enter(expected).detach().numpy())


def test_gradients_have_the_bits_of_one_pass_however_a_model_is_entered(model):
    def gradients(run):
        model.zero_grad()
        run(X).square().sum().backward()
        return [p.grad.numpy() for p in model.parameters()]

    expected = gradients(model)
    with smh.built(model):
        parts = gradients(lambda x: model.decoder(model.encoder(x)))
    for found, one in zip(parts, expected, strict=True):
        assert_same_bits(found, one)


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_built_builds_once(builds, model, residency):
    expected = plain(model)
    smh.set_residency(model, residency)
    builds.clear()
    with any_smh.built(model), torch.no_grad():
        for _ in range(3):
            y = model.decoder(model.encoder(X))
            assert_same_bits(model(X).numpy(), y.numpy())
            assert_same_bits(model.encoder[0].weight.numpy(), expected.encoder[0].weight.detach().numpy())
    assert_same_bits(y.numpy(), expected(X).detach().numpy())
    assert len(builds) == 1
    model(X)
    assert len(builds) > 1, "weights outlived the context"


def test_built_is_reused_for_gradients_and_without(builds, model):
    with smh.built(model):
        y = model(X)
        with torch.no_grad():
            model(X)
        y = y + model(X)
        assert len(builds) == 1
        y.sum().backward()
        model(X).sum().backward()  # not through a graph that is gone
    assert len(builds) == 2


def test_weights_are_never_stale(builds, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)  # whose steps raise no version
    with smh.built(model):
        for _ in range(3):
            before = len(builds)
            model(X).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                assert_same_bits(model(X).numpy(), plain(model)(X).detach().numpy())
            assert len(builds) > before
        with torch.no_grad():
            model.pool_left.mul_(2)
            assert_same_bits(model.decoder.weight.numpy(), plain(model).decoder.weight.detach().numpy())
        model.pool_left = nn.Parameter(model.pool_left.detach() / 4)
        assert_same_bits(model(X).detach().numpy(), plain(model)(X).detach().numpy())


def test_a_method_that_trains(model):
    other = copy.deepcopy(model)
    found = model.learn(X, 0.01)
    for _ in range(2):
        for _ in range(2):
            with smh.built(other):
                other(X).square().sum().backward()
        with torch.no_grad():
            for p in other.parameters():
                p -= 0.01 * p.grad
                p.grad = None
    assert_same_bits(found.detach().numpy(), other(X).detach().numpy())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(builds, model, reentrant):
    x = X.clone().requires_grad_()

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.numpy() for p in model.parameters()]

    expected = gradients()
    model.reentrant = reentrant
    builds.clear()
    with smh.built(model):
        found = gradients()
    again = [name for names in builds[1:] for name in names]
    assert len(again) == len(set(again))  # what runs again is built once more
    if not reentrant:  # else gradients go through the weights once for each part
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


def test_layers_build_less_than_the_whole(builds, model):
    model.decoder(X)
    assert builds == [("decoder.weight",)]
    model.encoder(X)
    assert set(builds[1]) == {"encoder.0.weight", "encoder.2.0.weight", "encoder.2.1.weight"}


def test_layers_of_a_pool_that_repeats_build_the_weights_of_the_whole():
    """Cells of a cyclic layout come from the same products as elsewhere, also on integers of 8 bits."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(60, 40), nn.Linear(40, 20))
    options = {"ratio": 0.1, "layout": "cyclic", "pool": any_smh.pools.Matmul(n=20)}
    by_layer = smh.compress(plain, residency="layer", **options).eval()
    x = torch.randn(2, 60)
    with torch.no_grad():
        assert_same_bits(by_layer(x).numpy(), smh.compress(plain, **options).eval()(x).numpy())


def test_many_builds_of_parts_warn_once(model):
    def parts():
        for _ in range(20):
            model.decoder(X)

    with pytest.warns(UserWarning, match="smh.built") as found:
        parts()
    assert len(found) == 1
    again = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="smh.built") as found:
        sum(again.encoder[0].weight.sum() for _ in range(10))
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with smh.built(model):
            parts()
        smh.set_residency(model, "cached")
        with torch.no_grad():
            parts()
        model = copy.deepcopy(model)
        for layer in (*model.encoder[2], model.encoder[0], model.decoder):
            layer.weight.sum()  # reading each once is no waste
        smh.set_residency(model, "full")
        for _ in range(20):  # a new building each time
            model.decoder(X).sum().backward()


def test_an_error_ends_a_pass(builds, model):
    for run in (model.encoder, model.forward_features, model.generate):
        with pytest.raises(RuntimeError):
            run(torch.ones(3))
    with pytest.raises(ZeroDivisionError), smh.built(model):
        _ = 1 / 0
    builds.clear()
    model(X)
    model(X)
    assert len(builds) == 2


def test_built_counts_in_one_thread(builds, model):
    with smh.built(model):
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
    assert len(builds) == 2


def test_copies_made_within_are_of_their_own(builds, model):
    with smh.built(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            builds.clear()
            assert_same_bits(other.encoder(X).detach().numpy(), model.encoder(X).detach().numpy())
            assert len(builds) == 1


def test_what_model_code_makes_anew_is_plain(model):
    part = model.encoder[:2]
    assert_same_bits(part(X).detach().numpy(), plain(model).encoder[:2](X).detach().numpy())
    assert type(type(model)()) is Net
    assert set(type(model)().state_dict()) == set(Net().state_dict())


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_torch_compile(model):
    torch.compiler.reset()
    expected = model(X).detach()
    for run in (model.encoder, model.forward_features, model):
        compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
        y = compiled(X)
        y = y if run is model else model.decoder(y)
        torch.testing.assert_close(y, expected)
    with smh.built(model):
        torch.testing.assert_close(torch.compile(model, dynamic=False, backend="aot_eager")(X), expected)


def test_functional_call_within_built(model):
    with smh.built(model):
        doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
        y = torch.func.functional_call(model, doubled, (X,))
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict() | doubled)
    assert_same_bits(y.detach().numpy(), other(X).detach().numpy())


def test_what_is_not_compressed_is_refused():
    with pytest.raises(PlanError, match="not compressed"):
        smh.built(Net())


@pytest.mark.parametrize("options", [{}, {"bits": 12}, {"pool": "kronecker"}, {"pool": "hash", "layout": "cyclic"}])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_layers_share_the_integers_of_the_pool(monkeypatch, options, grad):
    model = smh.compress(Net(), ratio=0.5, residency="layer", **options)
    packs, pack, expected = [], packed.pack, plain(model)(X).detach().numpy()

    def counted(*args):
        packs.append(pack(*args))
        return packs[-1]

    monkeypatch.setattr(packed, "pack", counted)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            y = model(X)
            assert_same_bits(y.detach().numpy(), expected)
    assert len(packs) == 1
    assert all(one.integers.element_size() == 1 + ("bits" in options) for one in packs[0].values())
    if grad:
        y.sum().backward()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.startswith("pool")).fill_(float("nan"))
    with pytest.raises(VariableError, match="training has diverged: 'pool/"):
        model(X)
