"""Files of ExecuTorch, run by its own runtime: the weights are those of the model, bit for bit."""

import sys

import pytest

import smh
import smh.export
from conformance.bits import assert_same_bits
from smh import pools

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from tests.backends.torch.exported import IMAGES, POOLS, cnn  # noqa: E402

ALL_POOLS = {**POOLS, "pairs": pools.Matmul(bits=2)}
X = torch.linspace(-1, 1, 80).reshape(2, 40)


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("executorch.runtime", reason="ExecuTorch is not installed").Runtime.get()


class Backwards(nn.Module):
    """Uses its layers in another order than the one in which it has them."""

    def __init__(self, function=torch.relu):
        super().__init__()
        self.last, self.first, self.function = nn.Linear(30, 20), nn.Linear(40, 30), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def check(runtime, path, sizes, model, *args, **kwargs):
    """Run a file, and check outputs, weights and sizes."""
    y, *weights = runtime.load_program(path).load_method("forward").execute([*args, *kwargs.values()])
    plain = smh.materialize(model).state_dict()
    names = [tensor.name for tensor in smh.plan_of(model).tensors]
    assert len(weights) == len(names)
    for name, w in zip(names, weights, strict=True):
        assert_same_bits(w.numpy(), plain[name].numpy(), name)
    with torch.no_grad():
        wanted = model(*args, **kwargs)
    torch.testing.assert_close(y, wanted if torch.is_tensor(wanted) else wanted.logits, rtol=1e-4, atol=1e-5)
    assert sizes.file == path.stat().st_size
    assert 0 < sizes.integers <= sizes.held <= 1.1 * (sizes.integers + sizes.kept)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pool", ALL_POOLS)
def test_executorch_builds_the_weights(pool, frozen, runtime, tmp_path):
    model, path = cnn(pool=ALL_POOLS[pool]), tmp_path / "model.pte"
    given = smh.freeze(model) if frozen else model
    sizes = smh.export.executorch(path, given, (IMAGES,), weights=True)
    check(runtime, path, sizes, model, IMAGES)


def test_a_language_model(runtime, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=300, n_positions=32)
    torch.manual_seed(0)
    model, path = smh.compress(transformers.GPT2LMHeadModel(config), ratio=0.1).eval(), tmp_path / "gpt2.pte"
    given = {"input_ids": torch.arange(12).reshape(1, 12), "use_cache": False}
    sizes = smh.export.executorch(path, model, (), given, weights=True)
    check(runtime, path, sizes, model, **given)


def test_weights_come_in_the_order_of_the_parameters(runtime, tmp_path):
    model, path = smh.compress(Backwards(), ratio=0.1), tmp_path / "model.pte"
    check(runtime, path, smh.export.executorch(path, model, (X,), weights=True), model, X)
    smh.export.executorch(path, model, (X,))
    assert len(runtime.load_program(path).load_method("forward").execute([X])) == 1


def test_batches_of_several_sizes_need_a_largest(runtime, tmp_path):
    model, path = smh.compress(Backwards(), ratio=0.1), tmp_path / "model.pte"
    with pytest.raises(smh.ExportError, match="max="):
        smh.export.executorch(path, model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert not path.exists()
    batch = torch.export.Dim("batch", max=4)
    sizes = smh.export.executorch(path, model, (X,), dynamic_shapes=({0: batch},), weights=True)
    for x in (X[:1], X.repeat(2, 1)):
        check(runtime, path, sizes, model, x)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: torch.histc(x[0], 30), "aten.histc"),
        (lambda x: x.sum(dtype=torch.complex64).real + x, "aten.view_as_real"),
    ],
)
def test_what_executorch_lacks_is_named_and_nothing_is_written(function, what, runtime, tmp_path):
    model = smh.compress(Backwards(function), ratio=0.1)
    with pytest.raises(smh.ExportError, match=what):
        smh.export.executorch(tmp_path / "model.pte", model, (X,))
    assert list(tmp_path.iterdir()) == []


def test_operators_that_the_runtime_lacks_are_named(runtime, tmp_path, monkeypatch):
    registry = type(runtime.operator_registry)
    monkeypatch.setattr(registry, "operator_names", {"aten::addmm.out"})
    with pytest.raises(smh.ExportError, match=r"has no .*aten::abs\.out"):
        smh.export.executorch(tmp_path / "model.pte", smh.compress(Backwards(), ratio=0.1), (X,))
    assert list(tmp_path.iterdir()) == []


def test_executorch_refuses_what_is_not_compressed(tmp_path):
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    with pytest.raises(smh.PlanError, match="the model is not compressed; compress it first"):
        smh.export.executorch(tmp_path / "model.pte", Backwards(), (X,))


def test_without_executorch_its_extra_is_named(tmp_path, monkeypatch):
    class Hidden:
        def find_spec(self, name, *_):
            if name == "executorch":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[executorch\]"):
        smh.export.executorch(tmp_path / "model.pte", smh.compress(Backwards(), ratio=0.1), (X,))
