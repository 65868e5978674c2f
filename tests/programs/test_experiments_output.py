"""Runs report missing data once, before any work, and print their progress at once."""

import io
import re
import sys

import pytest
import torch
from rich.console import Console

from experiments import __main__, cells, data, results, runner, training
from experiments.errors import ExperimentError, run_app

CONFIG = """
[run]
data = "digits"
training = 200
validation = 50
epochs = 3
batch = 50
lr = 1e-2
[[table]]
model = "tiny"
methods = ["dense", "matmul"]
ratios = [0.3]
seeds = [0]
"""


class Flushed(io.StringIO):
    """A stream that remembers its content at the last flush."""

    seen = ""

    def flush(self):
        self.seen = self.getvalue()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    data.load.cache_clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_missing_data_is_one_error_before_any_work(tmp_path, monkeypatch, capfd, jobs):
    config = tmp_path / "cifar.toml"
    config.write_text(CONFIG.replace("digits", "cifar10"))
    path = tmp_path / "results.jsonl"
    arguments = ["run", "--config", str(config), "--results", str(path), "--data", str(tmp_path), "--jobs", jobs]
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    monkeypatch.setattr(training, "run", lambda *_: pytest.fail("a run began"))
    with pytest.raises(SystemExit, match="2"):
        run_app(__main__.app)
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"error: no CIFAR-10 in {tmp_path}")
    assert sorted(tmp_path.iterdir()) == [config]


def test_too_few_images_are_an_error_before_any_work(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.replace("training = 200", "training = 2000"))
    read = cells.read(config)
    with pytest.raises(ExperimentError, match="the training set has 1,437 images; got training = 2,000"):
        runner.Runner(read, tmp_path / "results.jsonl", Console(quiet=True)).run(list(read.cells), 1)


def test_a_header_and_a_line_for_each_epoch(tmp_path, monkeypatch):
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG)
    read = cells.read(config)
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "stdout", stream := Flushed())
    assert runner.Runner(read, path, Console(file=stream, width=40)).run(list(read.cells), 1) == 0
    lines = stream.seen.splitlines()
    assert lines[0] == f"0 of 2 cells of tiny are done; results: {path}"
    assert lines[2].split() == ["done", "test", "accuracy", "seconds", "run"]
    epochs = [[word for word in line.split() if word.isdigit()] for line in lines if "epoch " in line]
    assert epochs == [["1", "3"], ["2", "3"], ["3", "3"]] * 2
    assert [line.split()[0] for line in lines[3:] if "epoch " not in line] == ["1/2", "2/2"]
    for line in results.read(path):  # the last epoch shows the loss that is recorded
        assert f"loss {line['training_loss']:.4f}" in stream.seen


def test_the_lines_are_flushed_while_a_run_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream := Flushed())
    epochs = training._Epochs("a run", 2)
    losses = []
    for loss in (1.0, 3.0, 5.0):
        losses.append(loss)
        epochs.show(losses, 3)
        assert stream.seen.count("a run") == len(losses) // 2 + (len(losses) == 3)
    assert "epoch 1 of 1.5  loss 2.0000" in stream.seen
    assert "epoch 1.5 of 1.5  loss 5.0000" in stream.seen


def test_the_page_names_all_columns(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.replace("epochs = 3", "epochs = 1").replace("[0.3]", "[0.3, 0.01]"))
    read = cells.read(config)
    runner.Runner(read, tmp_path / "results.jsonl", Console(quiet=True)).run(list(read.cells), 1)
    page = (__main__.HERE.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^- (`[^:]*):", page.partition("## Columns of the results")[2], re.MULTILINE)
    columns = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert columns == {name for line in results.read(tmp_path / "results.jsonl") for name in line}
