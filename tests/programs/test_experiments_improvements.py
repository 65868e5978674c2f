"""Distillation, averages, warm starts and faster arithmetic do what their settings say, on runs of a moment."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from experiments import cells, improvements, integers, methods, training
from experiments.data import InMemory
from experiments.errors import ExperimentError
from experiments.improvements import Average
from experiments.results import Results
from experiments.settings import Settings
from experiments.students import Segments
from smh.backends import torch as smh

TINY = Settings("digits", "tiny", "matmul", 0.3, 1e-2, training=200, validation=50, epochs=2, batch=50)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plain(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.endswith("seconds")}


@pytest.mark.filterwarnings("ignore:the fitted weights are off:UserWarning")
@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (TINY, {"teacher": True}),
        (TINY, {"average": 0.5}),
        (TINY.replace(method="fit"), {"fit_share": 0.25}),
        (TINY, {"precision": "bfloat16"}),
        (TINY, {"activation": "segments"}),
        (TINY, {"channel_scale": True}),
        (TINY, {"first_bits": 16}),
    ],
    ids=str,
)
def test_every_setting_changes_the_outcome(base, changes):
    assert plain(training.run(base.replace(**changes))) != plain(training.run(base))


def test_a_new_setting_leaves_old_results_as_they_are():
    fields = dataclasses.asdict(TINY)
    old = {name: fields[name] for name in fields if name not in ("teacher", "average", "fit_share", "precision")}
    line = {"id": "old", "settings": old}
    assert Results([line]).get(TINY) is line
    assert Results([line]).get(TINY.replace(teacher=True)) is None


def test_a_teacher_is_trained_once_for_all_students_of_a_seed(tmp_path, monkeypatch):
    trained = []
    train = training._train

    def counted(settings, *rest):
        trained.append(settings)
        return train(settings, *rest)

    monkeypatch.setattr(training, "_train", counted)
    states = tmp_path / "x.unfinished"
    first = training.run(TINY.replace(teacher=True), unfinished=states / "a.pt")
    again = training.run(TINY.replace(teacher=True), unfinished=states / "a.pt")
    training.run(TINY.replace(teacher=True, ratio=0.4, method="kronecker"), unfinished=states / "b.pt")
    training.run(TINY.replace(teacher=True, seed=1), unfinished=states / "c.pt")
    dense = TINY.replace(method="dense", ratio=None)
    assert [s for s in trained if s.method == "dense"] == [dense, dense.replace(seed=1)]
    assert plain(first) == plain(again)  # a kept teacher gives what a new one gives
    assert len(list((tmp_path / "x.teachers").iterdir())) == 2
    assert first["about"]["teacher"] == training.run(dense)["test_accuracy"]


def test_the_loss_is_half_cross_entropy_and_half_divergence():
    torch.manual_seed(0)
    student, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    x, y = torch.randn(7, 5, 1, 1), torch.randint(3, (7,))
    models = [nn.Sequential(nn.Flatten(), layer) for layer in (student, teacher)]
    found = improvements.loss(models[0], x, y, "float32", models[1])
    z, t = (model(x) for model in models)
    p, q = (torch.softmax(one / 4, 1) for one in (t, z))
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert found.item() == pytest.approx((functional.cross_entropy(z, y) / 2 + 16 * divergence / 2).item(), rel=1e-5)
    same = improvements.loss(models[0], x, y, "float32", models[0])
    assert same.item() == pytest.approx(functional.cross_entropy(z, y).item() / 2, rel=1e-5)
    found.backward()
    assert teacher.weight.grad is None


def test_the_average_is_that_of_the_last_steps():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 8, 0.5)
    for step in range(1, 9):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.after_step(step)
        if step == 6:  # interrupted and continued
            state, average = average.state, Average(model, 8, 0.5)
            average.restore(state)
    average.finish()
    assert model.weight.item() == pytest.approx((5 + 6 + 7 + 8) / 4)


def test_batch_norms_are_those_of_the_training_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten())
    images = InMemory(3 + 2 * torch.randn(1000, 2, 4, 4), torch.zeros(1000, dtype=torch.int64))
    improvements.estimate_norms(model, images, "cpu")
    assert model[0].running_mean.tolist() == pytest.approx(images.x.mean((0, 2, 3)).tolist(), rel=1e-4)
    assert model[0].running_var.tolist() == pytest.approx(images.x.var((0, 2, 3)).tolist(), rel=1e-2)
    assert model[0].momentum == 0.1


def test_pruned_weights_stay_pruned_in_an_average():
    made, _, _ = training._train(
        TINY.replace(method="pruned", average=0.9, epochs=5),
        training.data.load("digits", None, TINY.training, TINY.validation),
        "cpu",
        training.Saved(),
    )
    left = sum(int((x != 0).sum()) for name, x in made.model.named_parameters() if name.endswith("weight"))
    assert left <= made.stored.weights


@pytest.mark.filterwarnings("ignore:the fitted weights are off:UserWarning")
@pytest.mark.parametrize(
    "changes", [{"teacher": True}, {"average": 0.6}, {"method": "fit", "fit_share": 0.3}, {"first_bits": 16}], ids=str
)
def test_an_interrupted_run_gives_the_same(changes, tmp_path, monkeypatch):
    asked, state = TINY.replace(epochs=4, **changes), tmp_path / "x.unfinished" / "state.pt"
    first = training.run(asked)
    batches, count = training._batches, iter(range(14 + (16 if asked.teacher else 0)))

    def cut(*arguments):
        for batch in batches(*arguments):
            if next(count, None) is None:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(training, "_batches", cut)
    with pytest.raises(KeyboardInterrupt):
        training.run(asked, unfinished=state)
    monkeypatch.undo()
    assert state.exists()
    second = training.run(asked, unfinished=state)
    assert (first.pop("interruptions"), second.pop("interruptions")) == (0, 1)
    assert plain(first) == plain(second)


def test_training_runs_the_compiled_model_and_tests_the_plain_one(monkeypatch):
    compiled = []

    def compile_(model):
        assert model.training
        compiled.append(0)

        def run(x):
            compiled[-1] += 1
            return model(x)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    line = training.run(TINY.replace(compile=True))
    assert compiled == [8]
    assert line["test_accuracy"] == training.run(TINY)["test_accuracy"]


def test_segments_are_relu_at_first_and_follow_the_inputs():
    layer = Segments()
    x = torch.linspace(-5, 5, 101)
    for factor in (1, 1000):
        torch.testing.assert_close(layer(factor * x), functional.relu(factor * x))
    with torch.no_grad():
        layer.slopes[3] = 0.25  # of the first negative segment, which is half of the root mean square
        layer.rms.fill_(4.0)
    layer.eval()
    torch.testing.assert_close(layer(torch.tensor([-9.0, -2.0, -1.0, 3.0])), torch.tensor([-0.5, -0.5, -0.25, 3.0]))


def test_a_scale_for_each_output_of_layers_without_a_norm():
    asked = Settings("cifar10", "cnn", "matmul", 0.1, channel_scale=True)
    made = methods.make(asked, (3, 32, 32), 10)
    assert [x.numel() for name, x in made.model.named_parameters() if name.endswith("channel_scale")] == [216, 10]
    assert made.stored.kept == methods.make(asked.replace(channel_scale=False), (3, 32, 32), 10).stored.kept + 226


@pytest.mark.parametrize("order", [integers.shuffled, integers.diagonals, integers.tiles])
def test_an_order_has_every_cell_once(order):
    cells = order(48, torch.Generator().manual_seed(0))
    assert torch.equal(cells.sort().values, torch.arange(48 * 48))
    assert not torch.equal(cells, torch.arange(48 * 48))


def test_orders_of_the_matrix():
    assert integers.diagonals(16, None)[:17].tolist() == [*(17 * k for k in range(16)), 1]
    assert integers.tiles(32, None)[15:18].tolist() == [15, 32, 33]
    made = methods.make(TINY.replace(method="tiles"), (1, 8, 8), 10)
    assert made.stored.total <= 0.3 * 3010
    assert made.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    weights = [layer.weight for layer in made.model.modules() if isinstance(layer, nn.Linear)]
    values = made.model.values().view(64, 64)
    torch.testing.assert_close(
        weights[0].flatten()[:20] / weights[0].flatten()[0], (torch.cat([values[0, :16], values[1, :4]])) / values[0, 0]
    )


@pytest.mark.parametrize("model", ["resnet20", "resnet32"])
def test_weights_do_not_depend_on_autocast(model):
    made = methods.make(Settings("cifar10", model, "matmul", 0.1, 0.1), (3, 32, 32), 10).model
    name = f"{smh.plan_of(made).tensors[3].name.removesuffix('.weight')}.weight"
    layer = made.get_submodule(name.removesuffix(".weight"))
    with torch.no_grad():
        before = layer.weight.clone()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.weight, before)


def test_the_networks_are_those_of_the_paper_on_residual_networks():
    for model, layers, weights in (("resnet20", 20, 269_722), ("resnet32", 32, 464_154)):
        made = methods.make(Settings("cifar10", model, "dense"), (3, 32, 32), 10).model
        assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in made.modules()) == layers
        assert sum(x.numel() for x in made.parameters()) == weights
        assert made(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_untuned_teachers_and_warm_starts_use_the_rate_of_the_run():
    assert TINY.replace(teacher=True).dense.lr == TINY.lr
    assert TINY.replace(teacher=True, dense_lr=1e-3).dense.lr == 1e-3
    cell = cells.Cell("a", "b", "c", TINY.replace(teacher=True))
    assert cells.tunings(cell) == []
    tuned = TINY.replace(teacher=True, lr=None)
    needed = cells.tunings(cells.Cell("a", "b", "c", tuned, tuned))
    assert [(s.method, s.teacher, s.lr) for s in needed] == [("matmul", True, None), ("dense", False, None)]


@pytest.mark.parametrize(
    "wrong", [{"average": 1.5}, {"fit_share": 1.0}, {"precision": "float16"}, {"activation": "tanh"}], ids=str
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ExperimentError, match=next(iter(wrong))):
        TINY.replace(**wrong)


def test_the_file_of_a_run_depends_on_what_differs_from_the_defaults():
    settings = [
        TINY,
        TINY.replace(seed=1),
        TINY.replace(lr=2e-2),
        TINY.replace(teacher=True),
        TINY.replace(compile=True),
    ]
    assert len({one.file_name for one in settings}) == 5
    fields = [(f.name, f.type, f) for f in dataclasses.fields(Settings)]
    later = dataclasses.make_dataclass("Later", [*fields, ("new", int, 7)], bases=(Settings,), frozen=True)
    assert later(**dataclasses.asdict(TINY)).file_name == TINY.file_name
    assert later(**dataclasses.asdict(TINY), new=8).file_name != TINY.file_name


def test_every_setting_can_be_written_as_json():
    assert json.loads(TINY.key)["teacher"] is False
