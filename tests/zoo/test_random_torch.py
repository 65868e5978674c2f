"""Random small PyTorch models, compressed against plainly written: a functional forward with the weights passed in."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402

from smh import torch as smh  # noqa: E402
from tests.backends.torch.checks import assert_same, floats, variables_of  # noqa: E402
from tests.support import of_torch  # noqa: E402

WIDTH = 12
LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no_bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "bottleneck": lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 3, 3, padding=1), nn.Flatten()),
    "transposed": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), nn.ConvTranspose1d(3, 3, 1), nn.Flatten()),
    "grouped": lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Conv1d(4, 4, 1, groups=2), nn.Flatten()),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
    "dropout": lambda: nn.Dropout(0.3),
    "activation": lambda: nn.GELU(),
    "attention": lambda: Attention(),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "bare": lambda: Bare(),
    "embedding": lambda: Lookup(),
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = x.unflatten(1, (3, 4))
        return self.inner(x, x, x, need_weights=False)[0].flatten(1)


class Bare(nn.Module):
    """Parameters in a list and in a dict, of which one is used transposed."""

    def __init__(self):
        super().__init__()
        self.several = nn.ParameterList([torch.randn(WIDTH, WIDTH) / 4 for _ in range(2)])
        self.named = nn.ParameterDict({"out": torch.randn(WIDTH, WIDTH) / 4})

    def forward(self, x):
        for weight in self.several:
            x = torch.tanh(x @ weight)
        return x @ self.named["out"].T


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)

    def forward(self, x):
        return x + self.table(torch.arange(len(x)) % 7)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Branches(nn.Module):
    """The parts by name, called in the opposite order, and the first of them twice."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleDict({f"part{i}": part for i, part in enumerate(parts)})

    def forward(self, x):
        first, *_ = self.parts.values()
        for part in reversed(self.parts.values()):
            x = torch.tanh(x + part(x))
        return first(x)


leaves = st.sampled_from(sorted(LAYERS)).map(lambda kind: ("leaf", kind))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("sequential"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("branches"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("residual"), inner),
    ),
    max_leaves=6,
)


def built(tree):
    kind, inside = tree
    if kind == "leaf":
        return LAYERS[inside]()
    if kind == "residual":
        return Residual(built(inside))
    return {"sequential": nn.Sequential, "branches": Branches}[kind](*map(built, inside))


def halve(module, inputs):
    return (inputs[0] / 2,)


def shift(module, inputs, output):
    return output + 0.25


@st.composite
def models(draw):
    """Draw a model: a tree of layers, then ties, frozen parameters, hooks, and layers under two names."""
    torch.manual_seed(draw(st.integers(0, 99)))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), built(draw(trees)), nn.Linear(WIDTH, WIDTH))
    linears = [m for m in model.modules() if type(m) is nn.Linear and m.weight.shape == (WIDTH, WIDTH)]
    for _ in range(draw(st.integers(0, 2))):
        a, b = draw(st.sampled_from(linears)), draw(st.sampled_from(linears))
        a.weight = b.weight
    for name in draw(st.sets(st.sampled_from(sorted(dict(model.named_parameters()))), max_size=2)):
        if not name.startswith("0."):
            dict(model.named_parameters())[name].requires_grad_(False)
    odd = nn.MultiheadAttention, nn.utils.parametrize.ParametrizationList  # return a tuple, and have no arguments
    hooked = [m for m in model.modules() if not isinstance(m, odd)]
    for module in draw(st.lists(st.sampled_from(hooked), max_size=2)):
        if draw(st.booleans()) and not isinstance(module, nn.Embedding):  # whose inputs are integers
            module.register_forward_pre_hook(halve)
        else:
            module.register_forward_hook(shift)
    if draw(st.booleans()):
        model.append(model[0])
    return model


@settings(max_examples=40)
@given(models(), st.sampled_from(["full", "cached", "layer"]), st.booleans())
def test_a_compressed_model_computes_what_is_written_plainly(model, residency, training):
    plain = copy.deepcopy(model).train(training)
    compressed = smh.compress(model, ratio=0.5, residency=residency).train(training)
    plan = smh.plan_of(compressed)
    variables = {name: v.detach().reshape(plan.variable_shapes[name]) for name, v in variables_of(compressed).items()}
    built = smh.materialize(plan, {name: v.clone() for name, v in variables.items()})

    # The same model with these weights as arguments; where a weight holds three of the plan's, they are joined.
    weights = {}
    for name, parameter in plain.named_parameters():
        parts = [x for key, x in built.items() if key == name or key.startswith(f"{name}.")]
        if parts:
            weights[name] = torch.cat(parts).reshape(parameter.shape).detach().requires_grad_()
    kept = {name: p for name, p in plain.named_parameters() if name not in weights}
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))

    def taken(forward):
        torch.manual_seed(2)
        y = forward(x)
        y.square().mean().backward()
        return y

    expected = taken(lambda x: torch.func.functional_call(plain, weights, (x,)))
    assert_same(taken(compressed), expected, "output")
    buffers = [floats([b for _, b in m.named_buffers()]) for m in (compressed, plain)]
    if buffers[1]:
        assert_same(*buffers, "statistics")
    gradients = {name: p.grad for name, p in compressed.named_parameters()}
    for name, p in kept.items():
        assert (gradients[name] is None) == (p.grad is None), name
        if p.grad is not None:
            assert_same(gradients[name], p.grad, name)
    found = {name: weight.grad for name, weight in weights.items()}
    cotangents = {t.name: of_torch(found, t.name) for t in plan.tensors}
    expected = smh.vjp(plan, variables, cotangents)
    for name, variable in variables_of(compressed).items():
        assert variable.grad is not None, name
        assert_same(variable.grad.reshape(expected[name].shape), expected[name], name)
    for name in plan.pool.variable_shapes():
        assert expected[f"pool/{name}"].any(), name
