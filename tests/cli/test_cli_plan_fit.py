"""The commands plan and fit at their edges: warnings, devices, signals, views, and pools that cannot be fitted."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import smh
from smh.cli import compress
from smh.core.pools import Hash, Matmul, Product
from tests.cli.common import assert_fails, call, invoke


def values(**changed):
    """Return one tensor of noise, some of whose elements are changed."""
    x = np.random.default_rng(0).normal(size=(20, 20))
    for at, value in enumerate(changed.values()):
        x.flat[at] = value
    return x


@pytest.mark.parametrize(
    ("x", "deviation"), [(values(a=np.inf).astype(np.float32), "nan"), (values(a=1e200), "inf")], ids=["inf", "large"]
)
def test_values_without_a_deviation_bring_no_warnings(tmp_path, x, deviation):
    save_file({"w": x}, tmp_path / "dense.safetensors")
    for command in (["fit"], ["plan", "--scale", "match"]):
        done = call(*command, tmp_path / "dense.safetensors", "--ratio", 0.3, "-o", tmp_path / "out")
        assert_fails(done, "tensor 'w'", f"their deviation is {deviation}")
    assert os.listdir(tmp_path) == ["dense.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there is no device")
def test_a_device_is_refused_before_any_work(tmp_path):
    # The input is not there, which would be told next.
    assert_fails(call("fit", tmp_path / "none", "--ratio", 0.3, "-o", "/dev/null"), "only a file can be replaced")
    assert_fails(call("plan", tmp_path / "none", "--ratio", 0.3, "-o", "/dev/null"), "only a file can be replaced")


def test_memory_is_told_before_a_fit_that_needs_more_than_there_is(tmp_path, monkeypatch, capsys):
    plan = smh.Plan.build({"w": (20, 20)}, ratio=0.3)
    needed = 16 * max(plan.capacity, 400)
    for free, told in ((needed // 1024 + 1, False), (needed // 1024 - 1, True)):
        lines = f"MemTotal: 99999999 kB\nMemAvailable: {free} kB\n"
        monkeypatch.setattr(compress.Path, "read_text", lambda *_, lines=lines, **__: lines)
        compress._check_memory(plan)
        said = capsys.readouterr().err
        assert (f"fitting takes about {needed:,} bytes of memory" in said) == told
    monkeypatch.undo()


def test_a_pool_that_cannot_be_fitted(tmp_path):
    save_file({"w": values()}, tmp_path / "dense")
    plan = smh.Plan.build({"w": (20, 20)}, ratio=0.9, pool=Product(Matmul(), Hash()))
    (tmp_path / "plan").write_text(plan.to_json())
    done = call("fit", tmp_path / "dense", "--plan", tmp_path / "plan", "-o", tmp_path / "out")
    assert_fails(done, "pools that can be fitted", "got a product")
    assert sorted(os.listdir(tmp_path)) == ["dense", "plan"]


def test_fit_through_a_view(tmp_path):
    """The file holds a tensor as the model has it, the plan its transpose."""
    x = np.outer(np.arange(1, 21), np.arange(21, 1, -1)).astype(np.float32)  # of rank 1, and not symmetric
    save_file({"w": x}, tmp_path / "dense")
    plan = smh.Plan.build({"w": (20, 20)}, ratio=0.3, views={"w": "i o -> o i"}, bits=16)
    (tmp_path / "plan").write_text(plan.to_json())
    done = call("fit", tmp_path / "dense", "--plan", tmp_path / "plan", "-o", tmp_path / "out", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = smh.load(tmp_path / "out")
    assert found.plan == plan
    np.testing.assert_allclose(smh.materialize(plan, found.variables)["w"], x, atol=0.5)
    assert json.loads(done.stdout)["error"] < 1e-3


def test_an_interruption_after_a_file_does_not_say_that_nothing_is_written(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "emit", interrupt)
    done = invoke("plan", "fc=64x100", "--ratio", "0.1", "-o", tmp_path / "plan")
    assert (done.exit_code, done.stderr) == (130, "interrupted after a file was written\n")
    assert (tmp_path / "plan").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are another thing there")
def test_fit_that_is_interrupted(tmp_path):
    """Nothing is left behind; an old file stays as it was."""
    save_file({"w": values()}, tmp_path / "dense")
    (tmp_path / "out").write_bytes(b"old")
    # It says when it has begun, for a signal before that would meet an interpreter that is still starting.
    code = (
        "import signal, smh.cli, smh.models.fit as fit, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def wait(*_, **__): print('begun', flush=True); time.sleep(60)\n"
        "fit.fit_variables = wait\n"
        "smh.cli.main()"
    )
    arguments = ["fit", tmp_path / "dense", "--ratio", "0.3", "-o", tmp_path / "out", "--force"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "begun\n"
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == "interrupted, nothing written\n"
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["dense", "out"]
