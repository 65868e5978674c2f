"""Exports of PyTorch models, run by their own runtimes: the weights are those of the model, bit for bit."""

import subprocess
import sys

import numpy as np
import pytest

import smh
import smh.export
from conformance.bits import assert_same_bits

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from torch import nn  # noqa: E402

from tests.backends.torch.exported import IMAGES, POOLS, cnn  # noqa: E402


def weights_of(model):
    plain = smh.materialize(model).state_dict()
    return {tensor.name: plain[tensor.name].numpy() for tensor in smh.plan_of(model).tensors}


def run_onnx(path, inputs, optimized=True):
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_outputs()]
    given = dict(zip([x.name for x in session.get_inputs()], inputs, strict=True))
    return dict(zip(names, session.run(None, given), strict=True))


def check_weights(found, model):
    expected = weights_of(model)
    assert found.keys() == expected.keys()
    for name, w in expected.items():
        assert_same_bits(np.asarray(found[name]), w, name)


def check_sizes(sizes, path, model):
    assert sizes.file == path.stat().st_size
    assert sizes.held <= 1.1 * (sizes.integers + sizes.kept)
    assert sizes.held < sum(w.nbytes for w in weights_of(model).values()) / 15  # 16 bits at ratio 0.1


@pytest.mark.parametrize("pool", POOLS)
def test_onnx_runtime_builds_the_weights(pool, tmp_path):
    model, path = cnn(pool=POOLS[pool]), tmp_path / "model.onnx"
    with torch.no_grad():
        wanted = model(IMAGES).numpy()
    sizes = smh.export.onnx(path, model, (IMAGES,), weights=True, input_names=["x"], output_names=["y"])
    for optimized in (True, False):
        found = run_onnx(path, [IMAGES.numpy()], optimized)
        np.testing.assert_allclose(found.pop("y"), wanted, rtol=1e-4, atol=1e-5)
        check_weights({name.removeprefix("weight:"): w for name, w in found.items()}, model)
    check_sizes(sizes, path, model)


def test_bytes_are_multiplied_in_onnx_with_zero_points(tmp_path):
    onnx = pytest.importorskip("onnx")
    smh.export.onnx(tmp_path / "model.onnx", cnn(), (IMAGES,))
    graph = onnx.load(tmp_path / "model.onnx").graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert products
    assert all(len(node.input) == 4 for node in products)
    assert {x.data_type for x in graph.initializer if x.name in products[0].input[:2]} <= {onnx.TensorProto.UINT8}


def language_model():
    """Return a small language model of transformers, compressed, its inputs and its logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=300, n_positions=32)
    torch.manual_seed(0)
    model = smh.compress(transformers.GPT2LMHeadModel(config), ratio=0.1).eval()
    given = {"input_ids": torch.arange(12).reshape(1, 12), "use_cache": False}
    with torch.no_grad():
        return model, given, model(**given).logits


def check_bytes(sizes, path):
    """Check that a file holds little besides integers, kept tensors and the graph."""
    assert sizes.file == path.stat().st_size
    assert sizes.file <= 1.1 * (sizes.integers + sizes.kept + sizes.graph)
    assert sizes.held <= 1.1 * (sizes.integers + sizes.kept)


def test_a_language_model_in_onnx(tmp_path):
    model, given, logits = language_model()
    path = tmp_path / "gpt2.onnx"
    sizes = smh.export.onnx(path, smh.freeze(model), (), given, weights=True, output_names=["logits"])
    found = run_onnx(path, [given["input_ids"].numpy()])
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=1e-3, atol=1e-4)
    check_weights({name[7:]: w for name, w in found.items() if name.startswith("weight:")}, model)
    check_bytes(sizes, path)


def compile_or_skip(path, model, *given):
    """Write a package of compiled code with weights as outputs, or skip the test without a C++ compiler."""
    try:
        return smh.export.aot_inductor(path, model, *given, weights=True)
    except smh.ExportError as error:
        if "C++ compiler" not in str(error):
            raise
        return pytest.skip("no C++ compiler")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_language_model_in_a_program_and_a_package(compiled, tmp_path):
    model, given, logits = language_model()
    path = tmp_path / "gpt2.pt2"
    if compiled:
        sizes = compile_or_skip(path, model, (), given)
        run = torch._inductor.aoti_load_package(str(path))
    else:
        sizes = smh.export.torch_export(path, smh.freeze(model), (), given, weights=True)
        run = torch.export.load(path).module()
    outputs, weights = run(**given)
    torch.testing.assert_close(outputs["logits"], logits, rtol=1e-3, atol=1e-4)
    check_weights(weights, model)
    check_bytes(sizes, path)


_ALONE = """
import sys, torch
sys.modules["smh"] = None  # an import would fail
y, weights = torch.export.load(sys.argv[1]).module()(torch.load(sys.argv[2]))
torch.save((y, weights), sys.argv[3])
"""


def test_a_program_of_torch_export_needs_no_smh(tmp_path):
    model, path = cnn(), tmp_path / "model.pt2"
    sizes = smh.export.torch_export(path, model, (IMAGES,), weights=True)
    torch.save(IMAGES, tmp_path / "x")
    subprocess.run([sys.executable, "-c", _ALONE, path, tmp_path / "x", tmp_path / "y"], check=True, timeout=300)
    y, weights = torch.load(tmp_path / "y")
    with torch.no_grad():
        torch.testing.assert_close(y, model(IMAGES))
    check_weights(weights, model)
    check_sizes(sizes, path, model)


@pytest.mark.parametrize("pool", ["nibbles", "wide", "kronecker", "hash", "sum"])
def test_programs_of_torch_export_build_the_weights_of_all_pools(pool, tmp_path):
    model, path = cnn(pool=POOLS[pool]), tmp_path / "model.pt2"
    smh.export.torch_export(path, smh.freeze(model), (IMAGES,), weights=True)
    _, weights = torch.export.load(path).module()(IMAGES)
    check_weights(weights, model)


@pytest.mark.parametrize("by_name", [False, True])
def test_batches_of_all_sizes(by_name, tmp_path):
    model, path = cnn(), tmp_path / "model.onnx"
    batch = {0: torch.export.Dim("batch")}
    shapes = {"input": batch} if by_name else (batch,)
    smh.export.onnx(path, model, (IMAGES,), dynamic_shapes=shapes)
    (found,) = run_onnx(path, [IMAGES.repeat(3, 1, 1, 1).numpy()]).values()
    assert found.shape == (6, 10)


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(40, 30)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    path = tmp_path / "model"
    plain = nn.Linear(40, 30)
    for write in (smh.export.onnx, smh.export.torch_export, smh.export.aot_inductor):
        with pytest.raises(smh.PlanError, match="not a compressed|no compressed|not compressed"):
            write(path, plain, (torch.ones(1, 40),))
        with pytest.raises(smh.PlanError, match="args must be a tuple"):
            write(path, smh.compress(plain, ratio=0.1), torch.ones(1, 40))
        with pytest.raises(smh.ExportError):
            write(path, smh.compress(Branches(), ratio=0.1), (torch.ones(1, 40),))
    broken = smh.compress(plain, ratio=0.1)
    with torch.no_grad():
        broken.pool_left.fill_(float("inf"))
    with pytest.raises(smh.VariableError, match="not finite"):
        smh.export.onnx(path, broken, (torch.ones(1, 40),))
    with pytest.raises(smh.ExportError, match="output_names"):
        smh.export.onnx(path, smh.compress(plain, ratio=0.1), (torch.ones(1, 40),), output_names=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_buffers_that_no_file_of_the_model_holds_are_kept_tensors(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(64, 64)
            self.register_buffer("table", torch.ones(2000, 64), persistent=False)

        def forward(self, x):
            return self.dense(x + self.table[: x.shape[1]])

    model, inputs = smh.compress(Positions(), ratio=0.1).eval(), (torch.ones(1, 5, 64),)
    found = smh.export.onnx(tmp_path / "model.onnx", model, inputs)
    assert smh.export.torch_export(tmp_path / "model.pt2", model, inputs).kept == found.kept > 512_000
    (output,) = run_onnx(tmp_path / "model.onnx", [inputs[0].numpy()]).values()
    np.testing.assert_allclose(output, model(*inputs).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [17, 99, "20", True])
def test_a_file_has_the_opset_that_was_asked_for_or_is_not_written(opset, tmp_path):
    onnx = pytest.importorskip("onnx")
    for known in (18, 23):
        smh.export.onnx(tmp_path / "model.onnx", cnn(), (IMAGES,), opset=known)
        assert [x.version for x in onnx.load(tmp_path / "model.onnx").opset_import if not x.domain] == [known]
    with pytest.raises(smh.PlanError, match="opset must be an integer from 18"):
        smh.export.onnx(tmp_path / "other.onnx", cnn(), (IMAGES,), opset=opset)
    assert not (tmp_path / "other.onnx").exists()
