"""Tests of how the conformance suite is run: what is missing, what is expected to fail, what is reported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance import fingerprint
from smh.cli import app, conformance

ROOT = Path(__file__).parents[2]
BROKEN = "tests.suite.broken_backends:IndicesOfAnotherSeed"


TOY = str(Path(__file__).with_name("toy"))
QUICK = "not environment and not large"
"""Without the laws that take longest: that of the environment loads every framework."""


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def suite(*options, **environment):
    command = ("-m", "pytest", "conformance", "-q", "-p", "no:cacheprovider", "--plans", "1")
    return python(*command, *options, **environment)


def test_a_backend_of_another_package_passes(tmp_path):
    report = tmp_path / "report.json"
    options = ("--backend", "toy", "--plans", "2", "--report", str(report), "-k", "not environment")
    done = suite(*options, PYTHONPATH=TOY)
    assert done.returncode == 0, done.stdout
    (row,) = json.loads(report.read_text())["rows"]
    assert (row["backend"], row["device"], row["mode"]) == ("toy", "CPU_DEVICE", "eager")
    assert row["passed"] == 32
    assert row["different"] == 0 < row["bits"]


def test_the_law_of_the_environment_gets_the_backend_of_another_package():
    done = python("-m", "conformance.fingerprint", "toy", "eager", "CPU_DEVICE", PYTHONPATH=TOY)
    assert done.stdout.split() == [fingerprint.by_default()], done.stderr


def test_a_module_of_the_same_name_on_the_path_is_not_run(tmp_path):
    (tmp_path / "conformance.py").write_text("raise SystemExit('a module of somebody else')")
    done = python(
        "-m", "smh", "conformance", "--backend", "numpy", "--plans", "1", PYTHONPATH=str(tmp_path), COLUMNS="140"
    )
    assert done.returncode == 0, done.stderr
    assert "somebody else" not in done.stdout + done.stderr
    assert "numpy    cpu" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "toyy"], "there is no backend 'toyy'"),
        (["--backend", "numpy", "--mode", "quickly"], "has no mode 'quickly': known names: 'eager'"),
        (["--backend", "numpy", "--device", "cuda"], "only the device 'cpu'; got 'cuda'"),
    ],
)
def test_what_was_asked_for_and_is_missing_is_an_error(options, message):
    done = suite(*options)
    assert done.returncode == 4
    assert message in done.stderr


def broken_indices(tmp_path, *entries):
    lines = []
    for entry in entries:
        lines += ["[[xfail]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    (tmp_path / f"{BROKEN}.toml").write_text("\n".join(lines))
    return suite("--backend", BROKEN, "--xfail", str(tmp_path), "-k", QUICK, "-rxX")


def entry(test, law):
    return {"id": f"{test}[{BROKEN}-cpu-eager-{law}]", "reason": "known", "link": "https://example.org/1"}


def test_expected_failures_have_exact_names_and_go_stale(tmp_path):
    assert broken_indices(tmp_path).returncode == 1
    known = entry("test_golden_vectors", "indices")
    done = broken_indices(tmp_path, known)
    assert done.returncode == 0, done.stdout
    assert "known (https://example.org/1)" in done.stdout
    assert "1 xfailed" in done.stdout
    done = broken_indices(tmp_path, known, entry("test_golden_vectors", "weights"))
    assert done.returncode == 1
    assert "[XPASS(strict)] known" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "test_golden_vectors[indices]"}, "names 'test_golden_vectors[indices]', which is no test: remove it"),
        ({"link": ""}, "every entry needs an id, a reason and a link"),
        ({"why": "x"}, "every entry needs an id, a reason and a link"),
    ],
)
def test_entries_that_mean_nothing_are_errors(tmp_path, change, message):
    done = broken_indices(tmp_path, entry("test_golden_vectors", "indices") | change)
    assert done.returncode not in (0, 1)
    assert message in done.stdout + done.stderr


def test_the_command_finds_the_suite_beside_or_inside_the_library():
    assert (conformance._suite() / "laws.py").is_file()


def test_the_command_says_where_it_looked(monkeypatch):
    monkeypatch.setattr(conformance, "_BESIDE", "nowhere")
    result = CliRunner().invoke(app, ["conformance", "--backend", "numpy"])
    assert result.exit_code == 3
    assert "the conformance suite is not installed: looked in" in result.stderr


MODED = "tests.suite.moded:"


def test_the_command_checks_every_mode_and_says_why_one_is_missing(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-k '{QUICK}'")
    source = MODED + "Moded"
    result = CliRunner().invoke(app, ["conformance", "--backend", source, "--plans", "1", "--seed", "7", "--json"])
    assert result.exit_code == 1, result.output
    content = json.loads(result.stdout)
    assert content["seeds"] == {source: 7}
    plain, negated, never = content["rows"]
    assert (plain["mode"], negated["mode"], never["mode"]) == ("plain", "negated", "never")
    assert plain["failed"] == plain["different"] == 0 < plain["passed"]
    assert negated["failed"] > 0 < negated["different"]
    assert (never["skipped"], never["passed"], never["checks"]) == ("no such thing here", 0, 0)
    assert len(content["failures"]) == negated["failed"]
    assert all("-negated-" in failure["id"] for failure in content["failures"])


def test_a_mode_that_is_missing_may_not_be_asked_for():
    result = CliRunner().invoke(app, ["conformance", "--backend", MODED + "Moded", "--mode", "never"])
    assert result.exit_code == 3
    assert "no such thing here" in result.stderr


def test_a_process_that_is_killed_is_said_to_be():
    result = CliRunner().invoke(app, ["conformance", "--backend", MODED + "Deadly", "--plans", "1"])
    assert result.exit_code == 3
    assert f"the suite for '{MODED}Deadly' was stopped by SIGKILL, as when memory runs out" in result.stderr


def test_the_command_says_what_cannot_run():
    result = CliRunner().invoke(app, ["conformance", "--backend", "nump"])
    assert result.exit_code == 3
    assert "there is no backend 'nump'" in result.stderr
