"""The experiment on tuning without data: its runs, and the page."""

import dataclasses

import pytest
import torch

from experiments import datafree, results, training
from experiments.errors import ExperimentError
from experiments.report import datafree as report

CELL = datafree.Cell(
    0,
    0.5,
    "samples",
    data="digits",
    training=1400,
    epochs=4,
    batch=50,
    dense_lr=1e-2,
    n=100,
    made=30,
    steps=60,
    lr=5e-3,
)
ABOUT = {"cpu": "a processor", "versions": {"torch": "2", "smh": "2"}, "changed": False}


def test_the_first_seed_of_all_methods_comes_first():
    cells = list(datafree.cells())
    assert len(set(cells)) == len(cells) == 27
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {(cell.ratio, cell.inputs) for cell in cells[:9]} == {
        (None, None), *((ratio, inputs) for ratio in (0.5, 0.3) for inputs in (None, "samples", "images", "noise"))
    }  # fmt: skip


def test_tuning_brings_accuracy_back(capsys, monkeypatch):
    monkeypatch.setattr(training, "augmented", lambda x, generator: x)  # shifts are too large for 8 x 8 pixels
    lines = {
        inputs: datafree.run_cell(dataclasses.replace(CELL, ratio=ratio, inputs=inputs), None)
        for ratio, inputs in ((None, "dense"), (0.5, None), (0.5, "images"), (0.5, "samples"))
    }
    accuracies = {inputs: line["accuracy"] for inputs, line in lines.items()}
    assert accuracies["dense"] > 80.0
    assert accuracies["images"] > accuracies[None] + 10.0
    assert lines["images"]["fit_error"] == lines[None]["fit_error"] > 0.2
    assert "epoch 4 of 4" in capsys.readouterr().out
    # The same cell gives the same result, also from other objects.
    datafree._dense.cache_clear()
    datafree._inputs.cache_clear()
    assert datafree.run_cell(CELL, None)["accuracy"] == accuracies["samples"]


def test_unknown_inputs():
    with pytest.raises(ExperimentError, match="inputs must be one of samples, images, noise; got 'others'"):
        datafree.run_cell(dataclasses.replace(CELL, inputs="others", epochs=1), None)


def test_runs_are_resumed_and_refused_with_changes(tmp_path, monkeypatch):
    path, ran = tmp_path / "datafree.jsonl", []
    monkeypatch.setattr(datafree, "run_cell", lambda cell, folder: ran.append(cell) or {"accuracy": 1.0, "seconds": 2})
    monkeypatch.setattr(results, "context", lambda: ABOUT | {"changed": True})
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ExperimentError, match="commit them first"):
            datafree.run(None, path)
        monkeypatch.setattr(results, "context", lambda: ABOUT)
        datafree.run(None, path, seeds=1)
        assert len(ran) == 9
        datafree.run(None, path)
        datafree.run(None, path)
    finally:
        torch.set_num_threads(threads)
    assert ran == list(datafree.cells())


def test_the_page():
    def line(seed, accuracy, **changes):
        settings = dataclasses.asdict(dataclasses.replace(datafree.Cell(seed), **changes))
        return {"settings": settings, "accuracy": accuracy, "fit_error": 0.25, **ABOUT}

    lines = [line(0, 70.0), line(0, 20.0, ratio=0.3), line(0, 60.0, ratio=0.3, inputs="samples")]
    text = report.page(lines)
    assert "| dense |  |  | 70.00 | 1 |" in text
    assert "| fit alone | 30 % | 0.25 | 20.00 | 1 |" in text
    assert "| fit, tuned on samples | 30 % | 0.25 | 60.00 | 1 |" in text
    assert "tuned on noise" not in text
    assert "One seed" in text
    text = report.page([*lines, line(1, 72.0)])
    assert "| dense |  |  | 71.00 (70.00 to 72.00) | 2 |" in text
    assert "One seed" not in text
