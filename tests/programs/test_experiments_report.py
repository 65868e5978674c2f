"""The page of results says what the results say, also while some are missing."""

import dataclasses
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
from typer.testing import CliRunner

from experiments import cells, data, methods, models, report, results
from experiments.__main__ import app
from experiments.errors import ExperimentError
from experiments.report import claims, names, places
from experiments.report.markdown import percent, signed, table
from experiments.results import Results

# Before a test, or an example of the documentation, adds to them.
BUILT_IN = {
    "METHODS": set(methods.METHODS),
    "NETWORKS": set(models.BUILDERS),
    "DATA": {*data.SOURCES, "images"},
}
CONFIG = """
[page]
name = "accuracy.md"
claims = true
[run]
data = "fashion-mnist"
[tuning]
ratios = [0.1]
[tuning.rates]
adamw = [1e-3, 1e-2, 1e-1]
[[table]]
model = "cnn"
methods = ["dense", "matmul", "kronecker", "hash10", "width", "lowrank", "random"]
ratios = [0.25, 0.1, 0.01]
seeds = [0, 1, 2]
[[question]]
name = "learn-scale"
title = "Is a learnable scale worth it?"
note = "A note."
answer = "An answer."
model = "cnn"
ratio = 0.1
seeds = [0, 1, 2]
variant = [{ label = "learnable" }, { label = "fixed", learn_scale = false }]
"""
BASE = {
    "dense": 90.0,
    "matmul": 88.0,
    "kronecker": 88.5,
    "hash10": 87.0,
    "width": 86.0,
    "lowrank": 85.0,
    "random": 70.0,
}


def accuracy(settings) -> float:
    """Return an accuracy that tells all settings apart; the rate of a hundredth is the best, for `random` a tenth."""
    best = 1e-1 if settings.method == "random" else 1e-2
    worse = 0 if settings.lr == best else 1.5 if settings.lr == 1e-3 else 0.75
    return (
        BASE[settings.method]
        + 2 * (settings.ratio or 1)
        + 0.3 * settings.seed**2
        - worse
        - 0.25 * (not settings.learn_scale)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a configuration and all of its results."""
    path = tmp_path_factory.mktemp("experiments") / "small.toml"
    path.write_text(CONFIG)
    config = cells.read(path)
    found = Results()
    for cell in config.cells:
        error = cells.reachable(cell.settings, None)
        settings = cell.settings if error else found.resolve(cell, config)
        line = {"cannot": {"least": error.least, "budget": error.budget}} if error else outcome(settings)
        about = {"cell": cell.id, "id": cells.describe(settings), "settings": dataclasses.asdict(settings)}
        commit = "older" if settings.method == "matmul" and settings.seed == 0 else "abc"
        context = {"commit": commit, "changed": False, "cpu": "a CPU", "threads": 1, "device": "cpu"}
        found.add(about | line | context | {"versions": {"python": "3.11.7", "torch": None}})
    return config, found


def outcome(settings) -> dict:
    value = accuracy(settings)
    dense = methods.size(settings, (1, 28, 28), 10).dense
    return {
        "test_accuracy": value,
        "validation_accuracy": value + 1,
        "training_loss": None if settings.method == "hash10" and settings.seed else 0.25 + settings.seed / 4,
        "stored": int((settings.ratio or 1) * dense) - len(settings.method),
        "dense": dense,
        "seconds": 36.0,
        "training_seconds": {"hash10": 77.0, "matmul": 10.0}.get(settings.method, 5.0) + settings.seed,
    }


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """Write the page of all results."""
    return write(*made, tmp_path_factory.mktemp("page"))


def write(config, found, folder: Path) -> str:
    report.write(config, found, folder)
    return (folder / "accuracy.md").read_text()


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Return the first table after a line that starts with something, by first cell."""
    after = text[text.index(f"\n{heading}") + 1 :]
    body = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE).group()
    cut = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines()]
    return {line[0]: line[1:] for line in cut}


def seeds(config, method, ratio, **changes):
    (settings,) = {
        cell.settings.replace(seed=0, lr=None)
        for cell in config.cells
        if cell.group == "cnn" and not cell.tuning and (cell.settings.method, cell.settings.ratio) == (method, ratio)
    }
    lr = 1e-1 if method == "random" else 1e-2
    return [accuracy(settings.replace(seed=seed, lr=lr, **changes)) for seed in range(3)]


def test_tables_are_means_and_deviations_of_the_results(made, page):
    config, text = made[0], page
    shown = rows(text, "## CNN")
    assert shown["method"] == ["25 %", "10 %", "1 %"]
    dense = seeds(config, "dense", None)
    assert shown["dense"] == [f"{mean(dense):.2f} ± {stdev(dense):.2f}", "", ""]
    for method in ("matmul", "kronecker", "hash10", "width", "random"):
        for column, ratio in enumerate((0.25, 0.1, 0.01)):
            values = seeds(config, method, ratio)
            assert shown[names.METHODS[method].title][column] == f"{mean(values):.2f} ± {stdev(values):.2f}"
    assert shown["low rank"][2] == "cannot"
    assert rows(text, "Stored variables")["low rank"][1:] == ["27,950", "cannot: at least 3,149"]
    assert rows(text, "Stored variables")["dense"][0] == "279,573"


def test_questions_have_rates_and_accuracies(made, page):
    config, text = made[0], page
    answer = rows(text, "### Is a learnable scale worth it?")
    for label, learn in (("learnable", True), ("fixed", False)):
        values = seeds(config, "matmul", 0.1, learn_scale=learn)
        assert answer[label] == ["10 %", "27,951", "0.01", f"{mean(values):.2f} ± {stdev(values):.2f}"]
    assert "### Is a learnable scale worth it?\n\nA note.\n\n|" in text
    assert "|\n\nAn answer.\n\n## " in text


def test_rates_are_shown_and_edges_marked(page):
    lines = [line for line in page.splitlines() if line.startswith("| CNN |")]
    assert [line for line in lines if "matrix product" in line] == [
        "| CNN | smh, matrix product | 10 % | 87.70 | **89.20** | 88.45 |"
    ]
    assert [line for line in lines if "random" in line] == [
        "| CNN | random pool | 10 % | 69.70 | 70.45 | **71.20** † |"
    ]


def test_claims_are_measured(page):
    claimed = rows(page, "## What the paper claims")
    quarter = claimed["A model keeps most of its accuracy at about 25 % of the variables"]
    assert quarter == ["−0.37 at 25.8 %", "CNN, matrix product: −3.50; CNN, Kronecker products: −3.00"]
    assert claimed["at 10 %"] == ["−2.76 at 10 %", "CNN, matrix product: −3.80; CNN, Kronecker products: −3.30"]
    assert claimed["at 3 %"][1] == "not measured yet"
    width = claimed["It is more accurate than a narrower network of the same size"]
    assert width[0] == "+3.35 at 25.8 % against 25.4 %"
    assert width[1].startswith(
        "CNN, matrix product: +2.00 at 25 %, +2.00 at 10 %, +2.00 at 1 %; CNN, Kronecker products: +2.50"
    )
    assert (
        "matrix product: +1.70 at 10 % against 25 %, +1.82 at 1 % against 10 %" in claimed["and of twice the size"][1]
    )
    assert claimed["A learnable scale per tensor helps"] == ["+0.70 on average", "CNN at 10 %: +0.25"]
    faster = "It trains faster than ten hashes per weight of the same size"
    assert claimed[faster] == ["7.7 times", "; ".join(f"CNN at {share} %: 6.8 times" for share in (25, 10, 1))]


def test_partial_results(made, tmp_path):
    config, found = made
    kept = [
        line
        for line in found.lines.values()
        if line["settings"]["method"] in ("dense", "matmul", "width")
        and not (line["settings"]["seed"] == 2 and line["settings"]["ratio"] == 0.25)
    ]
    kept = [line for line in kept if not (line["settings"]["method"] == "width" and line["settings"]["lr"] == 1e-3)]
    text = write(config, Results(kept), tmp_path)
    shown = rows(text, "## CNN")
    two = seeds(config, "matmul", 0.25)[:2]
    assert shown["smh, matrix product"][0] == f"{mean(two):.2f} ± {stdev(two):.2f} (2 of 3 seeds)"
    assert shown["width multiplier"] == ["–"] * 3  # its rate is not tuned yet
    assert shown["smh, 10 hashes"] == ["–"] * 3
    places_done = 3 + 2 + 3 + 3 + 6  # dense, matmul at three ratios, the question
    assert f"Results are partial: {places_done} of " in text
    first = [line for line in kept if line["settings"]["method"] == "dense"][:1]
    alone = write(config, Results(first), tmp_path / "first")
    assert "not measured yet" in alone
    assert "0.01" not in alone
    assert rows(alone, "## CNN")["dense"][0] == "–"


def test_no_results_are_an_error(made, tmp_path):
    with pytest.raises(ExperimentError, match="no results of small"):
        report.write(made[0], Results(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plots_follow_from_results_alone(made, tmp_path):
    config, found = made
    write(config, found, tmp_path / "a")
    write(config, found, tmp_path / "b")
    changed = [dict(line) for line in found.lines.values()]
    (one,) = (line for line in changed if line["id"] == "fashion-mnist/cnn/matmul/0.1/lr=0.01/seed=2")
    one["test_accuracy"] = 50.0
    write(config, Results(changed), tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["accuracy-cnn.svg", "accuracy-rates.svg", "accuracy.md"]
    a, b, c = ([(tmp_path / folder / name).read_text() for name in names] for folder in "abc")
    assert a == b
    assert [x == y for x, y in zip(a, c, strict=True)] == [False, True, False]
    assert "<dc:date>" not in a[0]
    assert a[0].count('<g id="LineCollection') == 2 * 6  # bars of all methods but the dense one, and in the legend


def test_everything_built_in_has_a_title_and_a_description():
    for kind, used in BUILT_IN.items():
        known = getattr(names, kind)
        assert set(known) == used
        assert all(name.title and name.description for name in known.values())
    assert claims.claims({}, ()).count("not measured yet") == 7


OWN = """
from experiments import data, methods, models
models.BUILDERS["own network"] = models.BUILDERS["tiny"]
methods.METHODS["own method"] = methods.METHODS["pruned"]
data.SOURCES["own data"] = data.SOURCES["digits"]
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_own_file_adds_a_network_a_method_and_data(tmp_path, monkeypatch, jobs):
    for module, name in ((data, "SOURCES"), (methods, "METHODS"), (models, "BUILDERS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    own, config, lines = tmp_path / "own.py", tmp_path / "quick.toml", tmp_path / "quick.jsonl"
    own.write_text(OWN)
    config.write_text(
        '[run]\ndata = "own data"\ntraining = 100\nvalidation = 50\nepochs = 1\n[tuning.rates]\nsgd = [1e-2, 3e-2]\n'
        '[[table]]\nmodel = "own network"\noptimizer = "sgd"\nmethods = ["dense", "own method"]\nratios = [0.5]\n'
        "seeds = [0]\n"
    )
    ask = ["--config", str(config), "--import", str(own)]
    ran = CliRunner().invoke(app, ["run", *ask, "--results", str(lines), "--jobs", jobs])
    assert ran.exit_code == 0, ran.output
    written = CliRunner().invoke(app, ["report", str(lines), *ask, "-o", str(tmp_path / "docs")])
    assert written.exit_code == 0, written.output
    text = (tmp_path / "docs" / "quick.md").read_text()
    assert "Test accuracy by ratio on own data" in text
    assert rows(text, "| method | description |\n") == {
        "method": ["description"],
        "---": ["---"],
        "dense": ["the plain network"],
        "own method": [""],
    }
    assert rows(text, "## own network").keys() == {"method", "---", "dense", "own method"}
    assert rows(text, "| network |")["own network"][0] == ""
    assert "What the paper claims" not in text
    made = {path.name for path in (tmp_path / "docs").iterdir()}
    assert made == {"quick.md", "quick-own network.svg", "quick-rates.svg"}


def test_a_table_does_not_mix_weights_of_the_size_penalty(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        '[run]\ndata = "digits"\nlr = 1e-2\n'
        '[[table]]\nmodel = "tiny"\nmethods = ["matmul"]\nratios = [0.5]\nrates = [0.0, 1e-6]\nseeds = [0, 1]\n'
    )
    gathered = places.gather(cells.read(path), Results())["tiny"]
    assert {key: place.asked for key, place in gathered.items()} == {
        ("matmul", 0.5): 2,
        ("matmul, rate=1e-06", 0.5): 2,
    }
    assert names.title(names.METHODS, "matmul, rate=1e-06") == "smh, matrix product, rate=1e-06"


def test_tables_may_differ_in_layers_bits_and_activation(tmp_path):
    path = tmp_path / "options.toml"
    options = ("", "bits = 4\n", 'include = "inner"\n', 'activation = "segments"\n')
    table = '[[table]]\nmodel = "tiny"\nmethods = ["matmul"]\nratios = [0.5]\nseeds = [0]\n'
    path.write_text('[run]\ndata = "digits"\nlr = 1e-2\n' + "".join(table + option for option in options))
    assert [cell.label for cell in cells.read(path).cells] == [
        "matmul",
        "matmul, bits=4",
        "matmul, include=inner",
        "matmul, activation=segments",
    ]


def test_markdown():
    assert table(["a", "b"], [["1|2", "x"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | x |\n"
    assert (percent(0.1), percent(0.258), percent(0.0113)) == ("10 %", "25.8 %", "1.13 %")
    assert (signed(1.0), signed(-0.5)) == ("+1.00", "−0.50")


def test_the_command_line(tmp_path):
    config = tmp_path / "quick.toml"
    config.write_text(
        '[run]\ndata = "digits"\ntraining = 100\nvalidation = 50\nepochs = 1\n[tuning.rates]\nadamw = [1e-2]\n'
        '[[table]]\nmodel = "tiny"\nmethods = ["dense"]\nratios = []\nseeds = [0, 1]\n'
    )
    lines = tmp_path / "quick.jsonl"
    ask = ["run", "--config", str(config), "--results", str(lines), "--jobs", "1"]
    command = CliRunner()
    listed = command.invoke(app, [*ask, "--list"])
    assert "to do   tiny/dense" not in listed.output
    assert "waits   tiny/dense/seed=1" in listed.output
    assert "0 of 3 cells are done" in listed.output
    ran = command.invoke(app, [*ask, "--only", "seed=0"])
    assert ran.exit_code == 0
    assert len(results.read(lines)) == 1
    listed = command.invoke(app, [*ask, "--list"])
    assert "2 of 3 cells are done" in listed.output
    assert "to do   tiny/dense/seed=1" in listed.output
    written = command.invoke(app, ["report", str(lines), "--config", str(config), "-o", str(tmp_path / "docs")])
    assert written.exit_code == 0
    assert "(1 of 2 seeds)" in (tmp_path / "docs" / "quick.md").read_text()
