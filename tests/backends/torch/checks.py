"""What holds of every compressed PyTorch model, whatever it computes: checked against its plain twin, bit for bit."""

import copy

import numpy as np
import torch
from torch.utils import _pytree as pytree

from smh.backends import torch as smh
from tests.support import of_torch, scale_of_torch


def floats(tree):
    """Return the floating-point tensors of an output."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def assert_same(a, b, what=""):
    a, b = floats(a), floats(b)
    assert len(a) == len(b) > 0, what
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype == torch.float32
        x, y = (z.detach().numpy().view(np.uint32) for z in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=what)


def step(model, call):
    """Return the output and all gradients of one step in training mode, with the same dropout every time."""
    torch.manual_seed(2)
    model.train().zero_grad()
    y = call(model)
    sum(x.square().mean() for x in floats(y)).backward()
    return y, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def quiet(model, call):
    torch.manual_seed(3)
    with torch.no_grad():
        return call(model.eval())


def variables_of(model):
    """Return the variables by the plan's names, found by the order of the plan only."""
    plan = smh.plan_of(model)
    named = dict(model.named_parameters())
    found = {f"pool/{name}": named[f"pool_{name}"] for name in plan.pool.variable_shapes()}
    return found | {t.scale_variable: named[scale_of_torch(t.name)] for t in plan.tensors if t.learn_scale}


def check_step(model, call):
    """Check one step against the plain twin: outputs, gradients of what is kept, and those of the variables by vjp.

    Then Adam takes the step, after which all variables are finite and the pool has moved.
    """
    plain = smh.materialize_(copy.deepcopy(model))
    y, gradients = step(model, call)
    z, expected = step(plain, call)
    assert_same(y, z, "outputs in training")
    for kept in expected.keys() & gradients.keys():
        assert_same(gradients[kept], expected[kept], kept)
    plan = smh.plan_of(model)
    variables = variables_of(model)
    unused = dict.fromkeys(name for name, _ in plain.named_parameters())
    cotangents = {t.name: c for t in plan.tensors if (c := of_torch(unused | expected, t.name)) is not None}
    before = {name: v.detach().clone().reshape(plan.variable_shapes[name]) for name, v in variables.items()}
    for variable, gradient in smh.vjp(plan, before, cotangents).items():
        assert gradient.isfinite().all(), variable
        if variables[variable].grad is None:
            assert not gradient.any(), variable
            continue
        assert_same(variables[variable].grad.reshape(gradient.shape), gradient, variable)
    torch.optim.Adam(model.parameters(), 1e-3).step()
    for variable, v in variables.items():
        assert v.isfinite().all(), variable
    for variable in plan.pool.variable_shapes():
        assert not torch.equal(variables[f"pool/{variable}"], before[f"pool/{variable}"]), variable


def check_file(path, model, other, call):
    """Check that a file gives the same model in the place of another one of the same architecture."""
    y = quiet(model, call)
    assert all(x.isfinite().all() for x in floats(y))
    digest = smh.save(path, model)
    loaded = smh.load(path, other)
    assert smh.digest(loaded) == digest == smh.digest(model)
    assert_same(quiet(loaded, call), y, "outputs of the loaded model")


def check_plain(model, fresh, call):
    """Check that the plain twin has the classes, names and shapes of the model that was compressed, and its outputs."""
    plain = smh.materialize_(copy.deepcopy(model))
    assert [type(module) for module in plain.modules()] == [type(module) for module in fresh.modules()]
    assert list(plain.state_dict()) == list(fresh.state_dict())
    assert [(n, type(p), p.shape, p.requires_grad) for n, p in plain.named_parameters()] == [
        (n, type(p), p.shape, p.requires_grad) for n, p in fresh.named_parameters()
    ]
    assert_same(quiet(plain, call), quiet(model, call), "outputs of the plain model")
    torch.manual_seed(3)
    y = call(plain.eval())
    torch.manual_seed(3)
    assert_same(y, call(model.eval()), "outputs with gradients")
