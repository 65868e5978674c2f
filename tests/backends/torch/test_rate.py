"""The rate in PyTorch: value and gradients, under a compiler and in bfloat16, and training towards small files."""

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.rates import (  # noqa: E402
    OPTIONS,
    STEPS,
    WEIGHT,
    WIDTHS,
    assert_gradients,
    assert_kept_gradient,
    data,
    kept_bits_in,
    kept_values,
    packed_bits,
)


def compressed(**options):
    torch.manual_seed(0)
    return smh.compress(nn.Linear(20, 30), **(OPTIONS | options))


def variables_of(model):
    return {"pool/left": model.pool_left.detach().numpy(), "pool/right": model.pool_right.detach().numpy()}


def gradients_of(model):
    return {"pool/left": model.pool_left.grad, "pool/right": model.pool_right.grad}


def test_value_and_gradients():
    model = compressed()
    plan, rate = smh.plan_of(model), smh.rate(model)
    rate.backward()
    assert (rate.dtype, rate.shape) == (torch.float32, ())
    assert rate.item() == pytest.approx(packed_bits(plan, variables_of(model)), rel=1e-4)
    assert_gradients(plan, variables_of(model), gradients_of(model))
    assert model.weight_scale.grad is None


def test_a_compiled_function_takes_the_rate():
    model = compressed()
    step = torch.compile(lambda: smh.rate(model), fullgraph=True, backend="aot_eager")
    rate = step()
    rate.backward()
    assert rate.item() == pytest.approx(smh.rate(model).item(), rel=1e-5)
    assert_gradients(smh.plan_of(model), variables_of(model), gradients_of(model))


def test_variables_in_half_precision_get_gradients():
    model = compressed().to(torch.bfloat16)
    rate = smh.rate(model)
    rate.backward()
    assert rate.dtype == torch.float32
    assert torch.count_nonzero(model.pool_left.grad) > 0


def test_training_with_the_rate_takes_fewer_bits():
    x, y = map(torch.from_numpy, data())
    found = {}
    for weight in (0.0, WEIGHT):
        model = compressed()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(STEPS):
            loss = (model(x) - y).square().mean() + weight * smh.rate(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[weight] = packed_bits(smh.plan_of(model), variables_of(model))
    assert found[WEIGHT] < 0.7 * found[0.0]


def network():
    """Return a compressed network with batch norms, and the names of its kept tensors."""
    layers, channels = [], 3
    for width in WIDTHS:
        layers += [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    model = smh.compress(nn.Sequential(*layers), **OPTIONS)
    with torch.no_grad():
        for layer, values in kept_values().items():
            norm = model[3 * layer + 1]
            places = norm.weight, norm.bias, norm.running_mean, norm.running_var
            for x, value in zip(places, values, strict=True):
                x.copy_(torch.from_numpy(value))
    return model


def kept_rate(model, bits):
    return smh.rate(model, kept_bits=bits) - smh.rate(model)


@pytest.mark.parametrize("bits", [8, 16])
def test_kept_tensors_count_as_in_a_packed_file(tmp_path, bits):
    model = network()
    rate = kept_rate(model, bits)
    rate.backward()
    assert (rate.dtype, rate.shape) == (torch.float32, ())
    smh.save(tmp_path / "model", model, packed=True, kept_bits=bits)
    assert rate.item() == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
    rounded = smh.load(tmp_path / "model").rounded
    for name in ("4.bias", "7.bias", "6.bias"):
        x = model.get_parameter(name)
        assert_kept_gradient(x.detach(), rounded[name].exponent, rounded[name].bits, x.grad)
    assert torch.count_nonzero(model[4].weight.grad) == 0  # which has no negative values
    assert model[1].bias.grad is None  # 16 values, which are not coded


def test_a_compiled_function_takes_the_rate_of_kept_tensors():
    model = network()
    smh.rate(model, kept_bits=8).backward()
    eager = model[4].bias.grad.clone()
    model.zero_grad()
    rate = torch.compile(lambda: smh.rate(model, kept_bits=8), fullgraph=True, backend="aot_eager")()
    rate.backward()
    assert rate.item() == pytest.approx(smh.rate(model, kept_bits=8).item(), rel=1e-5)
    torch.testing.assert_close(model[4].bias.grad, eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 16])
def test_kept_tensors_in_half_precision(tmp_path, dtype, bits):
    model = network().to(dtype)
    rate = kept_rate(model, bits)
    rate.backward()
    smh.save(tmp_path / "model", model, packed=True, kept_bits=8)
    if bits == 8:
        assert rate.item() == pytest.approx(kept_bits_in(tmp_path / "model"), rel=0.03)
        assert torch.count_nonzero(model[4].bias.grad) > 100
    else:  # integers would be no smaller
        assert rate.item() == 16 * (4 + 1) * sum(WIDTHS)


def test_buffers_that_are_not_stored_and_integers_do_not_count():
    model = network()
    model.register_buffer("mask", torch.ones(1000), persistent=False)
    before = kept_rate(model, 8)
    model.mask.mul_(3)
    model[1].num_batches_tracked.add_(7)
    assert kept_rate(model, 8) == before


def test_tied_kept_tensors_count_once():
    model = network()
    tied = network()
    tied[7].bias = tied[6].bias
    assert kept_rate(tied, 8) < kept_rate(model, 8) - 1000


def test_training_makes_kept_tensors_small(tmp_path):
    found = {}
    for weight in (0.0, 0.1):
        model = network()
        before = {name: x.detach().clone() for name, x in model.named_parameters() if "pool" not in name}
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            moved = sum((x - before[name]).square().sum() for name, x in model.named_parameters() if name in before)
            optimizer.zero_grad()
            (moved + weight * smh.rate(model, kept_bits=8)).backward()
            optimizer.step()
        smh.save(tmp_path / "model", model, packed=True, kept_bits=8)
        found[weight] = kept_bits_in(tmp_path / "model")
    assert found[0.1] < 0.9 * found[0.0]


@pytest.mark.parametrize("place", ["weight", "running_var"])
def test_a_kept_tensor_that_is_not_finite_has_no_rate(place):
    model = network()
    with torch.no_grad():
        getattr(model[1], place)[3] = torch.nan
    assert smh.rate(model, kept_bits=8).isnan()
    assert smh.rate(model).isfinite()


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="kept_bits must be 8 or 16, or None to store kept tensors as they are; got 4"):
        smh.rate(compressed(), kept_bits=4)
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate(nn.Linear(20, 30))
