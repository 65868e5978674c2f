"""``vjp`` inside of what PyTorch compiles."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs torch")

import smh as numpy_smh  # noqa: E402
from smh.backends import torch as smh  # noqa: E402


@pytest.fixture(autouse=True)
def _warnings_of_compilation():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autograd.function.Function.* should not be instantiated")
        yield
    torch._dynamo.reset()


def test_vjp_is_one_graph_with_the_same_bits():
    plan = numpy_smh.Plan.build({"a": (8, 6), "b": (6, 5)}, ratio=0.5)
    variables = numpy_smh.initialize(plan)
    cotangents = {"b": np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32)}
    expected = numpy_smh.get_backend("numpy").vjp(plan, variables, cotangents)
    v, g = ({name: torch.from_numpy(x) for name, x in given.items()} for given in (variables, cotangents))
    for x in v.values():
        x.requires_grad_()
    vjp = torch.compile(lambda v, g: smh.vjp(plan, v, g), fullgraph=True, dynamic=False, backend="aot_eager")
    found = vjp(v, g)
    assert list(found) == list(expected)
    for name, x in found.items():
        assert not x.requires_grad
        np.testing.assert_array_equal(x.numpy().view(np.uint32), expected[name].view(np.uint32), err_msg=name)
