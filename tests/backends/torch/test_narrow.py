"""PyTorch without float64: no operation meets one, and no bit changes."""

import contextlib
import types

import numpy as np
import pytest

from conformance.bits import assert_same_bits
from conformance.cases import Case, cotangents_for, golden_plans, variables_for
from conformance.own_laws import mixed
from smh.core import pools
from smh.core.plan import Plan

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from smh.backends.float64 import without_float64  # noqa: E402
from smh.backends.torch import backend, narrow  # noqa: E402


class NoFloat64(TorchDispatchMode):
    """Fails where an operation, also one of a backward pass, takes or returns a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, found)):
            assert not (isinstance(x, torch.Tensor) and x.dtype == torch.float64), f"{func} met float64"
        return found


def tensors(arrays):
    return {name: backend.asarray(x) for name, x in arrays.items()}


def both(case):
    variables = tensors(case.variables)
    return backend.materialize(case.plan, variables), backend.vjp(case.plan, variables, tensors(case.cotangents))


@pytest.mark.parametrize("case", [*golden_plans(3), mixed()], ids=repr)
def test_no_operation_meets_float64(case):
    with without_float64(), NoFloat64():
        weights, gradients = both(case)
    for found, expected in ((weights, case.weights), (gradients, case.gradients)):
        for name, x in expected.items():
            assert_same_bits(found[name].numpy(), np.asarray(x), name)


def test_the_check_above_can_fail():
    with NoFloat64(), pytest.raises(AssertionError, match="met float64"):
        both(mixed())


def second_derivatives(case, watch):
    variables = {name: x.requires_grad_() for name, x in tensors(case.ordinary[0]).items()}
    with watch:
        weights = backend.materialize(case.plan, variables)
        loss = sum((w**2).sum() for w in weights.values())
        first = torch.autograd.grad(loss, list(variables.values()), create_graph=True)
        return torch.autograd.grad(sum((x**2).sum() for x in first), list(variables.values()))


def test_second_derivatives_need_none_either():
    with without_float64():
        found = second_derivatives(mixed(), NoFloat64())
    for x, y in zip(found, second_derivatives(mixed(), contextlib.nullcontext()), strict=True):
        x, y = x.detach(), y.detach()
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-3, atol=1e-3 * float(y.abs().max()))


@pytest.mark.filterwarnings("ignore")
def test_compiled_programs_without_float64_have_the_same_bits(monkeypatch):
    monkeypatch.setattr("smh.core.kernels.Kernels.dot", None)  # which works in float64
    pool = pools.Hash(size=9, capacity=20)
    plan = Plan.build({"a": (3, 4), "b": (5, 3)}, ratio=10**9, pool=pool, layout="cyclic", include=lambda name: True)
    case = Case("small", plan, variables_for(plan, 1, "normal"), cotangents_for(plan, 1, "wide"), 1)
    with without_float64():
        found = backend.in_mode("traced").vjp(case.plan, tensors(case.variables), tensors(case.cotangents))
    for name, x in case.gradients.items():
        assert_same_bits(found[name].numpy(), np.asarray(x), name)


@pytest.mark.parametrize("smooth", [False, True])
def test_metal_has_no_float64(smooth):
    on_metal, on_the_host = (types.SimpleNamespace(device=torch.device(name)) for name in ("mps", "cpu"))
    assert isinstance(narrow.kernels_for(on_metal, smooth), narrow.NarrowKernels)
    assert not isinstance(narrow.kernels_for(on_the_host, smooth), narrow.NarrowKernels)
    with without_float64():
        assert narrow.kernels_for(on_the_host, smooth) is narrow.kernels_for(on_metal, smooth)
