import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import smh
from smh.cli import app, main

runner = CliRunner()


def test_help_names_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "info" in result.output
    assert "--ratio" in runner.invoke(app, ["demo", "--help"], terminal_width=120).output


def test_version():
    assert runner.invoke(app, ["--version"]).output.strip() == f"smh {smh.__version__}"


@pytest.mark.parametrize("pool", ["matmul", "kronecker", "hash"])
def test_demo_trains_saves_and_verifies(tmp_path, pool):
    path = tmp_path / "digits.safetensors"
    result = runner.invoke(
        app,
        ["demo", "--epochs", "12", "--hidden", "64", "--pool", pool, "--ratio", "0.2", "--out", str(path)],
    )
    assert result.exit_code == 0, result.output
    assert "0 bits different" in result.output
    found = smh.load(path)
    assert found.digest in result.output
    assert smh.digest(found.plan, found.variables) == found.digest
    accuracies = [float(word[:-1]) for word in result.output.split() if word.endswith("%") and word != "100%"]
    assert len(accuracies) == 2
    assert min(accuracies) > 85
    assert {name.split("/")[0] for name in load_file(path)} == {"pool", "scale", "dense"}


def test_info_shows_and_verifies(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    plan = smh.Plan.build({"a": (20, 5)}, ratio=0.4)
    digest = smh.save(path, plan, smh.initialize(plan), dense={"bias": np.zeros(5, dtype=np.float32)})
    result = runner.invoke(app, ["info", str(path), "--verify"])
    assert digest in result.output
    assert "verified" in result.output
    assert "bias" in result.output
    monkeypatch.setattr("sys.argv", ["smh", "info", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "No such file" in capsys.readouterr().err
