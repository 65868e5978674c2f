"""Fast gradients of PyTorch: close to the exact ones, in float32, below weights whose bits do not change."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.backends.torch.autograd import Materialize  # noqa: E402
from smh.errors import PlanError  # noqa: E402
from tests.backends.fast_gradients import PLANS, assert_close, example  # noqa: E402


class Types(TorchDispatchMode):
    """Notes the types of all results."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)}
        return result


def gradients_of(plan, variables, cotangents, fast, **options):
    names = tuple(cotangents)
    leaves = [torch.tensor(x).requires_grad_() for x in variables.values()]
    weights = Materialize.apply(plan, names, fast, *leaves)
    with Types() as types:
        found = torch.autograd.grad(weights, leaves, [torch.tensor(x) for x in cotangents.values()], **options)
    return leaves, weights, dict(zip(variables, found, strict=True)), types.seen


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_fast_gradients_are_close_to_exact_ones_and_need_no_float64(plan):
    variables, cotangents, exact = example(plan)
    _, weights, found, types = gradients_of(plan, variables, cotangents, fast=True)
    assert_close({name: x.numpy() for name, x in found.items()}, exact)
    assert torch.float64 not in types
    for weight, expected in zip(weights, smh.materialize(plan, _tensors(variables)).values(), strict=True):
        assert_same_bits(weight.detach().numpy(), expected.numpy())
    assert torch.float64 in gradients_of(plan, variables, cotangents, fast=False)[3]  # the check can fail


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_second_derivatives_are_those_of_the_same_formulas(plan):
    variables, cotangents, _ = example(plan)

    def second(fast):
        leaves, _, found, _ = gradients_of(plan, variables, cotangents, fast, create_graph=True)
        total = sum((x * torch.linspace(0.5, 1, x.numel()).reshape(x.shape)).sum() for x in found.values())
        found = torch.autograd.grad(total, leaves)
        return {name: x.detach().numpy() for name, x in zip(variables, found, strict=True)}

    assert_close(second(True), second(False))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.checkpointed = nn.Linear(20, 30), nn.Linear(30, 7), False

    def forward(self, x):
        hidden = checkpoint(self.first, x, use_reentrant=False) if self.checkpointed else self.first(x)
        return self.second(torch.relu(hidden))


def models():
    exact = smh.compress(Net(), ratio=0.3)
    fast = smh.compress(Net(), plan=smh.plan_of(exact), gradients="fast")
    fast.load_state_dict(exact.state_dict())
    return exact, fast, torch.linspace(-1, 1, 100).reshape(5, 20)


def step(model, x, run=None):
    model.zero_grad()
    y = (model if run is None else run)(x)
    y.square().sum().backward()
    return y.detach(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpoint"])
def test_models(residency, checkpointed):
    exact, fast, x = models()
    smh.set_residency(fast, residency)
    fast.checkpointed = checkpointed
    (y, expected), (z, found) = step(exact, x), step(fast, x)
    assert_same_bits(z.numpy(), y.numpy())
    assert_close(found, expected)
    assert any(not np.array_equal(found[name], expected[name]) for name in found)


def test_a_choice_can_be_changed_and_is_reported():
    exact, model, x = models()
    assert smh.report(model).gradients == "fast"
    assert "gradients 'fast'" in str(smh.report(model))
    smh.set_gradients(model, "exact")
    expected = step(exact, x)[1]
    for name, found in step(model, x)[1].items():
        assert_same_bits(found, expected[name])
    for wrong in ("quick", None, True):
        with pytest.raises(PlanError, match="gradients must be one of 'exact', 'fast'; got"):
            smh.set_gradients(model, wrong)
        with pytest.raises(PlanError, match="gradients must be one of 'exact', 'fast'; got"):
            smh.compress(Net(), ratio=0.3, gradients=wrong)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_compiled():
    exact, fast, x = models()
    compiled = torch.compile(fast, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_close(step(fast, x, compiled)[1], step(exact, x)[1])


def test_torch_func():
    exact, fast, x = models()

    def gradients(model):
        def loss(parameters, x):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.stack([x, 2 * x]))
        return {name: g.numpy() for name, g in found.items()}

    assert_close(gradients(fast), gradients(exact))


def test_autocast_leaves_gradients_in_float32():
    exact, fast, x = models()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = step(fast, x)[1], step(exact, x)[1]
    assert_close(found, expected)


def test_poisoned_arrays_give_nan():
    plan = PLANS["matmul"]
    variables, cotangents, _ = example(plan)
    variables["pool/left"] = np.where(
        np.arange(variables["pool/left"].size).reshape(variables["pool/left"].shape) == 3,
        np.nan,
        variables["pool/left"],
    ).astype(np.float32)
    found = gradients_of(plan, variables, cotangents, fast=True)[2]
    assert found["pool/right"].isnan().all()


def _tensors(variables):
    return {name: torch.tensor(x) for name, x in variables.items()}
