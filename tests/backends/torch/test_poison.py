"""A pass of a model whose variables are poisoned raises at once, in eager code; compilers and transforms keep NaN."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import smh  # noqa: E402

X, Y = torch.linspace(-1, 1, 12).reshape(2, 6), torch.tensor([1, 4])
RESIDENCIES = ("full", "cached", "layer")


def model_of(residency="full", **options):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    return smh.compress(plain, ratio=0.8, residency=residency, **options)


def spoil(model, name, value=float("nan")):
    parameter = model.get_parameter(name)
    with torch.no_grad():
        parameter.view(-1)[-1] = value


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("name", ["pool_left", "pool_right", "2.weight_scale"])
def test_the_first_pass_raises(name, residency, grad):
    model = model_of(residency)
    before = copy.deepcopy(model.state_dict())
    variable = "scale/2.weight" if name.startswith("2") else name.replace("_", "/")
    with torch.set_grad_enabled(grad):
        expected = model(X).detach()
        spoil(model, name)
        with pytest.raises(smh.VariableError, match=f"training has diverged: '{variable}' .*learning rate is too high"):
            model(X)
        model.load_state_dict(before)
        assert torch.equal(model(X), expected)


def test_other_layers_of_a_poisoned_scale_run():
    model = model_of("layer")
    spoil(model, "2.weight_scale", float("inf"))
    assert torch.isfinite(model[0](X)).all()
    with pytest.raises(smh.VariableError, match="'scale/2.weight'"):
        model[2](torch.ones(2, 8))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_parameters(precision):
    model = model_of().to(precision)
    spoil(model, "pool_left")
    with pytest.raises(smh.VariableError, match="'pool/left'"):
        model(X.to(precision))


def test_training_at_an_absurd_rate_is_stopped_at_the_step_that_follows():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)

    def step():
        loss = functional.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with pytest.raises(smh.VariableError, match="training has diverged"):
        step()


def test_a_scaler_that_skips_steps_is_not_disturbed():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss = scaler.scale(functional.cross_entropy(model(X), Y)) * float("inf")
    loss.backward()
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items() if torch.is_tensor(x))
    assert torch.isfinite(model(X)).all()


@pytest.mark.parametrize("poisoned", ["pool_left", "0.weight_scale"])
def test_what_writes_and_tells_names_it(tmp_path, poisoned):
    model = model_of()
    spoil(model, poisoned)
    match = "training has diverged: '(pool/left|scale/0.weight)'"
    for use in (smh.digest, lambda model: smh.save(tmp_path / "m", model), smh.materialize):
        with pytest.raises(smh.VariableError, match=match):
            use(model)
    assert not (tmp_path / "m").exists()
    with pytest.warns(UserWarning, match=match) as found:
        assert smh.report(model).num_weights == 96
    assert found[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compilers_and_transforms_keep_nan():
    model = model_of()
    spoil(model, "pool_left")
    state = dict(model.named_parameters())
    with torch.no_grad():
        batch = torch.func.vmap(lambda x: torch.func.functional_call(model, state, (x,)))(X[:, None])
        assert batch.isnan().all()
        assert torch.compile(model, backend="eager")(X).isnan().all()


def test_infinite_weights_of_sound_variables_are_not_called_poison():
    """A product of pools may overflow where no variable is at fault."""
    from smh.core.pools import Matmul, Product

    model = smh.compress(nn.Linear(6, 8), ratio=3.0, pool=Product(Matmul(), Matmul(), Matmul()), allow_expansion=True)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.startswith("pool"):
                x.fill_(2.0**29)
            elif name.endswith("scale"):
                x.zero_()
    w = np.asarray(model.weight.detach())
    assert np.isnan(w).all()
