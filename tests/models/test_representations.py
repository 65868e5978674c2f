"""What compressed models print of themselves, and the kinds and trained numbers of their reports."""

import copy
import math
import pickle

import pytest

import smh

LINE = "smh: {plan.num_weights:,} weights generated from {plan.num_variables:,} variables"


def test_modules_mark_what_is_generated():
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    nn = torch.nn
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(64, 256), nn.MultiheadAttention(8, 2))
    model = smh.compress(plain, ratio=0.2, exclude=["3.out_proj.weight"])
    lines = repr(model).splitlines()
    assert lines[:5] == [
        "Sequential(",
        f"  {LINE.format(plan=smh.plan_of(model))} (ratio {smh.plan_of(model).ratio:.4g}, matmul pool, 8 bits), "
        "residency 'full', gradients 'exact'",
        "  (0): Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), weight=generated)",
        f"  (1): {plain[1]!r}",
        "  (2): Linear(in_features=64, out_features=256, bias=True, weight=generated)",
    ]
    assert "    in_proj_weight=generated" in lines
    assert f"    (out_proj): {plain[3].out_proj!r}" in lines
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(other) == repr(model)
    assert repr(smh.materialize(model)) == repr(plain)
    alone = smh.compress(nn.Linear(40, 30), ratio=0.1)
    assert repr(alone).splitlines()[1] == "  in_features=40, out_features=30, bias=True, weight=generated"


def test_modules_of_all_kinds_of_weights_print():
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    nn = torch.nn
    lists = nn.ParameterList([torch.randn(30, 30), torch.randn(3)])
    model = smh.compress(nn.ModuleList([nn.LSTM(8, 10), lists, nn.Embedding(50, 8)]), ratio=0.3)
    text = repr(model)
    assert "LSTM(8, 10, weight_ih_l0=generated, weight_hh_l0=generated)" in text
    assert "0=generated" in text
    assert "Embedding(50, 8, weight=generated)" in text


def test_reports_of_modules_know_layers_and_trained_numbers():
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    nn = torch.nn
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(64, 256), nn.Embedding(20, 30))
    plain[3].requires_grad_(False)

    def trained(model):
        return sum(x.numel() for x in model.parameters() if x.requires_grad)

    model = smh.compress(plain, ratio=0.2)
    report = smh.report(model)
    assert (report.num_trained_before, report.num_trained) == (trained(plain), trained(model))
    names = [name for name, _ in plain.named_parameters()] + [name for name, _ in plain.named_buffers()]
    assert {line.name: line.kind for line in report.tensors} == {
        name: type(plain[int(name[0])]).__name__ for name in names
    }


def test_sweeps_leave_models_alone(monkeypatch):
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(1000, 2000), torch.nn.Linear(2000, 100))
    before = copy.copy(vars(model))
    monkeypatch.setattr(copy, "deepcopy", None)
    sweep = smh.sweep(model, [0.05, 0.1], exclude=["1.weight"])
    assert vars(model) == before
    assert sweep.num_weights == 2_000_000
    monkeypatch.undo()
    with torch.device("meta"):
        plan = smh.plan_of(smh.compress(model, 0.1, exclude=["1.weight"]))
    assert sweep.lines[1].num_variables == plan.num_variables
    with pytest.raises(smh.PlanError, match="compressed already"):
        smh.sweep(smh.compress(torch.nn.Linear(40, 30), 0.1))
    with pytest.raises(smh.PlanError, match="sweep has no option 'ratio'"):
        smh.sweep(model, ratio=0.1)


def test_pytrees_and_layers_of_jax():
    jax = pytest.importorskip("jax", reason="the jax backend needs jax")
    params = {"fc": {"kernel": jax.numpy.ones((30, 20)), "bias": jax.numpy.zeros(20)}, "n": jax.numpy.arange(3)}
    compressed = smh.compress(params, ratio=0.2)
    assert repr(compressed).startswith(f"Compressed({LINE.format(plan=compressed.plan).removeprefix('smh: ')} (ratio")
    assert repr(compressed).endswith("2 kept arrays)")
    report = smh.report(compressed)
    assert {line.kind for line in report.tensors} == {""}
    assert (report.num_trained, report.num_trained_before) == (compressed.plan.num_variables + 20, 620)
    nnx = pytest.importorskip("flax.nnx", reason="needs flax")
    model = nnx.Sequential(nnx.BatchNorm(16, rngs=nnx.Rngs(0)), nnx.Linear(64, 100, rngs=nnx.Rngs(0)))
    report = smh.report(smh.compress(model, ratio=0.2))
    assert {line.kind for line in report.tensors} == {"BatchNorm", "Linear"}
    assert report.num_trained_before == 6500 + 32  # statistics are not trained
    assert {line.kind for line in smh.report(smh.compress(nnx.state(model), ratio=0.2)).tensors} == {""}


def test_keras_models_say_that_they_are_compressed():
    keras = pytest.importorskip("keras", reason="the keras backend needs keras")
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.BatchNormalization()]
    plain = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(100)])
    model = smh.compress(plain, ratio=0.1)
    line = LINE.format(plan=smh.plan_of(model))
    assert line in repr(model)
    for call in (lambda show: model.summary(print_fn=show), lambda show: model.summary(80, None, show)):
        lines = []
        call(lambda text, lines=lines, **options: lines.append(text))
        assert "Total params" in lines[0]
        assert lines[-1].strip().startswith(line)
    report = smh.report(model)
    assert report.num_trained_before == sum(math.prod(x.shape) for x in plain.trainable_variables)
    assert report.num_trained == sum(math.prod(x.shape) for x in model.trainable_variables)
    kinds = [line.kind for line in report.tensors]
    assert kinds == ["Conv2D"] * 2 + ["BatchNormalization"] * 4 + ["Dense"] * 2
