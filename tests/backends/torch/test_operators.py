"""What compilers see of the core on the CPU: one operator to build weights and one for their gradients."""

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

import smh as core  # noqa: E402
from smh.backends import torch as smh  # noqa: E402
from smh.backends.torch import custom, operators  # noqa: E402
from smh.backends.torch.store import find_store  # noqa: E402

PLAN = core.Plan.build(
    {"dense": (40, 30), "kernel": (3, 3, 8, 16)},
    ratio=0.3,
    views={"kernel": "h w i o -> o i h w"},
)


@pytest.fixture(autouse=True)
def _compilation():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autograd.function.Function.* should not be instantiated")
        yield
    torch.compiler.reset()


def leaves():
    return [torch.from_numpy(x).requires_grad_() for x in core.initialize(PLAN).values()]


def build(*variables):
    given = dict(zip(PLAN.variable_shapes, variables, strict=True))
    return smh.materialize(PLAN, given)


def compiled(graphs):
    def backend(graph, examples):
        graphs.append(graph)
        return graph

    return torch.compile(build, fullgraph=True, dynamic=False, backend=backend)


def called(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_a_graph_builds_all_weights_by_one_operator():
    graphs = []
    with torch.no_grad():
        compiled(graphs)(*leaves())
    (graph,) = graphs
    assert sum("smh.materialize" in target for target in called(graph)) == 1
    assert not any("matmul" in target for target in called(graph))


def test_without_operators_the_core_is_traced():
    graphs = []
    with torch.no_grad(), operators.ALLOWED.off():
        compiled(graphs)(*leaves())
    assert not any("smh." in target for target in called(graphs[0]))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_weights_and_gradients_have_the_bits_of_eager_ones(autocast):
    cotangents = np.random.default_rng(0).standard_normal(PLAN.num_weights, dtype=np.float32)

    def run(fn):
        variables = leaves()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weights = fn(*variables)
        pulled = torch.from_numpy(cotangents).split([w.numel() for w in weights.values()])
        loss = [w.reshape(-1) @ g for w, g in zip(weights.values(), pulled, strict=True)]
        sum(loss).backward()
        return [*weights.values(), *(x.grad for x in variables)]

    for x, y in zip(
        run(torch.compile(build, fullgraph=True, dynamic=False, backend="aot_eager")), run(build), strict=True
    ):
        assert x.shape == y.shape
        assert np.array_equal(x.detach().numpy().view(np.uint32), y.detach().numpy().view(np.uint32))


def test_operators_keep_the_rules_of_pytorch():
    numbers = list(range(len(PLAN.tensors)))
    variables = [x.detach() for x in leaves()]
    text = PLAN.to_json()
    torch.library.opcheck(custom.materialize, (text, numbers, variables))
    cotangents = [torch.ones(tensor.viewed_shape) for tensor in PLAN.tensors]
    for fast in (False, True):
        torch.library.opcheck(custom.vjp, (text, numbers, fast, [*variables, *cotangents]))


def test_exported_programs_contain_the_core():
    class Model(torch.nn.Module):
        def forward(self, *variables):
            return build(*variables)["dense"]

    program = torch.export.export(Model(), tuple(x.detach() for x in leaves()))
    assert not any("smh." in target for target in called(program.graph_module))


def test_a_model_is_trained_while_another_thread_compiles():
    model = smh.compress(torch.nn.Linear(40, 30), ratio=0.3)
    x = torch.ones(5, 40)

    def gradients(own):
        own(x).square().sum().backward()
        return [parameter.grad for parameter in own.parameters()]

    found = []

    def backend(graph, examples):
        with ThreadPoolExecutor(1) as threads:
            found.extend(threads.submit(gradients, model).result())
        return graph

    want = gradients(copy.deepcopy(model))
    torch.compile(build, fullgraph=True, dynamic=False, backend=backend)(*leaves())
    assert len(found) == len(want)
    assert all(map(torch.equal, found, want))


def test_a_pass_ends_while_another_thread_exports():
    begun, exporting = threading.Event(), threading.Event()

    class Wait(torch.nn.Module):
        def forward(self, x):
            begun.set()
            assert exporting.wait(60)
            return x

    class Model(torch.nn.Module):
        def forward(self, *variables):
            exporting.set()
            passing.result()
            return build(*variables)["dense"]

    waiting = smh.compress(torch.nn.Sequential(torch.nn.Linear(40, 30), Wait()), ratio=0.3)
    with ThreadPoolExecutor(1) as threads:
        passing = threads.submit(waiting, torch.ones(5, 40))
        assert begun.wait(60)
        torch.export.export(Model(), tuple(x.detach() for x in leaves()), strict=False)
    assert find_store(waiting).scopes == {}
