"""``smh port`` through the real executable."""

import json

import numpy as np
import pytest

import smh
from smh.files import checkpoint
from smh.porting import Mapping
from tests.cli.common import call


def run(*arguments):
    return call("port", *arguments)


@pytest.fixture
def files(tmp_path):
    """Return a checkpoint of two layers of equal shape, and a mapping to another model."""
    plan = smh.Plan.build({"up.weight": (6, 6), "down.weight": (6, 6)}, ratio=0.5, axes={"up.weight": "o i"})
    dense = {"up.bias": np.arange(6, dtype=np.float32)}
    smh.save(tmp_path / "a.safetensors", plan, smh.initialize(plan), dense)
    found = smh.load(tmp_path / "a.safetensors")
    entries = {
        "up/kernel": ("up.weight", "o i -> i o"),
        "down/kernel": ("down.weight", "o i -> i o"),
        "up/bias": "up.bias",
    }
    Mapping.build(entries, found, {"bn": {"epsilon": 1e-5}}).save(tmp_path / "map.json")
    exchanged = {**entries, "up/kernel": entries["down/kernel"], "down/kernel": entries["up/kernel"]}
    Mapping.build(exchanged, found).save(tmp_path / "exchanged.json")
    return tmp_path


def test_a_port(files):
    source = smh.load(files / "a.safetensors")
    done = run(files / "a.safetensors", "--map", files / "map.json", "-o", files / "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert source.digest in done.stdout
    assert "o i -> i o" in done.stdout
    assert "bn: set epsilon=1e-05" in done.stdout
    found = smh.load(files / "b.safetensors")
    assert found.digest == source.digest
    assert [tensor.name for tensor in found.plan.tensors] == ["up/kernel", "down/kernel"]
    weights = smh.materialize(source.plan, source.variables)
    got = smh.materialize(found.plan, found.variables)
    assert np.array_equal(got["up/kernel"], weights["up.weight"].T)


def test_json_and_doubts(files):
    arguments = (files / "a.safetensors", "--map", files / "exchanged.json", "-o", files / "b.safetensors")
    done = run(*arguments, "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["tensors"]["up/kernel"] == ["down.weight"]
    assert result["digest"] == smh.load(files / "a.safetensors").digest
    assert len(result["warnings"]) == 1
    assert "though there is 'up.weight'" in result["warnings"][0]
    assert "warning: 'up/kernel' comes from 'down.weight'" in run(*arguments, "--force").stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.safetensors"}, "No such file"),
        ({"file": "map.json"}, "cannot load"),
        ({"map": "none.json"}, "No such file"),
        (
            {"map": "a.safetensors"},
            "a.safetensors' must be a mapping in JSON, as Mapping.save writes it: it is not JSON",
        ),
        ({"map": "plan.json"}, "plan.json' must be a mapping in JSON, as Mapping.save writes it: it is a plan"),
        ({"map": "keys.json"}, "its keys are 'a', 'version'"),
        ({"map": "list.json"}, "must be an object"),
        ({"map": "other.json"}, "not used by the mapping"),
        ({"map": "hostile.json"}, "fewer than"),
        ({"out": "none/b.safetensors"}, "No such folder"),
        ({"out": "a.safetensors"}, "choose another path"),
        ({"file": "cut.safetensors"}, "cannot load"),
        ({"file": "lying.safetensors"}, "not those that it was saved with"),
    ],
)
def test_what_fails_writes_nothing(files, change, message):
    source = smh.load(files / "a.safetensors")
    Mapping.build({"up/kernel": "up.weight"}, source).save(files / "other.json")
    (files / "plan.json").write_text(source.plan.to_json())
    (files / "keys.json").write_text('{"version": "2.0", "a": 1}')
    (files / "list.json").write_text("[]")
    (files / "hostile.json").write_text(json.dumps(_huge(json.loads((files / "map.json").read_text()))))
    (files / "cut.safetensors").write_bytes((files / "a.safetensors").read_bytes()[:-5])
    checkpoint.write(files / "lying.safetensors", source.plan, source.variables, source.dense, "0" * 64)
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    names = {"file": "a.safetensors", "map": "map.json", "out": "b.safetensors", **change}
    done = run(files / names["file"], "--map", files / names["map"], "-o", files / names["out"])
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def _huge(mapping):
    mapping["tensors"]["up/kernel"]["sources"][0]["shape"] = [10**12, 6]
    return mapping
