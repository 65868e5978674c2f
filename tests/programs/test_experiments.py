"""Methods keep their budgets, are counted right, and train; equal settings give equal results."""

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from experiments import methods, models, sizes, training
from experiments.errors import CannotReachError, ExperimentError
from experiments.pruning import Pruner
from experiments.settings import Settings
from smh.backends import torch as smh

SHAPE = (1, 28, 28)
TINY = Settings("digits", "tiny", "matmul", 0.3, 1e-2, training=200, validation=50, epochs=1, batch=50)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def without_times(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.endswith("seconds") and key != "cell"}


def elements(model: nn.Module) -> int:
    """Count what a model stores, by layer: independently of its state dict."""
    total = 0
    for module in model.modules():
        total += sum(x.numel() for x in module.parameters(recurse=False))
        total += sum(x.numel() for x in module.buffers(recurse=False) if x.dtype == torch.float32)
    return total


@pytest.mark.parametrize(("model", "ratio"), [("cnn", 0.5), ("cnn", 0.03), ("mlp", 0.03)])
@pytest.mark.parametrize("method", [m for m in methods.METHODS if methods.has_ratio(m) and m != "fit"])
def test_stored_variables_are_counted_and_within_budget(model, ratio, method):
    asked = Settings("fashion-mnist", model, method, ratio, 1e-2)
    dense = elements(models.build(model, SHAPE, 10))
    made = methods.make(asked, SHAPE, 10)
    assert made.stored.total <= ratio * dense
    assert methods.size(asked, SHAPE, 10).dense == dense
    if method == "pruned":
        for step in range(1, 11):
            made.hook.after_step(step, 10)
        weights = [layer.weight for layer in made.model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert made.stored.total == dense - zeros
    elif method == "random":
        trained = sum(x.numel() for x in made.model.parameters() if x.requires_grad)
        statistics = sum(x.numel() for x in made.model.buffers() if x.dtype == torch.float32)
        assert made.stored.total == trained + statistics
    else:
        assert made.stored.total == elements(made.model)
        assert made.stored.total > 0.8 * ratio * dense


@pytest.mark.parametrize("method", ["matmul", "kronecker"])
def test_pools_are_the_largest_within_budget(method):
    asked = Settings("fashion-mnist", "cnn", method, 0.1, 1e-2)
    made = methods.make(asked, SHAPE, 10)
    pool = smh.plan_of(made.model).pool
    terms = sum(x.shape[0] if x.ndim == 3 else min(x.shape) for x in methods.pool_parameters(made.model).values()) // 2
    assert made.stored.pool + made.stored.pool // terms > sizes.budget(0.1, 279578) - made.stored.kept, repr(pool)


def test_the_width_is_the_largest_within_budget():
    allowed = 27957
    width = sizes.widest("cnn", SHAPE, 10, allowed)
    wider = min(other for other in models.widths("cnn") if other > width)
    assert sizes.count(sizes.skeleton("cnn", SHAPE, 10, width)) <= allowed
    assert sizes.count(sizes.skeleton("cnn", SHAPE, 10, wider)) > allowed


@pytest.mark.parametrize("model", models.IMAGENET)
def test_networks_for_imagenet_take_images_of_any_size_and_any_width(model):
    shape = (3, 40, 32)
    narrow = models.build(model, shape, 7, 0.1)
    assert narrow(torch.ones(2, *shape)).shape == (2, 7)
    weights = {name: x for name, x in narrow.named_parameters() if x.ndim > 1}
    by_width = list(models.widths(model))
    assert by_width == sorted(by_width, reverse=True)
    assert len(weights) == {"resnet34": 37, "efficientnet_b0": 82}[model]
    for method in ("matmul", "width"):
        asked = Settings("folder", model, method, 0.3, 1e-2)
        assert 0.8 * 0.3 < methods.make(asked, shape, 7).stored.total / methods.size(asked, shape, 7).dense <= 0.3


def test_ranks_are_the_largest_within_budget():
    shapes = {"first": (32, 9), "middle": (64, 576), "last": (10, 216)}
    found = sizes.ranks(shapes, kept=100, allowed=10_000)
    assert 100 + sizes.factorised(shapes, found) <= 10_000
    assert 100 + sizes.factorised(shapes, {**found, "middle": found["middle"] + 1}) > 10_000
    assert found["last"] is None


def test_low_rank_layers_start_with_the_variance_of_plain_ones():
    torch.manual_seed(0)
    asked = Settings("fashion-mnist", "mlp", "lowrank", 0.1, 1e-2)
    first, second = methods.make(asked, SHAPE, 10).model[1]
    variance = (second.weight @ first.weight).var().item()
    assert variance == pytest.approx(1 / (3 * 784), rel=0.05)  # 784,000 products, 44 terms each


def test_what_is_included():
    model = models.build("convnet", SHAPE, 10)
    assert methods.included("all", model) == ["0", "3", "6", "9", "14"]
    assert methods.included("convolutions", model) == ["0", "3", "6", "9"]
    assert methods.included("inner", model) == ["3", "6", "9"]
    made = methods.make(Settings("fashion-mnist", "convnet", "matmul", 0.1, 1e-2, include="inner"), SHAPE, 10)
    assert isinstance(dict(made.model.named_parameters())["14.weight"], nn.Parameter)
    assert made.stored.kept == elements(model) - 276_480


def test_pruning_keeps_the_largest_and_what_is_gone_stays_gone():
    weights = [nn.Parameter(torch.tensor([[5.0, -4.0], [3.0, 2.0]])), nn.Parameter(torch.tensor([[-1.0, 0.5]]))]
    pruner = Pruner(weights, final=2)
    for step in range(1, 11):
        pruner.after_step(step, 10)
        if step == 6:
            assert weights[0].tolist() == [[5.0, -4.0], [0.0, 0.0]]
            with torch.no_grad():
                weights[1].fill_(100.0)
    assert weights[0].tolist() == [[5.0, -4.0], [0.0, 0.0]]
    assert weights[1].tolist() == [[0.0, 0.0]]


def test_a_method_that_cannot_reach_a_ratio_says_the_least_it_can():
    with pytest.raises(CannotReachError) as caught:
        methods.size(Settings("fashion-mnist", "cnn", "lowrank", 0.01), SHAPE, 10)
    least = 650 + (32 + 9) + (64 + 288) + (64 + 576) + (216 + 1024) + (10 + 216)
    assert (caught.value.least, caught.value.budget) == (least, 2795)
    made = methods.make(Settings("fashion-mnist", "cnn", "lowrank", (least + 1) / 279578), SHAPE, 10)
    assert elements(made.model) == least


@pytest.mark.parametrize("method", ["matmul", "hash10", "sum", "pruned"])
def test_too_little_for_anything_is_refused(method):
    with pytest.raises(CannotReachError, match="budget is 279"):
        methods.size(Settings("fashion-mnist", "cnn", method, 0.001), SHAPE, 10)


def interrupt_after(epoch, monkeypatch):
    """Interrupt a run in the middle of the epoch after ``epoch``."""
    batches, steps = training._batches, epoch * 4 + 2

    def cut(*arguments):
        yield from itertools.islice(batches(*arguments), steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_batches", cut)


@pytest.mark.filterwarnings("ignore:the fitted weights are off:UserWarning")  # of a fit of so few terms
@pytest.mark.parametrize(("method", "epoch"), [*((m, 1) for m in methods.METHODS), ("fit", 3), ("pruned", 3)])
def test_every_method_trains_and_an_interrupted_run_gives_the_same(method, epoch, tmp_path, monkeypatch):
    ratio = 0.4 if methods.has_ratio(method) else None
    asked = TINY.replace(method=method, ratio=ratio, dense_lr=1e-2, epochs=5, augment=True)  # `fit` changes in epoch 3
    first = training.run(asked)
    state = tmp_path / "state.pt"
    interrupt_after(epoch, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        training.run(asked, unfinished=state)
    monkeypatch.undo()
    second = training.run(asked, unfinished=state)
    assert not state.exists()
    assert (first.pop("interruptions"), second.pop("interruptions")) == (0, 1)
    assert without_times(first) == without_times(second)
    still = training.run(asked.replace(lr=1e-9, dense_lr=1e-9))
    assert first["training_loss"] < still["training_loss"] - 0.01
    assert first["stored"] - (ratio is None) * first["stored_parts"]["scales"] <= (ratio or 1) * first["dense"]
    assert all(0 < entry["bytes"] < 4 * first["dense"] for entry in first["bytes"])


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 4},
        {"optimizer": "sgd", "lr": 0.1},
        {"scale": "match"},
        {"initial": "uniform"},
        {"weight_decay": 0.5},
        {"weight_decay": 1e-3, "decay": "weights"},
        {"rest_lr": 1e-3},
        {"scale_rate": "relative"},
        {"seed": 1},
        {"augment": True},
        {"warmup": 0.5},
        {"rate": 1e-4},
    ],
    ids=str,
)
def test_every_setting_changes_the_outcome(changes):
    base = TINY.replace(epochs=2)
    assert training.run(base.replace(**changes))["training_loss"] != training.run(base)["training_loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_bits_and_optimiser_are_those_of_the_plan(optimizer):
    made = {bits: methods.make(TINY.replace(bits=bits, optimizer=optimizer), (1, 8, 8), 10) for bits in (8, 16)}
    plans = {bits: smh.plan_of(one.model) for bits, one in made.items()}
    assert {bits: plan.pool.bits for bits, plan in plans.items()} == {8: 8, 16: 16}
    assert made[8].stored == made[16].stored
    assert made[16].about["file_bytes"] - made[8].about["file_bytes"] == made[8].stored.pool
    other = smh.plan_of(methods.make(TINY.replace(optimizer="adamw"), (1, 8, 8), 10).model)
    assert (plans[8] == other) == (optimizer == "adamw")


@pytest.mark.parametrize("scale_rate", ["relative", "same"])
def test_groups_of_the_optimiser(scale_rate):
    made = methods.make(TINY, (1, 8, 8), 10)
    starts = [tensor.initial_scale * 2.0**tensor.kappa for tensor in smh.plan_of(made.model).tensors]
    optimizer = training._optimizer(made.model, TINY.replace(rest_lr=1e-4, weight_decay=0.1, scale_rate=scale_rate))
    found = {
        (group["lr"], group["weight_decay"]): sum(x.numel() for x in group["params"])
        for group in optimizer.param_groups
    }
    scales = {(1e-2 * start, 0.0): 1 for start in starts} if scale_rate == "relative" else {}
    rest = made.stored.kept + (0 if scales else made.stored.scales)
    assert len(starts) == made.stored.scales == 2
    assert found == {(1e-2, 0.1): made.stored.pool, (1e-4, 0.0): rest} | scales


def test_the_rate_rises_and_falls_to_zero():
    rates = [training.rate(step, 100, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rates[-1] < 1e-3


def test_a_loss_that_is_not_finite_ends_a_run():
    found = training.run(TINY.replace(lr=1e30, optimizer="sgd", epochs=3))
    assert found["diverged"]
    assert found["training_loss"] is None
    json.dumps(found, allow_nan=False)


def test_augmented_images_are_shifted_and_mirrored():
    x = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    found = training.augmented(x, torch.Generator().manual_seed(0))
    whole = nn.functional.pad(x[0, 0], (4, 4, 4, 4))
    mirrored = 0
    for image in found[:, 0]:
        windows = [whole[i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
        as_it_is = any(torch.equal(image, window) for window in windows)
        mirrored += not as_it_is
        assert as_it_is or any(torch.equal(image, window.flip(1)) for window in windows)
    assert 10 < mirrored < 40


def halved(model):
    """Return a dense method that makes the weight of a layer half of another parameter."""

    class Half(nn.Module):
        def forward(self, x):
            return x / 2

        def right_inverse(self, x):
            return 2 * x

    layer = list(sizes.layers(model).values())[0]
    parametrize.register_parametrization(layer, "weight", Half())
    return [layer.parametrizations.weight.original, list(sizes.layers(model).values())[1].weight]


def test_weights_that_cannot_be_rounded_are_an_error_before_training(monkeypatch):
    asked = TINY.replace(method="dense", ratio=None)
    dense = methods.METHODS["dense"].make

    def own(name):
        def make(settings, network, choice):
            made = dense(settings, network, choice)
            weights = halved(made.model)
            return dataclasses.replace(made, weights={"all": weights, "one": weights[:1]}.get(name))

        return methods.Method(make)

    monkeypatch.setattr(training._Trainings, "train", lambda *_: pytest.fail("training began"))
    for name, message in ((None, "not a parameter of its model"), ("one", "stores 2,960 weights, but only 2,560")):
        monkeypatch.setitem(methods.METHODS, "dense", own(name))
        with pytest.raises(ExperimentError, match=message):
            training.run(asked)
    monkeypatch.undo()
    monkeypatch.setitem(methods.METHODS, "dense", own("all"))
    entries = training.run(asked.replace(epochs=3))["bytes"]
    assert [entry["bits"] for entry in entries] == [8, 6, 5, 4]
    assert all(4 * 50 + 2960 * 0.2 < entry["bytes"] < 4 * 52 + 2960 for entry in entries)


def test_width_needs_the_numbers_of_units(monkeypatch):
    monkeypatch.delitem(models.UNITS, "tiny")
    with pytest.raises(ExperimentError, match=r"add them as models.UNITS\['tiny'\]"):
        methods.size(TINY.replace(method="width"), (1, 8, 8), 10)


def test_a_method_without_a_size_has_no_ratio(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "own", methods.METHODS["dense"])
    with pytest.raises(ExperimentError, match="every method has a ratio, except dense and integers and own"):
        methods.size(TINY.replace(method="own"), (1, 8, 8), 10)
    assert methods.size(TINY.replace(method="own", ratio=None), (1, 8, 8), 10).choice is None


@pytest.mark.parametrize("method", ["dense", "matmul"])
def test_ratio_and_method_have_to_agree(method):
    with pytest.raises(ExperimentError, match="every method has a ratio, except dense and integers"):
        methods.size(Settings("digits", "tiny", method, 0.1 if method == "dense" else None), (1, 8, 8), 10)
