"""The experiment on learning rates: which runs it asks for, what it takes from them, and the page."""

import dataclasses
import re

import pytest
import torch

from experiments import elsewhere, knob, training
from experiments.errors import ExperimentError
from experiments.report import knob as report
from smh.errors import VariableError

ABOUT = {"cpu": "a processor", "versions": {"torch": "2", "smh": "2"}}
BASE = knob.BASES["digits"]


def line(settings, test, validation=None, framework="torch", diverged=False):
    validation = test if validation is None else validation
    found = {"test_accuracy": test, "validation_accuracy": validation, "diverged": diverged}
    return {"framework": framework, "settings": dataclasses.asdict(settings), **found, **ABOUT}


def tuned(best_dense, best_compressed):
    """Return lines of the first seed: validation accuracies are 90, and 95 at the best rates; tests 10 lower."""
    lines = []
    for _, settings in knob.tuning("digits"):
        best = best_dense if settings.method == "dense" else best_compressed
        lines.append(line(settings, 85.0 if settings.lr == best else 80.0, 95.0 if settings.lr == best else 90.0))
    return lines


def test_every_rate_is_run_once_for_both_models():
    settings = [settings for _, settings in knob.tuning("mnist")]
    assert len(set(settings)) == len(settings) == 2 * sum(map(len, knob.RATES.values()))
    assert {(s.data, s.model, s.seed, s.warmup) for s in settings} == {("mnist", "cnn", 0, 0.0)}


def test_rates_are_those_of_validation_and_a_run_that_diverged_is_never_best():
    lines = tuned(0.1, 0.3)
    runs = knob.Runs(lines)
    sgd = BASE.replace(optimizer="sgd")
    assert (runs.best(sgd), runs.best(knob.compressed(sgd))) == (0.1, 0.3)
    runs = knob.Runs([*lines, line(sgd.replace(lr=0.1), 99.0, diverged=True)])
    assert runs.best(sgd) == 0.03  # the first of equal ones
    with pytest.raises(ExperimentError, match="run first what finds the rate"):
        knob.Runs([]).best(sgd)


def test_repeated_runs_are_those_of_the_best_rates():
    runs = knob.Runs(tuned(0.1, 0.3))
    found = [(f, s.method, s.lr, s.seed) for f, s in knob.repeated("digits", runs, ["jax"]) if s.optimizer == "sgd"]
    one = [("jax", "dense", 0.1), ("jax", "matmul", 0.1), ("jax", "matmul", 0.3)]
    assert found == [(*run, seed) for seed in (0, 1, 2) for run in one]


def test_the_page():
    dense = BASE.replace(optimizer="sgd", lr=0.1)
    ours, own = knob.compressed(dense), knob.compressed(dense.replace(lr=0.3))
    jax = [line(x, test, framework="jax") for x, test in ((dense, 97.0), (ours, 94.25), (own, 96.0))]
    more = [line(ours.replace(seed=1), 0.0, framework="jax", diverged=True)]  # of a seed that is not complete
    text = report.page([*tuned(0.1, 0.3), *jax, *more])
    assert "| digits, MLP | JAX | SGD, momentum 0.9 | 0.1 | 97.00 | 94.25 | 0.3 | 96.00 | −1.75 | 1 | 0 |" in text
    assert "| digits, MLP | PyTorch | SGD, momentum 0.9 | 0.1 | 85.00 | 80.00 | 0.3 | 85.00 | −5.00 | 1 | 0 |" in text
    assert "Against the best rate, at most 5.00 points are lost. No run at the dense rate ended in NaN." in text
    assert re.search(r"\| digits, MLP \| compressed \| 90.00 \| 90.00 \| 95.00 \| 90.00 \|", text)
    assert "MNIST" not in text
    assert "| Keras |" not in text
    complete = [line(x.replace(seed=1), 95.0, framework="jax") for x in (dense, own)]
    text = report.page([*tuned(0.1, 0.3), *jax, *more, *complete])
    assert "| 0.1 | 96.00 | 47.12 | 0.3 | 95.50 | −48.38 | 2 | 1 |" in text
    assert "1 run at the dense rate ended in NaN." in text


def test_runs_are_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(knob, "SEEDS", (0,))
    monkeypatch.setattr(knob, "RATES", {"adamw": (1e-2,), "sgd": (0.1,)})
    monkeypatch.setitem(knob.BASES, "digits", BASE.replace(model="tiny", training=100, validation=50, epochs=1))
    monkeypatch.setattr(elsewhere, "run", lambda framework, s, folder: {"test_accuracy": 1.0, "diverged": False})
    path, threads = tmp_path / "knob.jsonl", torch.get_num_threads()
    try:
        knob.run(None, None, path)
        before = path.read_text()
        assert before.count("\n") == 2 * 2 + 2 * 2 * 2
        knob.run(None, None, path)
    finally:
        torch.set_num_threads(threads)
    assert path.read_text() == before
    knob.report(path, tmp_path / "page.md")
    assert "digits, MLP" in (tmp_path / "page.md").read_text()


def test_what_does_not_run_elsewhere_is_refused():
    for framework, settings in (("torch", BASE), ("jax", BASE.replace(model="tiny"))):
        with pytest.raises(ExperimentError, match="only mlp and cnn"):
            elsewhere.run(framework, settings)


@pytest.mark.parametrize("framework", ["jax", "keras"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_other_frameworks_learn(framework, model, monkeypatch):
    monkeypatch.setattr(elsewhere, "_UNITS", (60, 60))
    settings = knob.compressed(BASE.replace(model=model, lr=3e-2, training=200, epochs=4, batch=20))
    found = elsewhere.run(framework, settings)
    assert found["training_accuracy"] > 60  # of ten classes
    assert found["test_accuracy"] > 50
    assert not found["diverged"]


def test_a_model_that_diverged_is_a_result(monkeypatch):
    found = training.run(knob.compressed(BASE.replace(model="tiny", optimizer="sgd", lr=1e6, training=200)))
    assert (found["diverged"], found["training_loss"]) == (True, None)

    def poisoned(x):
        raise VariableError("training has diverged")

    model = torch.nn.Module()
    model.forward = poisoned
    images = training.data.load("digits", None, 100, 50).test
    assert training.accuracy(model, images) == 0.0
