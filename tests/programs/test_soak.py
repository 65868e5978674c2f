"""A short one of the long trainings of ``python -m trust soak``, and that its harness would notice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from smh.backends import torch as smh_torch  # noqa: E402
from trust import soak  # noqa: E402

ROOT = Path(__file__).parents[2]
STEPS = 200


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("soak") / "line.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "trust", "soak", "--steps", str(STEPS), "--results", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert path.exists(), done.stderr
    return json.loads(path.read_text())


def test_residencies_do_not_drift_and_a_stopped_training_goes_on(found):
    assert found["failures"] == []
    counts = found["counts"]
    assert counts["steps"] == 3 * STEPS
    assert counts["states compared between residencies"] == 2 * len(soak.marks_of(STEPS))
    assert counts["trainings gone on with"] == 1
    assert counts["steps after going on"] == STEPS // 2
    assert counts["checkpoints saved"] == 3 * len(soak.marks_of(STEPS))


@pytest.mark.parametrize("residency", ["full", "cached", "layer"])
def test_memory_stays_flat(found, residency):
    for what in ("MiB", "Python objects", "open files"):
        assert found["measured"][f"{residency}: {what} grown by"] <= found["bounds"][f"{residency}: {what} grown by"]
    assert (
        found["measured"][f"{residency}: mean loss in the end"] < found["measured"][f"{residency}: mean loss at first"]
    )


def trained(steps=3):
    model, optimizer = soak.fresh()
    soak.train(model, optimizer, 0, steps)
    return model, optimizer


@pytest.mark.parametrize("what", ["pool", "scale", "bias", "statistics", "momentum"])
def test_the_harness_sees_a_change_of_one_bit(what):
    model, optimizer = trained()
    before = soak.state(model, optimizer)
    assert before == soak.state(*trained())
    tensors = model.state_dict()
    x = {
        "pool": tensors["pool_left"],
        "scale": tensors["0.weight_scale"],
        "bias": tensors["0.bias"],
        "statistics": tensors["1.running_var"],
        "momentum": next(iter(optimizer.state_dict()["state"].values()))["momentum_buffer"],
    }[what]
    x.view(torch.int32).view(-1)[0] ^= 1
    assert soak.state(model, optimizer) != before


def test_going_on_needs_the_state_of_the_optimiser(tmp_path):
    model, optimizer = trained()
    smh_torch.save(tmp_path / "middle.safetensors", model, training=True)
    torch.save(optimizer.state_dict(), tmp_path / "middle.pt")
    expected = soak.state(*trained(6))
    assert soak.go_on(tmp_path, 3, 6) == expected
    torch.save(soak.fresh()[1].state_dict(), tmp_path / "middle.pt")
    assert soak.go_on(tmp_path, 3, 6) != expected
