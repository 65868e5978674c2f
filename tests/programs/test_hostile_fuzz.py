"""The fuzzer: it finds nothing, keeps what it found, and sees what is wrong where something is."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import smh
from trust import fuzz, mutations
from trust.__main__ import app
from trust.honest import honest
from trust.shrink import shrink
from trust.targets import TARGETS

READERS = sorted(TARGETS)


def test_a_short_run_of_the_fuzzer_finds_nothing():
    found = fuzz.run(2000, seed=20, keep=None)
    assert found.defects == {}
    assert found.inputs == 2000
    assert {f"{reader} refused" for reader in READERS} <= set(found.outcomes)
    assert found.growth < fuzz.MOST_GROWTH


@pytest.mark.parametrize("path", sorted(fuzz.CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once_is_not_found_again(path):
    outcome = fuzz.attempt(path.name.partition("-")[0], path.read_bytes())
    assert fuzz.is_fine(outcome), outcome


@pytest.mark.parametrize("name", sorted(honest()))
def test_honest_inputs_are_accepted(name):
    content = honest()[name]
    content = content if isinstance(content, bytes) else content.encode()
    assert fuzz.attempt(name.split("/")[0], content) == "accepted"


def test_inputs_can_be_made_again_and_all_cuts_are_among_them():
    made = [mutations.make(3, number) for number in range(300)]
    assert made == [mutations.make(3, number) for number in range(300)]
    assert made != [mutations.make(4, number) for number in range(300)]
    names = sorted(honest())
    small = names.index("plain/small")
    whole = honest()["plain/small"]
    cuts = {mutations.make(0, 2 * (small + len(names) * length))[1] for length in range(len(whole))}
    assert cuts == {whole[:length] for length in range(len(whole))}


def test_checksums_are_right_after_a_change():
    content = honest()["checkpoint/matmul"]
    header, data = mutations.split(content)
    assert mutations.seal(header, data) == content
    assert fuzz.attempt("checkpoint", mutations.seal(header, data[:-1] + b"\0")) == "accepted"


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError(), smh.PortError("of another reader")])
def test_the_harness_sees_what_no_reader_may_raise(monkeypatch, error):
    def read(content):
        raise error

    monkeypatch.setitem(TARGETS, "plan", read)
    outcome = fuzz.attempt("plan", b"{}")
    assert outcome.startswith(type(error).__name__)
    assert not fuzz.is_fine(outcome)


@pytest.mark.parametrize("cause", [KeyError("x"), MemoryError(), RecursionError(), ZeroDivisionError()])
def test_the_harness_sees_what_is_refused_by_accident(monkeypatch, cause):
    def read(text):
        raise smh.PlanError("refused") from cause

    monkeypatch.setattr(smh.Plan, "from_json", read)
    assert fuzz.attempt("plan", b"{}").startswith(f"defect: refused by {type(cause).__name__}")


def test_the_harness_sees_what_does_not_end(monkeypatch):
    def read(content):
        while True:
            pass

    monkeypatch.setitem(TARGETS, "plan", read)
    assert fuzz.attempt("plan", b"{}", seconds=0.05).startswith("TooSlowError")


def test_a_defect_is_counted_made_small_and_kept(monkeypatch, tmp_path):
    def read(content):
        if b"bad" in content:
            raise KeyError("bad")
        return "refused"

    monkeypatch.setitem(TARGETS, "plan", read)
    found = fuzz.Found()
    for content in (b"fine", b"long and bad and long", b"bad again"):
        fuzz.try_one(found, "plan", content, tmp_path)
    assert found.outcomes == {"plan refused": 1, "plan KeyError": 2}
    (name,) = found.defects
    assert (tmp_path / name).read_bytes() == b"bad"


def _end(results, last, inputs, seed, keep):
    last.value = 3
    os._exit(7)


def test_an_input_that_ends_the_process_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "_work", _end)
    found = fuzz.run(10, seed=1, keep=tmp_path)
    target, content = mutations.make(1, 3)
    ((name, why),) = found.defects.items()
    assert (found.inputs, why) == (4, "the process ended with code 7")
    assert name.startswith(f"{target}-")
    assert (tmp_path / name).read_bytes() == content


def test_memory_beyond_the_limit_is_refused():
    if sys.platform != "linux":
        pytest.skip("only Linux says how much memory a process has")
    with fuzz.limited(64 << 20), pytest.raises(MemoryError):
        np.ones(256 << 20, dtype=np.uint8)
    assert np.ones(256 << 20, dtype=np.uint8).nbytes == 256 << 20


def command(*arguments):
    return CliRunner().invoke(app, ["fuzz", *map(str, arguments)])


def test_a_run_adds_a_line_and_fails_if_there_is_a_defect(monkeypatch, tmp_path):
    found = fuzz.Found(
        inputs=3, outcomes={"plan refused": 2, "plan KeyError": 1}, defects={"plan-1.bin": "KeyError: 1"}
    )
    monkeypatch.setattr(fuzz, "run", lambda inputs, seed: found)
    path = tmp_path / "results.jsonl"
    failed = command("--inputs", 3, "--results", path)
    assert (failed.exit_code, "FAILED: plan-1.bin: KeyError: 1" in failed.output) == (1, True)
    found.defects, found.growth = {}, 5
    assert command("--inputs", 3, "--seed", 2, "--results", path).exit_code == 0
    bad, good = map(json.loads, path.read_text().splitlines())
    assert bad["failures"] == ["plan-1.bin: KeyError: 1"]
    assert (bad["passed"], good["passed"]) == (False, True)
    assert good["counts"] == {"inputs": 3, "packed inputs": 0, "plan refused": 2, "plan KeyError": 1}
    assert (good["engine"], good["seed"]) == ("structured", "2")
    growth = "bytes held more than before the first input"
    assert (growth in bad["measured"], good["measured"][growth], good["bounds"][growth]) == (False, 5, fuzz.MOST_GROWTH)


def test_engines_that_are_not_installed_or_do_not_exist_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for engine, message in (("atheris", "pip install atheris"), ("afl", "structured, atheris; got afl")):
        refused = command("--engine", engine, "--results", tmp_path / "results")
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
    assert not list(tmp_path.iterdir())


def test_a_file_is_made_small_with_right_checksums():
    content = honest()["checkpoint/hash"]
    smaller = shrink(content, lambda other: b"cyclic" in other or b"padding" in other[:9000], most=300)
    header, data = mutations.split(smaller)
    assert len(smaller) < len(content)
    assert mutations.seal(header, data) == smaller
