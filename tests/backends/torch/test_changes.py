"""Whatever would change a generated weight is refused, and changes nothing: all that PyTorch has, not a selection."""

import functools
import inspect
import io
import re
import types
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from conformance.bits import assert_same_bits  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.errors import PlanError, VariableError  # noqa: E402

F = nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")  # of deprecated functions, and of weights that are built often
RESIDENCIES = ("full", "cached", "layer")
CHANGES = re.compile(r"[a-z].*_|__(i(add|sub|mul|div|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift)|setitem)__")
ROWS = torch.arange(6)
OTHER = torch.linspace(0.1, 0.9, 36).reshape(6, 6)
ARGUMENTS = (
    (),
    (2.0,),
    (2,),
    (0,),
    (0.5,),
    (0.5, True),
    (OTHER,),
    (0, 1),
    (OTHER > 0.5, 1.0),
    (OTHER > 0.5, OTHER),
    (OTHER, OTHER),
    (OTHER[0], OTHER[0]),
    (OTHER, 0.5),
    (0, ROWS, OTHER),
    (0, ROWS, 1.0),
    (0, ROWS.expand(6, 6), OTHER),
    (0, ROWS.expand(6, 6), OTHER, "sum"),
    (0, ROWS, OTHER, "prod"),
    ((ROWS,), OTHER),
    (ROWS, OTHER[0]),
    (2.0, 0, 1.0),
    ((3, 3), (6, 1)),
    (lambda a: a + 1,),
    (OTHER, lambda a, b: a + b),
    (OTHER, OTHER, lambda a, b, c: a + b),
    (OTHER[None], OTHER[None]),
    (OTHER.double().float(), 1, 0),
)


def model_of(residency="full"):
    torch.manual_seed(0)
    return smh.compress(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), ratio=0.9, residency=residency)


@pytest.fixture(params=RESIDENCIES)
def model(request):
    """Yield a model that must be the same afterwards."""
    model = model_of(request.param)

    def state():
        with torch.no_grad():
            weights = [(layer.weight.clone().numpy(), layer.bias.numpy().copy()) for layer in model]
            outputs = model(OTHER).numpy().copy()
        return weights, outputs, {name: x.clone() for name, x in model.state_dict().items()}, hooks(model)

    before = state()
    yield model
    for found, expected in zip((*sum(before[0], ()), before[1]), (*sum((now := state())[0], ()), now[1]), strict=True):
        assert_same_bits(found, expected)
    assert before[2].keys() == now[2].keys()
    assert all(torch.equal(x, now[2][name]) for name, x in before[2].items())
    assert before[3] == now[3]


def hooks(model):
    return [(type(m), list(m.__dict__), list(m._forward_pre_hooks), list(m._parameters.items())) for m in model]


def works(function, x, **options):
    """Return arguments with which a function changes a plain tensor, or None."""
    for arguments in ARGUMENTS:
        target = x.detach().clone()
        try:
            with torch.no_grad():
                found = function(target, *arguments, **options)
        except (RuntimeError, TypeError, NotImplementedError, IndexError, ValueError, AttributeError):
            continue
        if found is not NotImplemented and (target._version or (found is target and not options)):
            return arguments
    return None


NOT_HERE = re.compile("bitwise|gcd|lcm|shift|__i(and|or|xor)__|__idiv__|sparse|coalesced|conj_phys|philox|_dtensor")
"""Functions for other types, and internal ones."""


@functools.cache
def changing(where):
    """Return all functions of a namespace that change what they get, with arguments for each."""
    names = (name for name in dir(where) if CHANGES.fullmatch(name) and not NOT_HERE.search(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: works(getattr(where, name), OTHER) for name in names}


def test_enough_is_tested():
    unused = {name for where in (torch.Tensor, torch, F) for name, args in changing(where).items() if args is None}
    assert len(changing(torch.Tensor)) > 130
    assert len(changing(torch)) > 60
    assert unused <= {"addmv_", "baddbmm_", "float_power_", "embedding_renorm_", "index_put_"} | {
        name for name in unused if name.startswith("_")
    }


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_methods(model, grad):
    with torch.set_grad_enabled(grad):
        w = model[0].weight
    for name, arguments in changing(torch.Tensor).items():
        for x in (w, w.detach(), w.data, w[:], w.t()):
            if arguments is not None:
                with torch.set_grad_enabled(grad), pytest.raises(VariableError, match="materialize_"):
                    getattr(x, name)(*arguments)


def test_methods_within_a_pass(model):
    """As a layer calls them that changes its weight while it runs, or a hook."""

    class StoppedError(Exception):
        pass

    def attempt(layer, args):
        for name, arguments in changing(torch.Tensor).items():
            for x in (layer.weight, layer.weight.data, layer.weight.detach()):
                if arguments is not None:
                    with torch.no_grad(), pytest.raises(VariableError, match="materialize_"):
                        getattr(x, name)(*arguments)
        raise StoppedError

    with torch.no_grad():
        handle = model[0].register_forward_pre_hook(attempt)
        with pytest.raises(StoppedError):
            model(OTHER)
        handle.remove()


@pytest.mark.parametrize("where", [torch, F], ids=["torch", "functional"])
def test_functions(model, where):
    for name, arguments in changing(where).items():
        if arguments is not None:
            with torch.no_grad(), pytest.raises(VariableError, match="materialize_"):
                getattr(where, name)(model[0].weight, *arguments)


def test_functions_of_lists(model):
    names = [name for name in dir(torch) if re.fullmatch("_foreach_.*_", name)]
    assert len(names) > 30
    for name in names:
        for arguments in ((), ([OTHER],), ([2.0],), ([OTHER], [OTHER]), ([OTHER], [OTHER], 1.0), ([OTHER], 0.5)):
            function = getattr(torch, name)
            with torch.no_grad():
                try:
                    function([OTHER.clone()], *arguments)
                except (TypeError, RuntimeError):
                    continue
                with pytest.raises(VariableError, match="materialize_"):
                    function([model[0].weight], *arguments)
                break
        else:
            pytest.fail(name)


def test_out(model):
    w = model[0].weight
    tried = 0
    for name in dir(torch):
        function = getattr(torch, name)
        if not isinstance(function, types.BuiltinFunctionType) or name.startswith("_") or name.endswith("_"):
            continue
        for arguments in ((OTHER,), (OTHER, OTHER), (OTHER, 2.0), (OTHER, 0), ((OTHER[:3], OTHER[3:]),), ((6, 6),)):
            with torch.no_grad():
                try:
                    function(*arguments, out=(target := torch.empty(6, 6)))
                except (TypeError, RuntimeError, IndexError):
                    continue
                if not target._version:
                    continue
                tried += 1
                for x in (w, w.data, w[:]):
                    with pytest.raises(VariableError, match="materialize_"):
                        function(*arguments, out=x)
                break
    assert tried > 100
    with pytest.raises(VariableError, match="materialize_"):
        torch.max(OTHER, 0, keepdim=True, out=(model[0].weight, torch.empty(1, 6, dtype=torch.int64)))


def test_inplace(model):
    tried = 0
    for name, function in vars(F).items():
        if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters:
            arguments = works(function, OTHER, inplace=True)
            if name.startswith("_") or arguments is None:
                continue
            tried += 1
            with torch.no_grad(), pytest.raises(VariableError, match="materialize_"):
                function(model[0].weight, *arguments, inplace=True)
    assert tried > 12
    with torch.no_grad(), pytest.raises(VariableError, match="materialize_"):
        F.embedding(ROWS, model[0].weight, max_norm=0.01)
    with torch.no_grad(), pytest.raises(VariableError, match="materialize_"):
        torch.ops.aten.mul_.Tensor(model[0].weight, 2.0)


INIT = [name for name in dir(nn.init) if re.fullmatch("[a-z].*_", name)]


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_init(residency):
    torch.manual_seed(0)
    model = smh.compress(nn.ModuleList([nn.Linear(6, 6), nn.Conv1d(6, 6, 3)]), ratio=0.9, residency=residency)
    before = [layer.weight.detach().clone().numpy() for layer in model]
    assert len(INIT) >= 13
    for name in INIT:
        function = getattr(nn.init, name)
        layer = model[1] if name == "dirac_" else model[0]
        arguments = works(function, layer.weight.detach().clone())
        assert arguments is not None, name
        for look in (lambda w: w, lambda w: w.data):
            with pytest.raises(VariableError, match="materialize_"):
                function(look(layer.weight), *arguments)
        with pytest.raises(VariableError, match="materialize_"):
            function(**{next(iter(inspect.signature(function).parameters)): layer.weight}, **keywords(name))
        assert_same_bits(layer.weight.detach().numpy(), before[layer is model[1]])


def keywords(name):
    return {"constant_": {"val": 1.0}, "sparse_": {"sparsity": 0.5}}.get(name, {})


LAYERS = {
    "Linear": (4, 4), "Bilinear": (4, 4, 4), "Embedding": (5, 4), "EmbeddingBag": (5, 4), "RNN": (4, 4), "LSTM": (4, 4),
    "GRU": (4, 4), "RNNCell": (4, 4), "LSTMCell": (4, 4), "GRUCell": (4, 4), "MultiheadAttention": (4, 2),
    "AdaptiveLogSoftmaxWithLoss": (4, 9, [3, 6]), "Transformer": (4, 2, 1, 1, 8),
    "NonDynamicallyQuantizableLinear": (4, 4),
    **{f"Conv{transposed}{n}d": (4, 4, 2) for transposed in ("", "Transpose") for n in (1, 2, 3)},
}  # fmt: skip
RESET = ("reset_parameters", "_reset_parameters")
WITHOUT_MATRICES = re.compile("Norm|Lazy|PReLU|RNNBase|RNNCellBase|_Conv")


def test_layers():
    found = {name for name in dir(nn) if any(hasattr(getattr(nn, name), method) for method in RESET)}
    assert {name for name in found if not WITHOUT_MATRICES.search(name)} <= LAYERS.keys()
    for name in found & LAYERS.keys():
        model = smh.compress(getattr(nn, name)(*LAYERS[name]), ratio=0.9)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        for method in RESET:
            if hasattr(model, method):
                with pytest.raises(VariableError, match="materialize_"):
                    getattr(model, method)()
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items()), name
        plain = smh.materialize_(model)
        next(getattr(plain, method) for method in RESET if hasattr(plain, method))()


def example(model):
    model[0].weight[0] = 1.0


OTHERS = {
    "assigned": lambda m: setattr(m[0], "weight", nn.Parameter(OTHER)),
    "deleted": lambda m: delattr(m[0], "weight"),
    "data": lambda m: setattr(m[0].weight, "data", OTHER),
    "item": example,
    "gradient": lambda m: setattr(m[0].weight, "grad", OTHER),
    "frozen": lambda m: setattr(m[0].weight, "requires_grad", False),
    "numpy": lambda m: m[0].weight.detach().numpy().__setitem__(0, 1.0),
    "array": lambda m: np.asarray(m[0].weight.detach()).__setitem__(0, 1.0),
    "vector": lambda m: nn.utils.vector_to_parameters(OTHER.flatten(), [m[0].weight]),
    "hook": lambda m: m[0].weight.register_hook(print),
    "accumulated": lambda m: m[0].weight.register_post_accumulate_grad_hook(print),
    "retained": lambda m: m[0].weight.retain_grad(),
    "buffer": lambda m: m[0].register_buffer("weight", OTHER),
    "called": lambda m: torch.func.functional_call(m, {"0.weight": OTHER}, (OTHER,)),
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "pruned structure": lambda m: prune.ln_structured(m[0], "weight", 0.5, 2, 0),
    "parametrised": lambda m: parametrize.register_parametrization(m[0], "weight", nn.Identity()),
    "weight norm": lambda m: parametrizations.weight_norm(m[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[0]),
    "spectral norm": lambda m: parametrizations.spectral_norm(m[0]),
    "old weight norm": lambda m: nn.utils.weight_norm(m[0]),
    "old spectral norm": lambda m: nn.utils.spectral_norm(m[0]),
    "quantised": lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, inplace=True),
    "quantised later": lambda m: setattr(m[0], "qconfig", None),
    "by apply": lambda m: m.apply(lambda part: part.weight.data.zero_()),
    "script": torch.jit.script,
    "trace": lambda m: torch.jit.trace(m, OTHER),
    "onnx of traces": lambda m: torch.onnx.export(m, (OTHER,), io.BytesIO(), dynamo=False),
    "package": lambda m: torch.package.PackageExporter(io.BytesIO()).save_pickle("a", "b", m),
}


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.parametrize("how", OTHERS)
def test_other_ways(model, how):
    error = ValueError if how in ("numpy", "array") else (VariableError, PlanError)
    with pytest.raises(error, match="materialize_|read-only"):
        OTHERS[how](model)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_layers_that_change_their_weight_while_they_run(residency):
    class Changing(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                torch.mul(self.weight, 0.5, out=self.weight)
            return super().forward(x)

    model = smh.compress(Changing(6, 6), ratio=0.9, residency=residency)
    before = model.weight.detach().clone().numpy()
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(VariableError, match="forward pass changed 'weight' in place.*materialize_"):
                model(OTHER)
            with smh.built(model), pytest.raises(VariableError, match="forward pass changed"):
                model(OTHER)
            assert_same_bits(model.weight.numpy(), before)


def test_attributes_stay():
    plain = nn.Linear(6, 6)
    plain.weight.decays = False
    for model in (smh.compress(plain, ratio=0.9), smh.compress_(plain, ratio=0.9)):
        assert model.weight.decays is False
        model.weight.rate = 2
        assert model.weight.rate == 2
        assert vars(smh.materialize_(model).weight) == {"decays": False, "rate": 2}


def test_parameters_with_hooks_are_kept():
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    plain[0].weight.register_hook(torch.zeros_like)
    calls = []
    plain[1].weight.register_post_accumulate_grad_hook(calls.append)
    model = smh.compress_(plain, ratio=0.9)
    why = {line.name: line.why for line in smh.report(model).tensors if len(line.shape) == 2}
    assert why == {"0.weight": "it has hooks", "1.weight": "it has hooks", "2.weight": ""}
    model(OTHER).sum().backward()
    assert not model[0].weight.grad.any()
    assert len(calls) == 1


def test_names_that_begin_with_a_generated_one():
    model = model_of()
    model[0].weight_scale = nn.Parameter(torch.zeros(1))
    model[0].weight_bias_correction = nn.Parameter(torch.ones(1))
    model[0].register_buffer("weight_mask", torch.ones(1))
    assert not model[0].weight.any()
    other = model_of()
    other[0].weight_bias_correction = nn.Parameter(torch.zeros(1))
    other[0].register_buffer("weight_mask", torch.zeros(1))
    state = model.state_dict()
    other.load_state_dict(state, assign=True)
    assert all(torch.equal(x, state[name]) for name, x in other.state_dict().items())
    assert_same_bits(other(OTHER).detach().numpy(), model(OTHER).detach().numpy())
