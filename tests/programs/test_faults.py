"""Faults while a file is saved: it is always a whole one, and what killed savers leave does not add up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="signals, locks and limits of POSIX")

RUNS = 18
ROOT = Path(__file__).parents[2]
BROKEN = """
import os, random, sys, tempfile, time
from trust import faults, record, savers
from trust.savers import save_checkpoint

def beside(path, version):
    name, started = path + os.urandom(8).hex(), time.monotonic()
    save_checkpoint(name, version)
    time.sleep(4 * (time.monotonic() - started))  # so that most signals find this file, however fast the disk is
    os.replace(name, path)

def in_place(path, version):
    started = time.monotonic()
    save_checkpoint(path + ".other", version)
    with open(path + ".other", "rb") as whole, open(path, "wb", buffering=0) as file:
        file.write(whole.read(10_000))
        time.sleep(4 * (time.monotonic() - started))
        file.write(whole.read())
    os.unlink(path + ".other")

findings = record.Findings("broken")
with tempfile.TemporaryDirectory() as folder:
    faults.kill(findings, folder, 25, random.Random(0), save={"in_place": in_place, "beside": beside}[sys.argv[1]])
print(*findings.failures, sep="\\n")
"""


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a short run of the harness finds."""
    path = tmp_path_factory.mktemp("faults") / "line.jsonl"
    done = run("-m", "trust", "faults", "--runs", RUNS, "--seed", "1", "--results", path)
    assert path.exists(), done.stderr
    return json.loads(path.read_text())


def test_every_file_is_a_whole_one_after_every_fault(found):
    assert found["failures"] == []
    assert found["passed"] is True
    counts = found["counts"]
    assert counts["killed while saving a checkpoint"] == RUNS
    outcomes = [counts[f"killed while saving a checkpoint: the {x} file is there"] for x in ("old", "new")]
    assert sum(outcomes) == RUNS
    others = ("killed while writing a plain file", "killed while saving a packed checkpoint")
    for what in (*others, "interrupted while saving a checkpoint"):
        assert counts[what] == RUNS // 6
    assert counts["races of three savers, one of them killed"] == RUNS // 6
    assert counts["file size limit: refused"] == counts["file size limit: savers"] == RUNS // 6
    assert counts["permission denied: refused"] == 1


def test_what_killed_savers_leave_does_not_add_up(found):
    assert found["counts"]["killed while saving a checkpoint: a part of a new file beside it"] > 1
    left = {what: x for what, x in found["measured"].items() if "left" in what}
    assert len(left) == 9
    assert all(x <= found["bounds"][what] <= 1 for what, x in left.items()), left


@pytest.mark.parametrize(("what", "times"), [("full disk", RUNS // 6), ("read-only disk", 1)])
def test_disks_that_take_nothing(found, what, times):
    if what in found["skipped"]:
        pytest.skip(found["skipped"][what])
    assert found["counts"][f"{what}: refused"] == found["counts"][f"{what}: savers"] == times


@pytest.mark.parametrize(
    ("saver", "failure"), [("in_place", "the file cannot be loaded"), ("beside", "most that is left at any time is")]
)
def test_the_harness_finds_a_saver_that_is_not_atomic(saver, failure):
    done = run("-c", BROKEN, saver)
    assert failure in done.stdout, done.stdout + done.stderr
