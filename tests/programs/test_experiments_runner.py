"""Runs are resumed, ordered and tuned as the configuration says; what fails stops nothing."""

import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import cells, results, runner, settings, training
from experiments.__main__ import HERE
from experiments.errors import ExperimentError
from experiments.results import Results
from experiments.saved import Saved

CONFIG = """
[run]
data = "digits"
training = 200
validation = 50
epochs = 1
batch = 50
[tuning]
ratios = [0.3]
[tuning.rates]
adamw = [3e-3, 1e-2]
[[table]]
model = "tiny"
methods = ["dense", "matmul", "width"]
ratios = [0.3, 0.03]
seeds = [0, 1]
"""


TWICE = """
[[table]]
model = "tiny"
epochs = 2
methods = ["dense"]
ratios = []
seeds = [0]
"""
QUESTION = """
[[question]]
name = 'x'
title = 'X?'
model = 'tiny'
seeds = [0]
variant = [{ label = 'a', ratio = 0.3 }, { label = 'b', ratio = 0.3, bits = 4 }]
"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def configuration(folder: Path, text: str = CONFIG) -> cells.Config:
    path = folder / "tiny.toml"
    path.write_text(text)
    return cells.read(path)


def run(config: cells.Config, path: Path, chosen=None) -> runner.Runner:
    made = runner.Runner(config, path, Console(quiet=True))
    made.run(list(config.cells) if chosen is None else chosen, 1)
    return made


def without_times(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.endswith("seconds") and key != "cell"}


def test_runs_are_resumed_where_they_stopped(tmp_path):
    config = configuration(tmp_path)
    whole = run(config, tmp_path / "whole.jsonl").found.lines
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(whole)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:4]) + lines[4][:50])  # as if killed while the fifth was written
    resumed = run(config, cut)
    assert cut.read_text().splitlines(keepends=True)[:4] == lines[:4]
    assert {key: without_times(line) for key, line in resumed.found.lines.items()} == {
        key: without_times(line) for key, line in whole.items()
    }
    assert len(results.read(cut)) == len(lines)
    before = cut.read_text()
    run(config, cut)
    assert cut.read_text() == before


def test_the_order_is_tuning_then_seeds(tmp_path):
    config = configuration(tmp_path)
    path = tmp_path / "results.jsonl"
    run(config, path)
    lines = results.read(path)
    tuning = [line["cell"].startswith("tuning/") for line in lines if "cannot" not in line]
    assert tuning == sorted(tuning, reverse=True)
    after = [
        line["settings"]["seed"] for line in lines if not line["cell"].startswith("tuning/") and "cannot" not in line
    ]
    assert after == sorted(after)
    assert [runner.status(cell, config, Results(lines)) for cell in config.cells].count("cannot") == 2


def test_the_best_rate_is_chosen_by_validation_and_taken_by_all_ratios(tmp_path):
    config = configuration(tmp_path)
    lines = run(config, tmp_path / "results.jsonl").found.lines.values()
    for method in ("dense", "width"):
        of = [line for line in lines if line["settings"]["method"] == method]
        tuned = [line for line in of if line["settings"]["seed"] == 0 and line["settings"]["ratio"] in (None, 0.3)]
        best = max(tuned, key=lambda line: line["validation_accuracy"])["settings"]["lr"]
        assert {line["settings"]["lr"] for line in of if line not in tuned} == {best}


def test_an_error_is_noted_elsewhere_and_the_rest_goes_on(tmp_path, monkeypatch):
    config = configuration(tmp_path)
    real = training.run

    def failing(asked, *rest):
        if asked.method == "matmul" and asked.lr == 1e-2:
            raise ZeroDivisionError("on purpose")
        return real(asked, *rest)

    monkeypatch.setattr(training, "run", failing)
    path = tmp_path / "results.jsonl"
    made = runner.Runner(config, path, Console(quiet=True))
    assert made.run(list(config.cells), 1) == 1
    (failed,) = results.read(tmp_path / "results.errors.jsonl")
    assert "on purpose" in failed["error"]
    done = {runner.status(cell, config, made.found) for cell in config.cells if "matmul" not in cell.id}
    assert done == {"done"}
    of = [line for line in made.found.lines.values() if line["settings"]["method"] == "matmul" and "cannot" not in line]
    assert {line["settings"]["lr"] for line in of} == {3e-3}  # tuned with the rates that worked
    monkeypatch.setattr(training, "run", real)
    again = run(config, path)  # what failed is tried again
    assert {runner.status(cell, config, again.found) for cell in config.cells} == {"done", "cannot"}


class _Pool:
    """What takes the place of processes, of which some die: it does what it is given at once."""

    def __init__(self, dies: list[str]) -> None:
        self.dies = dies

    def submit(self, work, asked, *arguments):
        future: Future = Future()
        if asked.method in self.dies:
            self.dies.remove(asked.method)
            future.set_exception(BrokenProcessPool("a process died"))
        else:
            future.set_result(work(asked, *arguments))
        return future

    def shutdown(self, **_):
        pass


def test_several_processes_give_what_one_gives(tmp_path, monkeypatch):
    config = configuration(tmp_path, CONFIG.replace('"matmul", ', ""))
    alone = run(config, tmp_path / "alone.jsonl")
    monkeypatch.setattr(runner, "_processes", lambda *_: _Pool([]))
    together = runner.Runner(config, tmp_path / "together.jsonl", Console(quiet=True))
    assert together.run(list(config.cells), 3) == 0
    assert {key: without_times(line) for key, line in together.found.lines.items()} == {
        key: without_times(line) for key, line in alone.found.lines.items()
    }


def test_a_process_that_dies_stops_nothing(tmp_path, monkeypatch):
    config = configuration(tmp_path)
    dies = ["width"] * 3  # both rates at a time, and one of them again
    monkeypatch.setattr(runner, "_processes", lambda *_: _Pool(dies))
    made = runner.Runner(config, tmp_path / "results.jsonl", Console(quiet=True))
    assert made.run(runner.choose(config, "tiny/(dense|width/0.3)/seed=1"), 2) == 1
    assert dies == []
    failed = results.read(tmp_path / "results.errors.jsonl")
    assert {line["settings"]["method"] for line in failed} == {"width"}
    assert all("died" in line["error"] for line in failed)
    assert any(line["settings"]["method"] == "width" for line in made.found.lines.values())  # the rate that was left


def test_only_some_cells_and_the_runs_that_tune_them(tmp_path):
    config = configuration(tmp_path)
    chosen = runner.choose(config, "^tiny/width/0.3/seed=1$")
    assert [cell.settings.method for cell in chosen] == ["width"] * 3
    found = run(config, tmp_path / "results.jsonl", chosen).found
    assert len(found.lines) == 3
    for pattern, message in (("(", "regular expression"), ("nothing", "no cell matches --only")):
        with pytest.raises(ExperimentError, match=message):
            runner.choose(config, pattern)


def test_every_line_is_complete(tmp_path):
    config = configuration(tmp_path)
    path = tmp_path / "results.jsonl"
    run(config, path, runner.choose(config, "tiny/dense/seed=0"))
    for line in results.read(path):
        assert line["settings"].keys() == set(settings.FIELDS)
        assert line["versions"].keys() == {"python", "torch", "smh", "numpy"}
        needed = {"cell", "id", "test_accuracy", "validation_accuracy", "training_loss", "seconds", "training_seconds"}
        assert needed | {"stored", "stored_parts", "dense", "commit", "changed", "cpu", "threads"} <= line.keys()
        assert sum(line["stored_parts"].values()) == line["stored"]


def test_results_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "results.jsonl"
    assert results.read(path) == []
    path.write_text('{"settings": {}}\nnonsense\n')
    with pytest.raises(ExperimentError, match="line 2 is not JSON"):
        results.read(path)
    path.write_text("[]\n")
    with pytest.raises(ExperimentError, match="line 1 has no settings"):
        results.read(path)
    with pytest.raises(ExperimentError, match="unknown settings: colour"):
        Results([{"id": "x", "settings": {"colour": 1}}])


@pytest.fixture(scope="module")
def fashion():
    return cells.read(HERE / "fashion.toml")


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.toml")))
def test_configurations_can_be_read(name, fashion):
    config = fashion if name == "fashion" else cells.read(HERE / f"{name}.toml", Path("/nowhere"))
    assert len({cell.id for cell in config.cells}) == len(config.cells)
    tuned = {cell.settings.key for cell in config.cells if cell.tuning}
    for cell in config.cells:
        if cells.reachable(cell.settings, config.folder) is None:
            assert {s.key for base in cells.tunings(cell) for s in config.tuning_of(base)} <= tuned, cell.id


def test_all_methods_are_tuned_with_the_same_rates(fashion):
    groups: dict[str, set[float]] = {}
    for cell in fashion.cells:
        if cell.tuning:
            groups.setdefault(cell.settings.replace(lr=None).key, set()).add(cell.settings.lr)
    for key, rates in groups.items():
        assert rates == set(fashion.rates[json.loads(key)["optimizer"]])


def test_the_nearest_ratio_that_is_tuned_and_can_be_reached(fashion):
    ratio = {cell.id: cell.tuned_as.ratio for cell in fashion.cells if cell.tuned_as is not None}
    assert [ratio[f"cnn/matmul/{r}/seed=2"] for r in (0.5, 0.25, 0.1, 0.03, 0.01)] == [0.5, 0.5, 0.1, 0.01, 0.01]
    assert ratio["cnn/lowrank/0.03/seed=2"] == 0.1  # a hundredth cannot be reached


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run", "cannot be read as a configuration"),
        ("[rum]", "unknown keys: 'rum'"),
        (CONFIG + "colour = 1", "'colour'"),
        (CONFIG.replace('"width"', '"weight"'), "method must be one of"),
        (CONFIG.replace("adamw =", "sgd ="), r"add \[tuning.rates\] with adamw = \[...\], or set lr in \[run\]"),
        (CONFIG.replace("batch = 50", 'decay = "rot"'), "decay must be one of"),
        (CONFIG.replace("training = 200", "training = 20"), "do not make a batch of 50"),
        (CONFIG + "[[question]]\nname = 'x'", "a question needs seeds, title, variant"),
        (
            CONFIG + TWICE,
            r"cells tiny/dense/seed=0 that differ in epochs \(1 and 2\): move one table to a separate configuration",
        ),
        (CONFIG + QUESTION.replace("'b'", "'a'"), r"x/a/0.3/seed=0 that differ in bits \(8 and 4\)"),
        (CONFIG + QUESTION.replace("'x'", "'tiny'"), "a question and a table of the name tiny"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path, text, message):
    with pytest.raises(ExperimentError, match=message):
        configuration(tmp_path, text)


def test_processes_that_train_one_teacher_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    path, names = tmp_path / "teacher.part", []
    monkeypatch.setattr(torch, "save", lambda content, name: names.append(name) or name.write_bytes(b""))
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        Saved(path).write(0.0)
        path.unlink()
    assert len(set(names)) == 2
