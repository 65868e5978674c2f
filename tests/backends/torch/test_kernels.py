"""PyTorch's blocks change no bit, of whatever size they are: against the default kernels on NumPy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import smh
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from tests.core.cases import check_against, cotangents_for, matmul_cases

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

from smh.backends.torch.kernels import TorchKernels  # noqa: E402
from smh.backends.torch.narrow import NarrowTorchKernels  # noqa: E402

DEFAULT = Kernels(np)
TENSORS = {"put": lambda x: torch.tensor(np.asarray(x)), "take": lambda x: x.numpy()}


class SmallBlocks(TorchKernels):
    """Blocks of a row or two, chunks of a few cells; counts the gradients that came from one pass, and the others."""

    tile_elements = 12

    def __init__(self):
        super().__init__()
        self.fused = self.plain = 0

    def _chunk(self, x):
        return 7

    def matmul_gradients(self, *args):
        found = super().matmul_gradients(*args)
        self.fused += found is not None
        self.plain += found is None
        return found


def test_blocks_have_the_bits_of_the_default_kernels():
    small, whole = SmallBlocks(), TorchKernels()

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=matmul_cases())
    def holds(case):
        for kernels in (small, whole):
            check_against(kernels, DEFAULT, *case, **TENSORS)

    holds()
    assert small.fused > 20
    assert small.plain > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_a_program_changes_no_bit(dtype):
    plan = Plan.build({"a": (6, 5), "b": (4, 4)}, ratio=0.9, scale=0.3)
    fixed = dataclasses.replace(plan.tensors[0], learn_scale=False, kappa=0)
    plan = dataclasses.replace(plan, tensors=(fixed, *plan.tensors[1:]))
    torch.set_default_dtype(dtype)
    try:
        check_against(
            TorchKernels(), DEFAULT, plan, initial_variables(plan), cotangents_for(plan, 0, "normal"), **TENSORS
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_fast_gradients_of_small_blocks_are_those_of_the_whole():
    """Float32 sums in other orders: no bits are promised."""
    plan = Plan.build(
        {"a": (9, 7), "b": (5,), "c": (30,)}, ratio=9, pool=pools.Matmul(n=11, m=6), include=lambda _: True
    )
    variables = {name: torch.tensor(x) for name, x in initial_variables(plan).items()}
    cotangents = {name: torch.tensor(g) for name, g in cotangents_for(plan, 1, "normal").items() if name != "b"}
    small = NarrowTorchKernels(smooth=True)
    small.tile_elements = 12
    found = generate.vjp(small, plan, variables, cotangents)
    exact = generate.vjp(
        Kernels(np, smooth=True), plan, *({k: x.numpy() for k, x in some.items()} for some in (variables, cotangents))
    )
    for name, g in exact.items():
        np.testing.assert_allclose(found[name].numpy(), g, rtol=1e-4, atol=1e-5 * np.abs(g).max(), err_msg=name)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # from within PyTorch
def test_exported_graphs_use_operations_that_onnx_has():
    """Its converter knows no maximum of all axes by the name of ``amax``."""
    model = smh.compress(torch.nn.Linear(30, 20), ratio=0.2).eval()
    program = torch.export.export(model, (torch.ones(1, 30),)).run_decompositions()
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    operations = {str(node.target) for graph in graphs for node in graph.nodes}
    assert "aten.max.default" in operations
    assert "aten.amax.default" not in operations
