"""The experiment on small files: its runs, what it counts, and the page."""

import dataclasses

import numpy as np
import pytest
import torch

import smh
from experiments import mnist_rate, results
from experiments.errors import ExperimentError
from experiments.report import mnist_rate as report
from smh.files.coder import encode

CELL = mnist_rate.Cell("lenet300", 0.1, 1e-5, 1e-2, seed=0, epochs=1, batch=50, training=200, data="digits")
ABOUT = {"cpu": "a processor", "versions": {"torch": "2", "smh": "2"}, "changed": False}


def test_the_first_seed_of_all_methods_comes_first():
    cells = list(mnist_rate.cells())
    assert len(set(cells)) == len(cells) == 30
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {(cell.model, cell.ratio is None, cell.weight > 0) for cell in cells[:10]} == {
        (model, *method) for model in ("lenet300", "lenet5") for method in ((False, True), (True, True), (False, False))
    }


@pytest.mark.parametrize(("ratio", "arrays"), [(0.1, 2), (None, 6)])
def test_all_integers_are_counted(ratio, arrays, capsys):
    cell = dataclasses.replace(CELL, ratio=ratio)
    line = mnist_rate.train(cell, None)
    sizes = {name: sum(counts) for name, (_, *counts) in line["counts"].items()}
    assert len(sizes) == arrays
    numbers = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert sum(sizes.values()) == numbers if ratio is None else sum(sizes.values()) <= 0.1 * numbers
    assert line["scales"] == 6
    assert 0.0 <= line["error"] <= 100.0
    assert "epoch 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize("ratio", [0.1, None])
def test_the_rate_is_that_of_the_integers(ratio, bits):
    torch.manual_seed(0)
    cell = dataclasses.replace(CELL, ratio=ratio, bits=bits)
    _, rate, integers = mnist_rate.make(cell, (1, 8, 8), 10)
    counts = {name: mnist_rate._counts(q) for name, q in integers().items()}
    assert rate().item() / 8 == pytest.approx(
        report.stored_bytes({"counts": counts, "scales": 0, "settings": dataclasses.asdict(cell)}), rel=0.03
    )


def test_integers_of_a_pool_are_those_of_files(tmp_path):
    model, _, integers = mnist_rate.make(CELL, (1, 8, 8), 10)
    smh.save(tmp_path / "model", model)
    found = smh.load(tmp_path / "model")
    for name, exponent in zip(("left", "right"), found.plan.pool.exponents, strict=True):
        expected = found.variables[f"pool/{name}"] / np.float32(2.0 ** (exponent - 7))
        assert np.array_equal(integers()[name].numpy(), expected)


def test_runs_are_resumed_and_refused_with_changes(tmp_path, monkeypatch):
    path, ran = tmp_path / "rate.jsonl", []
    monkeypatch.setattr(mnist_rate, "cells", lambda: [CELL, dataclasses.replace(CELL, seed=1)])
    monkeypatch.setattr(mnist_rate, "train", lambda cell, folder: ran.append(cell.seed) or {"error": 1.0})
    monkeypatch.setattr(results, "context", lambda: ABOUT | {"changed": True})
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ExperimentError, match="commit them first"):
            mnist_rate.run(None, path)
        monkeypatch.setattr(results, "context", lambda: ABOUT)
        mnist_rate.run(None, path)
        mnist_rate.run(None, path)
    finally:
        torch.set_num_threads(threads)
    assert ran == [0, 1]


def test_the_page():
    def line(seed, error, **changes):
        settings = dataclasses.asdict(dataclasses.replace(CELL, seed=seed, **changes))
        return {"settings": settings, "error": error, "counts": {"left": [-1, 500, 9000, 500]}, "scales": 2, **ABOUT}

    size = (len(encode(np.repeat([-1, 0, 1], [500, 9000, 500]).astype(np.int8), 8)) + 8) / 1000
    text = report.page([line(0, 2.0), line(1, 3.0), line(0, 4.0, ratio=None, lr=1e-3), line(0, 1.5, weight=0.0)])
    sizes = f"{size:.2f} ({size:.2f} to {size:.2f})"
    assert f"| LeNet-300-100 | pool and rate | 10 % | 1e-05 | 8 | {sizes} | 2.50 (2.00 to 3.00) | 2 |" in text
    assert f"| LeNet-300-100 | rate alone |  | 1e-05 | 8 | {size:.2f} | 4.00 | 1 |" in text
    assert f"| LeNet-300-100 | pool alone | 10 % |  | 8 | {size:.2f} | 1.50 | 1 |" in text
    assert "| LeNet-300-100 | published |  |  |  | 8.56 | 1.9 |  |" in text
    assert "0.01, 0.001 (pool, no pool)" in text
    assert "LeNet-5 |" not in text
