"""Commands that rebuild weights: digest, verify, materialize and diff, through the real executable."""

import json
import os
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file

import smh
from conformance.bits import assert_same_bits
from smh.backends import registry
from smh.backends.numpy import NumpyBackend
from smh.cli.compare import plan_differences
from smh.cli.output import parse_limit
from smh.files import checkpoint
from smh.porting import Mapping
from tests.cli.common import SMH, assert_fails, call, invoke

SHAPES = {"fc1": (30, 40), "fc2": (40, 5)}
PLAN = smh.Plan.build(SHAPES, ratio=0.3, views={"fc1": "i o -> o i"})
VARIABLES = smh.initialize(PLAN)
KEPT = {
    "bias": np.arange(5, dtype=np.float32),
    "half": np.arange(4).astype(ml_dtypes.bfloat16),
    "steps": np.array(7, dtype=np.int64),
}
CARRIED = {"carried/x": np.ones(3)}


def save_plain(path, tensors):
    """Write a plain file; the library itself would write a transposed array as if it were not."""
    save_file({name: np.ascontiguousarray(x).reshape(x.shape) for name, x in tensors.items()}, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files, good and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    smh.save(folder / "model", PLAN, VARIABLES, KEPT | CARRIED)
    save_plain(folder / "plain", smh.materialize(PLAN, VARIABLES) | KEPT)
    changed = {**VARIABLES, "pool/left": VARIABLES["pool/left"].copy()}
    changed["pool/left"][0, 0] += np.float32(0.25)  # some units of its grid
    smh.save(folder / "changed", PLAN, changed, KEPT)
    checkpoint.write(folder / "forged", PLAN, VARIABLES, KEPT, "1" * 64)
    data = (folder / "model").read_bytes()
    (folder / "truncated").write_bytes(data[:-1])
    (folder / "lying").write_bytes(data.replace(b"[30", b"[31", 1).replace(b'\\"seed\\":0', b'\\"seed\\":1', 1))
    assert (folder / "lying").read_bytes() != data
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "No such file"),
        ("truncated", "must have"),
        ("lying", "damaged"),
        ("plain", "not a checkpoint of smh"),
        ("empty", "header"),
    ],
)
def test_what_is_no_checkpoint(files, tmp_path, name, words):
    assert_fails(call("materialize", files / name, "-o", tmp_path / "out"), str(files / name), words)
    assert not os.listdir(tmp_path)
    if name in ("truncated", "plain"):
        assert_fails(call("digest", files / name), str(files / name), words)
        assert_fails(call("verify", files / name), str(files / name), words)


def test_verify_gives_one_advice_for_a_plain_file(files):
    done = call("verify", files / "plain")
    assert_fails(done, "it is a plain safetensors file, not a checkpoint of smh: smh fit converts it")
    assert "again" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc, a folder in which no file can be made")
@pytest.mark.parametrize(
    ("command", "name", "options"),
    [
        ("materialize", "model", []),
        ("materialize", "model", ["--force"]),
        ("fit", "plain", ["--ratio", "0.3", "--convention", "default"]),
        ("plan", "plain", ["--ratio", "0.3", "--convention", "default"]),
    ],
)
def test_a_folder_that_takes_no_files_is_told(files, command, name, options):
    done = call(command, files / name, *options, "-o", "/proc/x")
    assert_fails(done, "/proc: cannot write a file there")


@pytest.mark.parametrize("command", ["digest", "verify", "materialize"])
def test_an_unknown_backend(files, tmp_path, command):
    out = ["-o", tmp_path / "out"] if command == "materialize" else []
    done = call(command, files / "model", "--backend", "nmpy", *out)
    assert_fails(done, "no backend 'nmpy'", "did you mean 'numpy'", "for --backend", code=2)
    assert not os.listdir(tmp_path)


def test_digest(files):
    done = call("digest", files / "model")
    assert (done.returncode, done.stdout.split()) == (0, [smh.digest(PLAN, VARIABLES)])
    found = json.loads(call("digest", files / "model", "--json", "--backend", "numpy").stdout)
    digest = smh.digest(PLAN, VARIABLES)
    assert found == {
        "file": str(files / "model"),
        "backend": "numpy",
        "digest": digest,
        "stated": digest,
        "same": True,
    }


def test_digest_is_not_what_the_file_states(files):
    done = call("digest", files / "forged")
    assert done.returncode == 1
    assert done.stdout.split()[0] == smh.digest(PLAN, VARIABLES)
    assert "1" * 64 in done.stdout
    done = call("digest", files / "forged", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["same"] is False


def test_digest_takes_its_backend_from_the_environment(files):
    done = call("digest", files / "model", env=os.environ | {"SMH_BACKEND": "nmpy"})
    assert_fails(done, "no backend 'nmpy'", "SMH_BACKEND")


class _OneBitWrong(NumpyBackend):
    """The last bit of one weight is another."""

    def materialize(self, plan, variables, names=None):
        weights = super().materialize(plan, variables, names)
        if "fc2" in weights:
            weights["fc2"].reshape(-1).view(np.uint32)[7] ^= 1
        return weights


@pytest.fixture
def broken(monkeypatch):
    """A backend that is registered and wrong."""
    monkeypatch.setitem(registry._loaded, "broken", _OneBitWrong())
    return "broken"


def test_digest_of_a_broken_backend(files, broken):
    found = invoke("digest", files / "model", "--backend", broken)
    assert found.exit_code == 1
    assert smh.digest(PLAN, VARIABLES) in found.output


def test_verify_in_all_frameworks(files):
    done = call("verify", files / "model", "--against", files / "plain", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] is True
    assert found["stated"] == smh.digest(PLAN, VARIABLES)
    assert [row["backend"] for row in found["backends"]] == smh.list_backends(installed=True)
    for row in found["backends"]:
        assert row["weights"] == PLAN.num_weights
        assert row["bits_compared"] == (0 if row["backend"] == "numpy" else 32 * PLAN.num_weights)
        assert row["bits_different"] == 0
        assert row["digest"] == found["stated"]
    assert set(found["missing"]) == set(smh.list_backends()) - set(smh.list_backends(installed=True))
    assert found["against"]["compared"] == len(PLAN.tensors) + len(KEPT)


def test_verify_shows_a_table(files, monkeypatch):
    done = call("verify", files / "model", "--backend", "numpy")
    assert done.returncode == 0
    assert "same as the file's" in done.stdout
    assert f"{PLAN.num_weights:,}" in done.stdout
    names = {True: ["numpy"], False: ["numpy", "torch"]}
    monkeypatch.setattr("smh.cli.compare.list_backends", lambda installed=False: names[installed])
    found = invoke("verify", files / "model")
    assert found.exit_code == 0
    assert 'torch is not installed: pip install "structured-multi-hashing[torch]"' in found.output


def test_verify_finds_a_broken_backend(files, broken):
    found = invoke("verify", files / "model", "--backend", broken, "--backend", "numpy", "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    numpy, other = report["backends"]
    assert (numpy["backend"], numpy["same_digest"]) == ("numpy", True)
    assert (other["bits_compared"], other["bits_different"]) == (32 * PLAN.num_weights, 1)
    assert [difference["name"] for difference in other["differences"]] == ["fc2"]
    assert other["differences"][0]["max_ulps"] == 1
    assert other["same_digest"] is False
    text = invoke("verify", files / "model", "--backend", broken).output
    assert "'fc2' differs: 1 of 200 elements, 1 bits, at most 1 ulps apart" in text
    assert "not the file's" in text


def test_verify_finds_a_forged_digest(files):
    done = call("verify", files / "forged", "--backend", "numpy")
    assert done.returncode == 1
    assert "not the file's" in done.stdout
    assert "1" * 64 in done.stdout


def test_verify_against_a_plain_file_that_differs(files, tmp_path):
    tensors = load_file(files / "plain")
    w = tensors["fc1"].copy()
    w.view(np.uint32)[3, 4] ^= 2
    tensors = {name: x for name, x in tensors.items() if name != "steps"}
    save_plain(tmp_path / "plain", tensors | {"fc1": w, "extra": w, "fc2": tensors["fc2"].T})
    done = call("verify", files / "model", "--backend", "numpy", "--against", tmp_path / "plain", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["backends"][0]["same_digest"] is True
    against = found["against"]
    assert (against["missing"], against["unexpected"]) == (["steps"], ["extra"])
    fc1, fc2 = against["differences"]
    assert (fc1["name"], fc1["different"], fc1["bits"], fc1["max_ulps"]) == ("fc1", 1, 1, 2)
    assert fc2["why"] == "shape 40 x 5 against 5 x 40"
    text = invoke("verify", files / "model", "--backend", "numpy", "--against", tmp_path / "plain").output
    assert "missing 'steps'" in text
    assert "unexpected 'extra'" in text
    assert "not the same" in text


def test_verify_against_another_checkpoint(files):
    same = invoke("verify", files / "model", "--backend", "numpy", "--against", files / "forged")
    assert same.exit_code == 0, same.output  # what it states of itself is its own affair
    other = invoke("verify", files / "model", "--backend", "numpy", "--against", files / "changed", "--json")
    assert other.exit_code == 1
    assert {difference["name"] for difference in json.loads(other.stdout)["against"]["differences"]} == {"fc1"}


def test_verify_through_a_mapping(files, tmp_path):
    found = smh.load(files / "model")
    entries = {"dense/kernel": ("fc1", "o i -> i o"), "head": "fc2", "dense/bias": "bias", "half": "half"}
    mapping = Mapping.build({**entries, "carried/steps": "steps", "carried/x": "carried/x"}, found)
    ported = smh.port(found, mapping)
    smh.save(tmp_path / "ported", ported.plan, ported.variables, ported.dense)
    mapping = Mapping.build(
        {**entries, "carried/steps": "steps"}, {n: x.shape for n, x in load_file(files / "plain").items()}
    )
    mapping.save(tmp_path / "map.json")
    options = ["--backend", "numpy", "--map", tmp_path / "map.json", "--json"]
    good = call("verify", tmp_path / "ported", "--against", files / "plain", *options)
    assert good.returncode == 0, good.stdout + good.stderr
    assert json.loads(good.stdout)["against"]["compared"] == 4
    bad = invoke("verify", tmp_path / "ported", "--against", files / "changed", *options)
    assert bad.exit_code == 1
    assert [d["name"] for d in json.loads(bad.stdout)["against"]["differences"]] == ["dense/kernel"]
    save_plain(tmp_path / "part", {"fc1": np.zeros((40, 30), np.float32)})
    assert_fails(call("verify", tmp_path / "ported", "--against", tmp_path / "part", *options), "does not have 'fc2'")
    (tmp_path / "map.json").write_text("{}")
    assert_fails(call("verify", tmp_path / "ported", "--against", files / "plain", *options), "mapping")


def test_verify_with_a_mapping_alone_is_wrong_usage(files):
    done = call("verify", files / "model", "--map", files / "model")
    assert done.returncode == 2
    assert "--against" in done.stderr


def test_verify_against_what_is_no_file(files):
    options = ["--backend", "numpy", "--against"]
    assert_fails(call("verify", files / "model", *options, files / "none"), "No such file")
    assert_fails(call("verify", files / "model", *options, files / "truncated"), "truncated")


@pytest.mark.parametrize("shape", ["--view", "--canonical"])
def test_materialize(files, tmp_path, shape):
    done = call("materialize", files / "model", "-o", tmp_path / "out", shape, "--json")
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out")
    report = json.loads(done.stdout)
    assert report["tensors"] == {name: list(x.shape) for name, x in found.items()}
    assert report["bytes"] == (tmp_path / "out").stat().st_size
    assert report["weights"] == PLAN.num_weights
    assert set(found) == {*SHAPES, *KEPT}
    weights = smh.materialize(PLAN, VARIABLES)
    assert found["fc1"].shape == ((40, 30) if shape == "--view" else (30, 40))
    assert_same_bits(found["fc1"] if shape == "--view" else found["fc1"].T, weights["fc1"])
    assert_same_bits(found["fc2"], weights["fc2"])
    for name, x in KEPT.items():
        assert found[name].dtype == x.dtype
        assert found[name].tobytes() == x.tobytes()
    assert os.listdir(tmp_path) == ["out"]


def test_materialize_some_tensors_by_another_backend(files, tmp_path, broken):
    options = ["--names", "fc2,bias", "--names", "half", "--backend", broken]
    found = invoke("materialize", files / "model", "-o", tmp_path / "out", *options)
    assert found.exit_code == 0, found.output
    assert "3 tensors, 200 weights" in found.output
    tensors = load_file(tmp_path / "out")
    assert set(tensors) == {"fc2", "bias", "half"}
    weights = smh.materialize(PLAN, VARIABLES)["fc2"].view(np.uint32)
    assert np.flatnonzero(tensors["fc2"].view(np.uint32) != weights).tolist() == [7]


def test_materialize_refuses(files, tmp_path):
    model, out = files / "model", tmp_path / "out"
    before = model.read_bytes()
    assert_fails(call("materialize", model, "-o", model), "replace the input")
    assert model.read_bytes() == before
    os.symlink(model, tmp_path / "link")
    assert_fails(call("materialize", model, "-o", tmp_path / "link"), "replace the input")
    os.remove(tmp_path / "link")
    assert_fails(call("materialize", model, "-o", tmp_path / "none" / "out"), "No such folder", str(tmp_path / "none"))
    assert_fails(call("materialize", model, "-o", out, "--names", "fc1,fc3"), "no tensor 'fc3'", "did you mean")
    assert_fails(invoke("materialize", model, "-o", out, "--names", ",,"), "give names", code=2)
    assert_fails(call("materialize", model, "-o", out, "--max-bytes", "3kB"), " bytes", "limit is 3,000")
    done = call("materialize", model, "-o", out, "--max-bytes", "many")
    assert done.returncode == 2
    assert "'many'" in done.stderr
    smh.save(tmp_path / "clash", PLAN, VARIABLES, {"fc1": np.zeros(3)})
    assert_fails(call("materialize", tmp_path / "clash", "-o", out), "same name", "'fc1'")
    assert os.listdir(tmp_path) == ["clash"]


def test_limits():
    for text, size in [("1000", 1000), ("64GiB", 64 << 30), ("1.5 kB", 1500), ("2MiB", 2 << 20), ("", None)]:
        assert parse_limit(text) == size
    for text in ["GB", "-1", "1e3", "1XB", "1.GB", "\u0661GB"]:
        with pytest.raises(typer.BadParameter, match="must be a number of bytes"):
            parse_limit(text)


# A shell's background job ignores the signal, and so would what it starts.
ATTENTIVE = "import os, sys; from signal import *; signal(SIGINT, SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_materialize_that_is_interrupted_leaves_nothing(tmp_path, number):
    plan = smh.Plan.build({"a": (10000, 10000), "b": (10000, 10000)}, ratio=0.001)
    checkpoint.write(tmp_path / "model", plan, smh.initialize(plan), {}, "0" * 64)
    folder = tmp_path / "results"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", ATTENTIVE, *SMH, "materialize", str(tmp_path / "model"), "-o", str(folder / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in folder.rglob("file")):  # the first bytes are written
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "out").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "interrupted, nothing written\n"
        assert not os.listdir(folder)
    else:
        assert process.returncode == -signal.SIGKILL


def test_diff_of_the_same(files, tmp_path):
    done = call("diff", files / "model", files / "model", "--weights", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] is True
    assert found["kinds"] == ["checkpoint", "checkpoint"]
    assert found["weights"]["bits"] == 32 * PLAN.num_weights
    assert invoke("diff", files / "model", files / "plain").exit_code == 0  # nothing carried counts
    assert invoke("diff", files / "plain", files / "model").exit_code == 0
    assert invoke("diff", files / "plain", files / "plain").exit_code == 0
    call("materialize", files / "model", "-o", tmp_path / "out")
    found = invoke("diff", files / "plain", tmp_path / "out")
    assert found.exit_code == 0
    assert "the same; compared 5 tensors" in found.output


def test_diff_of_two_checkpoints(files):
    done = call("diff", files / "model", files / "changed", "--weights", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["plan"] == []
    assert len(set(found["digests"])) == 2
    (variable,) = found["variables"]["differences"]
    assert (variable["name"], variable["different"]) == ("pool/left", 1)
    assert found["kept"]["only_first"] == ["carried/x"]
    assert found["kept"]["same"] is False
    weights = [smh.materialize(PLAN, smh.load(files / name).variables)["fc1"] for name in ("model", "changed")]
    (weight,) = found["weights"]["differences"]
    assert weight["name"] == "fc1"
    assert weight["different"] == np.count_nonzero(weights[0] != weights[1])
    text = invoke("diff", files / "model", files / "changed")
    assert text.exit_code == 1
    assert "variables: 'pool/left' differs: 1 of" in text.output
    assert "kept: 'carried/x' only in the first" in text.output
    assert "weights:" not in text.output


def test_diff_of_checkpoints_that_differ_in_one_thing_only(files, tmp_path):
    smh.save(tmp_path / "good", PLAN, VARIABLES, KEPT)
    assert invoke("diff", files / "changed", files / "changed").exit_code == 0
    forged = invoke("diff", files / "forged", tmp_path / "good")
    assert forged.exit_code == 1
    assert f"as stated: {'1' * 64} against" in forged.output
    smh.save(tmp_path / "viewed", smh.Plan.build(SHAPES, ratio=0.3), VARIABLES, KEPT)
    viewed = invoke("diff", tmp_path / "good", tmp_path / "viewed")
    assert viewed.exit_code == 1
    assert "plan: tensor 'fc1', view: 'i o -> o i' against none" in viewed.output
    smh.save(tmp_path / "kept", PLAN, VARIABLES, KEPT | {"bias": KEPT["bias"] + 1})
    kept = invoke("diff", tmp_path / "good", tmp_path / "kept")
    assert kept.exit_code == 1
    assert "kept: 'bias' differs: 5 of 5 elements" in kept.output


def test_diff_of_a_checkpoint_and_a_plain_file(files):
    done = call("diff", files / "changed", files / "plain", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["kinds"] == ["checkpoint", "plain"]
    assert [difference["name"] for difference in found["tensors"]["differences"]] == ["fc1"]
    assert found["tensors"]["compared"] == len(SHAPES) + len(KEPT)


def test_diff_of_plain_files(tmp_path):
    zero = np.zeros(3, np.float32)
    nan = np.full(2, np.nan, np.float32)
    save_plain(tmp_path / "a", {"zero": zero, "nan": nan, "a": zero, "int": np.arange(3)})
    save_plain(tmp_path / "b", {"zero": -zero, "nan": nan, "b": zero, "int": np.arange(3) + 1})
    found = invoke("diff", tmp_path / "a", tmp_path / "b")
    assert found.exit_code == 1
    assert "'zero' differs: 3 of 3 elements, 3 bits, at most 0 ulps apart" in found.output
    assert "'int' differs: 3 of 3 elements, 4 bits\n" in found.output
    assert "'a' only in the first" in found.output
    assert "'b' only in the second" in found.output
    assert "'nan'" not in found.output


LAYERS = "layers.{}.{}"


@pytest.fixture
def many(tmp_path):
    """Two models of 60 layers, whose matrices differ; three biases are in one of them only."""
    rng = np.random.default_rng(0)
    first = {LAYERS.format(k, "weight"): rng.normal(size=(2, 3)).astype(np.float32) for k in range(60)}
    second = {name: x + np.float32(1) for name, x in first.items()}
    first |= {LAYERS.format(k, "bias"): np.zeros(2, np.float32) for k in range(3)}
    first |= {"shaped.1": np.zeros(2), "shaped.2": np.zeros(2), "shaped.3": np.zeros(2)}
    second |= {
        "shaped.1": np.zeros(3),
        "shaped.2": np.zeros(3),
        "shaped.3": np.zeros(2, np.float32),
        "odd": np.zeros(2),
    }
    save_plain(tmp_path / "first", first)
    save_plain(tmp_path / "second", second)
    return tmp_path


def test_diff_groups_tensors(many):
    first, second = many / "first", many / "second"
    found = json.loads(invoke("diff", first, second, "--json").stdout)["tensors"]
    parts = [one for one in found["differences"] if not one["why"]]
    assert len(parts) == 60
    bits, most = sum(one["bits"] for one in parts), max(one["max_ulps"] for one in parts)
    lines = invoke("diff", first, second).stdout.splitlines()
    assert sorted(lines[:-1]) == sorted(
        [
            "tensors: 'layers.*.bias' (3 tensors) only in the first",
            "tensors: 'odd' only in the second",
            "tensors: 'layers.*.weight' (60 tensors) differ: 360 of 360 elements, "
            f"{bits:,} bits, at most {most:,} ulps apart",
            "tensors: 'shaped.*' (2 tensors) differ: shape 2 against 3",
            "tensors: 'shaped.3' differs: float64 against float32",
        ]
    )
    assert lines[-1].startswith("different; compared 63 tensors")
    every = invoke("diff", first, second, "--all").stdout.splitlines()
    assert len(every) == 3 + 1 + 63 + 1
    assert f"tensors: {parts[7]['name']!r} differs: 6 of 6 elements, {parts[7]['bits']} bits" in "\n".join(every)


def test_verify_groups_tensors(many):
    plan = smh.Plan.build({LAYERS.format(k, "weight"): (2, 3) for k in range(60)}, ratio=0.5)
    smh.save(many / "model", plan, smh.initialize(plan), {LAYERS.format(k, "norm"): np.ones(2) for k in range(5)})
    arguments = ["verify", many / "model", "--backend", "numpy", "--against", many / "first"]
    found = invoke(*arguments)
    assert found.exit_code == 1
    for words in (
        "missing 'layers.*.norm' (5 tensors)\n",
        "unexpected 'layers.*.bias' (3 tensors)\n",
        "'layers.*.weight' (60 tensors) differ: 360 of 360 elements, ",
    ):
        assert f"{many / 'first'}: {words}" in found.stdout
    every = invoke(*arguments, "--all").stdout
    assert every.count("differs: 6 of 6 elements") == 60
    assert every.count("missing 'layers.") == 5


def test_many_groups_of_differences_are_counted(tmp_path):
    save_plain(tmp_path / "a", {"w" + "x" * k: np.ones(2) for k in range(50)})
    save_plain(tmp_path / "b", {"w" + "x" * k: np.zeros(2) for k in range(50)})
    assert "and 10 lines more (--all shows all)" in invoke("diff", tmp_path / "a", tmp_path / "b").stdout
    assert invoke("diff", tmp_path / "a", tmp_path / "b", "--all").stdout.count(" differs: ") == 50


def test_plans_that_differ_in_many_tensors():
    shapes = {f"layers.{k}.w": (4, 5) for k in range(9)}
    first, second, third = (
        smh.Plan.build(shapes, ratio=0.5, scale=x) for x in ("he", 0.5, dict.fromkeys(shapes, "he"))
    )
    assert plan_differences(first, third, every=False) == []
    assert plan_differences(first, second, every=False) == [
        f"tensor 'layers.*.w' (9 tensors), {line.partition(', ')[2]}" for line in plan_differences(first, second)[:1]
    ]
    scales = {name: 0.5 + k for k, name in enumerate(shapes)}
    other = smh.Plan.build(shapes, ratio=0.5, scale=scales)
    assert "tensor 'layers.*.w' (9 tensors), scale: such as he against 0.5" in plan_differences(
        first, other, every=False
    )
    fewer = smh.Plan.build(dict(list(shapes.items())[:4]), ratio=0.5, scale="he")
    assert "tensor 'layers.*.w' (5 tensors): only in the first" in plan_differences(first, fewer, every=False)


def test_diff_of_what_is_no_file(files):
    assert_fails(call("diff", files / "model", files / "none"), "No such file")
    assert_fails(call("diff", files / "truncated", files / "model"), "truncated")
    assert_fails(call("diff", files / "empty", files / "plain"), str(files / "empty"))


def test_all_nans_of_weights_are_one(tmp_path, monkeypatch):
    class OtherNans(NumpyBackend):
        def materialize(self, plan, variables, names=None):
            weights = super().materialize(plan, variables, names)
            return {name: np.where(np.isnan(w), other, w) for name, w in weights.items()}

    monkeypatch.setitem(registry._loaded, "other", OtherNans())
    variables = {name: x.copy() for name, x in VARIABLES.items()}
    variables["scale/fc1"] = np.float32(np.nan)  # a pool could not be saved
    smh.save(tmp_path / "model", PLAN, variables)
    weights = smh.materialize(PLAN, variables)
    assert np.isnan(weights["fc1"]).any()
    other = np.uint32(0xFFC00001).view(np.float32)
    save_plain(tmp_path / "plain", {name: np.where(np.isnan(w), other, w) for name, w in weights.items()})
    assert invoke("diff", tmp_path / "model", tmp_path / "plain").exit_code == 0
    verified = invoke("verify", tmp_path / "model", "--backend", "other", "--against", tmp_path / "plain")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"seed": 3}, ["seed: 0 against 3"]),
        ({"bits": 4, "layout": "cyclic"}, ["layout: basic against cyclic", "pool.bits: 8 against 4"]),
        ({"ratio": 0.6}, ["pool.m: 5 against 11"]),
        ({"scale": "he"}, [f"tensor {name!r}, scale: fan_in against he" for name in SHAPES]),
        (
            {"views": {"fc2": "i o -> o i"}},
            ["tensor 'fc1', view: 'i o -> o i' against none", "tensor 'fc2', view: none against 'i o -> o i'"],
        ),
        ({"shapes": {"fc2": (40, 5), "fc1": (30, 40)}}, ["tensors: in another order"]),
        (
            {"shapes": {"fc1": (40, 30), "fc2": (40, 5)}, "scale": 0.5},
            ["tensor 'fc1', shape: [30, 40] against [40, 30]"],
        ),
        (
            {"shapes": {"fc1": (30, 40), "fc3": (40, 5)}},
            ["tensor 'fc2': only in the first", "tensor 'fc3': only in the second"],
        ),
    ],
)
def test_what_differs_between_plans(changes, lines):
    options = {"ratio": 0.3, "views": {"fc1": "i o -> o i"}, "pool": smh.pools.Matmul(gain=0)}
    if changes.get("scale") == 0.5:
        options["scale"] = 0.5
    first = smh.Plan.build(SHAPES, **options)
    second = smh.Plan.build(changes.pop("shapes", SHAPES), **(options | changes))
    assert plan_differences(first, second) == lines


def test_plans_of_other_pools_differ_as_a_whole(files, tmp_path):
    plan = smh.Plan.build(SHAPES, ratio=0.3, pool="hash", views={"fc1": "i o -> o i"})
    (line,) = plan_differences(PLAN, plan)
    assert line.startswith("pool: {'kind': 'matmul'")
    smh.save(tmp_path / "other", plan, smh.initialize(plan), KEPT)
    found = json.loads(invoke("diff", files / "forged", tmp_path / "other", "--json").stdout)
    assert found["plan"] == [line]
    assert found["variables"]["only_first"] == ["pool/left", "pool/right"]
    assert found["variables"]["only_second"] == ["pool/table"]


def test_diff_of_training_values(tmp_path):
    plain, training = tmp_path / "plain", tmp_path / "training"
    smh.save(plain, PLAN, VARIABLES)
    smh.save(training, PLAN, VARIABLES, training=True)
    assert invoke("diff", training, training, "--weights").exit_code == 0
    done = invoke("diff", plain, training, "--weights", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["training"] == [False, True]
    assert found["variables"]["same"] is found["weights"]["same"] is True  # compared as the integers give them
    text = invoke("diff", training, plain)
    assert text.exit_code == 1
    assert "training values: only in the first" in text.output


@pytest.mark.parametrize("name", ["w.npz", "w.npy", "w.PT", "w.pth", "w.bin", "w.h5", "w.keras", "w.onnx", "w.json"])
@pytest.mark.parametrize(
    "command",
    [["materialize"], ["fit", "--ratio", "0.3"], ["port", "--map", "m.json"], ["pack"], ["demo"]],
    ids=lambda command: command[0],
)
def test_names_of_other_formats_are_refused_before_any_work(tmp_path, command, name):
    """The input is not there, which would be told next."""
    first, *options = command
    given = [] if first == "demo" else [tmp_path / "none"]
    result = invoke(first, *given, *options, "-o", tmp_path / name)
    assert_fails(result, "for --out", "would hold safetensors, whatever its name: write", "w.safetensors", code=2)
    assert ("safetensors.numpy.load_file" in result.stderr) == (first == "materialize" and name == "w.npz")
    assert not os.listdir(tmp_path)


def test_a_plan_is_json_and_not_safetensors(tmp_path):
    result = invoke("plan", "a=8x9", "--ratio", "0.5", "-o", tmp_path / "p.safetensors")
    assert_fails(result, "would hold json", "p.json", code=2)
    for name in ("p", "p.txt2", "p.JSON"):
        assert invoke("plan", "a=8x9", "--ratio", "0.5", "-o", tmp_path / name).exit_code == 0


@pytest.mark.parametrize("command", ["materialize", "port"])
def test_nothing_replaces_a_file_unless_it_is_forced(files, tmp_path, command):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    entries = {name: name for name in (*SHAPES, *KEPT, *CARRIED)}
    Mapping.build(entries, smh.load(files / "model")).save(tmp_path / "map.json")
    arguments = [command, files / "model", "-o", out, *(["--map", tmp_path / "map.json"] if command == "port" else [])]
    assert_fails(invoke(*arguments), "the file exists", "--force", str(out))
    assert out.read_bytes() == b"old"
    assert invoke(*arguments, "--force").exit_code == 0
    assert out.read_bytes() != b"old"
    assert_fails(invoke(*arguments[:3], files / "model", *arguments[4:], "--force"), "would replace the input")


def test_port_keeps_training_values(tmp_path):
    smh.save(tmp_path / "model", PLAN, VARIABLES, training=True)
    Mapping.build({name: name for name in SHAPES}, smh.load(tmp_path / "model")).save(tmp_path / "map.json")
    assert invoke("port", tmp_path / "model", "--map", tmp_path / "map.json", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "model").read_bytes()
