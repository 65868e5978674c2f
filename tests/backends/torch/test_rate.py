"""The rate in PyTorch: value and gradients, under a compiler and in bfloat16, and training towards small files."""

import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.rates import OPTIONS, STEPS, WEIGHT, assert_gradients, data, packed_bits  # noqa: E402


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


def test_refusals():
    with pytest.raises(PlanError, match="needs fixed exponents"):
        smh.rate(compressed(exponents="free"))
    with pytest.raises(PlanError, match="not compressed"):
        smh.rate(nn.Linear(20, 30))
