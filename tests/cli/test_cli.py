"""The frame of the command line, and the commands inspect, info, demo and conformance.

Texts of ``--help`` are compared with the files in ``tests/cli/golden_help``. After a change, renew them and read the
diff: ``SMH_RENEW_HELP=1 pytest tests/cli/test_cli.py -k help``. Typer and rich lay them out, in the versions of
``constraints.txt``.
"""

import copy
import doctest
import functools
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import smh
import smh.cli as smh_cli
from smh.cli import commands, conformance, look, main
from smh.cli.commands import app
from smh.errors import BackendError, ConformanceError
from tests.cli.common import SMH, assert_fails, call, invoke

GOLDEN = Path(__file__).parent / "golden_help"
COMMANDS = list(typer.main.get_group(app).commands)
PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
LONG = ("smh verify small.safetensors\n", "smh info", "smh conformance", "smh demo")  # tested below and elsewhere
NO_PLOT = "" if hasattr(smh.Plan, "plot") else "Plan.plot is missing"
PLAIN_TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}

PLAN = smh.Plan.build({"fc1": (30, 40), "fc2": (40, 5)}, ratio=0.3)
VARIABLES = smh.initialize(PLAN)
KEPT = {"fc1.bias": np.zeros(40, np.float32), "steps": np.array(7)}
CARRIED = {"carried/bn.count": np.array(3)}


# Help, completion


def help_of(command):
    hidden = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH")  # Typer would take them into account
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | PLAIN_TERMINAL
    arguments = [*SMH, *[command] * (command != "smh"), "--help"]
    done = subprocess.run(arguments, capture_output=True, env=environment, check=True, encoding="utf-8")
    assert done.stderr == ""
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"


@pytest.mark.parametrize("command", ["smh", *COMMANDS])
def test_help(command):
    path, text = GOLDEN / f"{command}.txt", help_of(command)
    if os.environ.get("SMH_RENEW_HELP"):
        path.write_text(text, encoding="utf-8")
    how = "if it should: SMH_RENEW_HELP=1 pytest tests/cli/test_cli.py -k help"
    assert path.exists(), f"{command!r} has no golden text of its help; {how}"
    assert text == path.read_text(encoding="utf-8"), f"the help of {command!r} has changed; {how}"


def test_help_is_no_markup():
    """What stands in brackets is there, and the terminal breaks lines, not the source."""
    other = typer.Typer(rich_markup_mode="rich")

    @other.command(cls=commands._Command)
    def command(x: str = typer.Option("", help="{name: [sizes]}")):
        """Do.

        The first [half]
        and the second.
        """

    text = CliRunner(env={"COLUMNS": "160"}).invoke(other, ["--help"]).stdout
    assert "The first [half] and the second." in text
    assert "{name: [sizes]}" in text


def test_no_golden_help_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == {"smh", *COMMANDS}


def test_every_command_is_registered():
    modules = [importlib.import_module(f"smh.cli.{module.name}") for module in pkgutil.iter_modules(smh_cli.__path__)]
    runnable = [name for module in modules for name in vars(module) if name.startswith("run_")]
    assert sorted(runnable) == sorted(f"run_{command}" for command in COMMANDS)


def test_every_command_is_in_the_docs():
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^### smh (\w+)$", text, re.MULTILINE) == COMMANDS
    assert re.findall(r"^\| \[`(\w+)`\]\(#smh-\w+\)", text, re.MULTILINE) == COMMANDS
    assert text.count("\n`--json`: ") == len(COMMANDS)


def test_the_docs_show_what_is_printed(tmp_path, monkeypatch):
    """Examples of commands run in order, among the blocks of Python that make their files; ... stands for anything."""
    monkeypatch.chdir(tmp_path)
    names, ran = {}, 0
    for language, block in re.findall(r"^```(python|console)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for example in block.removeprefix("$ ").split("\n$ "):
            if example.startswith(LONG) or (example.startswith("smh plot") and NO_PLOT):
                continue
            line, _, expected = example.partition("\n")
            command, _, echo = line.partition("; ")
            result = invoke(*shlex.split(command)[1:])
            got = result.stdout + (f"{result.exit_code}\n" if echo else "")
            assert result.exit_code == 0 or echo == "echo $?", result.output
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(expected.rstrip("\n") + "\n", got, options)
            assert same, f"{command} prints\n{got}\nand not\n{expected}"
            ran += 1
    assert ran > 8


# The frame


def test_version():
    assert invoke("--version").output.strip() == f"smh {smh.__version__}"


def test_wrong_usage():
    for arguments in (
        ["inspct"],
        ["inspect"],
        ["info", "--jsn"],
        ["demo", "--epochs", "0"],
        ["conformance", "--plans=-1"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage: " in result.stderr


def test_what_nobody_foresaw_is_no_difference(monkeypatch, capsys):
    def fail(**_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err


def test_too_little_memory(monkeypatch, files):
    def fail(path):
        raise MemoryError

    monkeypatch.setattr("smh.files.checkpoint.read", fail)
    result = invoke("inspect", files / "model")
    assert result.exit_code == 3
    assert result.stderr == "error: MemoryError\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away(files, options):
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        command = [*SMH, "inspect", files / "model", *options]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_output_that_cannot_be_written(files):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*SMH, "inspect", files / "model"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: ")


# inspect


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files, good and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    smh.save(folder / "model", PLAN, VARIABLES, KEPT | CARRIED)
    data = (folder / "model").read_bytes()
    (folder / "truncated").write_bytes(data[:-1])
    (folder / "lying").write_bytes(data.replace(b"[30", b"[31", 1))
    assert (folder / "lying").read_bytes() != data
    save_file({"w": np.ones((3, 4), np.float16), "n": np.arange(5), "\x1b[31m": np.ones(())}, folder / "plain")
    data = (folder / "plain").read_bytes()
    (folder / "plain_truncated").write_bytes(data[:-1])
    (folder / "plain_lying").write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    (folder / "text").write_bytes(b"weights = [1, 2, 3]")
    (folder / "empty").write_bytes(b"")
    return folder


def test_inspect_a_checkpoint(files):
    result = json.loads(call("inspect", files / "model", "--json").stdout)
    digest = smh.digest(PLAN, VARIABLES)
    tensors = result.pop("tensors")
    assert result == {
        "file": str(files / "model"),
        "kind": "checkpoint",
        "bytes": (files / "model").stat().st_size,
        "dense_bytes": 4 * 1400 + 4 * 40 + 8,
        "digest": digest,
        "kept_digest": None,
        "weights": 1400,
        "variables": PLAN.num_variables,
        "ratio": PLAN.ratio,
        "training": False,
        "packed": False,
        "plan": PLAN.to_dict(),
    }
    left = smh.load(files / "model").variables["pool/left"].astype(np.float64)
    rms = pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-12)
    count = {"dtype": "I64", "shape": [], "numbers": 1, "bytes": 8}
    assert [entry["name"] for entry in tensors if entry["kind"] == "variable"] == list(PLAN.variable_shapes)
    assert tensors[0] == {
        "name": "pool/left",
        "kind": "variable",
        "dtype": "I8",
        "shape": list(left.shape),
        "numbers": left.size,
        "bytes": left.size,
        "bits": 8,
        "exponent": int(np.ceil(np.log2(np.abs(left).max()))),
        "rms": rms,
    }
    assert tensors[len(PLAN.variable_shapes) :] == [
        {"name": "carried/bn.count", "kind": "carried"} | count,
        {"name": "fc1.bias", "kind": "kept", "dtype": "F32", "shape": [40], "numbers": 40, "bytes": 160},
        {"name": "steps", "kind": "kept"} | count,
    ]

    text = invoke("inspect", files / "model").stdout
    assert re.search(r"fc\* +2 +various +1,400\n", text)
    assert re.search(r"pool/left +I8 +\d+x\d+ ", text)
    assert re.search(r"2 scales +F32 +scalar +8\b", text)
    assert text.index("fc1.bias") < text.index("carried along") < text.index("carried/bn.count")
    assert f"1,400 weights in 2 tensors, from {PLAN.num_variables:,} variables" in text
    every = invoke("inspect", files / "model", "--all").stdout
    for words in (
        r"fc1 +30x40 +1,200 +fan_in\n",
        r"fc2 +40x5 +200 +fan_in\n",
        r"scale/fc1 +F32 +scalar +4 ",
        "scale/fc2 ",
    ):
        assert re.search(words, every)
    assert f"digest {digest} (as stated, not rebuilt)" in text
    assert "training values: not stored" in text


def test_inspect_training_values_and_integers_of_zeros(tmp_path):
    plan = smh.Plan.build({"w": (4, 5)}, ratio=1, bits=4)
    zeros = {"pool/left": np.zeros(plan.variable_shapes["pool/left"], np.float32)}
    smh.save(tmp_path / "model", plan, smh.initialize(plan) | zeros, training=True)
    found = json.loads(invoke("inspect", tmp_path / "model", "--json").stdout)
    assert found["training"] is True
    entries = {entry["name"]: entry for entry in found["tensors"]}
    left = entries["pool/left"]
    assert (left["dtype"], left["bits"], left["exponent"], left["bytes"]) == ("U8", 4, None, -(-left["numbers"] // 2))
    assert entries["pool/right"]["exponent"] is not None
    assert "bits" not in entries["scale/w"]
    for name in ("training/pool/left", "training/pool/right"):
        assert (entries[name]["kind"], entries[name]["dtype"]) == ("training", "F32")
    text = invoke("inspect", tmp_path / "model").stdout
    assert "training values: stored" in text
    assert "all 0" in text


def test_inspect_a_plain_file(files):
    result = json.loads(call("inspect", files / "plain", "--json").stdout)
    tensors = {entry.pop("name"): entry for entry in result.pop("tensors")}
    assert result == {
        "file": str(files / "plain"),
        "kind": "plain",
        "format": "safetensors file",
        "bytes": (files / "plain").stat().st_size,
    }
    assert tensors == {
        "w": {"kind": "plain", "dtype": "F16", "shape": [3, 4], "numbers": 12, "bytes": 24},
        "n": {"kind": "plain", "dtype": "I64", "shape": [5], "numbers": 5, "bytes": 40},
        "\x1b[31m": {"kind": "plain", "dtype": "F64", "shape": [], "numbers": 1, "bytes": 8},
    }
    text = invoke("inspect", files / "plain").stdout
    assert "\x1b" not in text
    assert r"\x1b[31m" in text
    assert "3 tensors, 18 numbers" in text


def test_inspect_believes_no_name_and_no_number(tmp_path):
    name = "evil\x1b[31m\nsecond \ud800"  # a scale would be a variable, which has a name in Unicode
    plan = smh.Plan.build({name: (20, 10)}, ratio=0.4, learn_scale=False)
    variables = smh.initialize(plan)
    variables["pool/left"][:] = 0.0
    smh.save(tmp_path / "model", plan, variables)
    result = invoke("inspect", tmp_path / "model")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert r"evil\x1b[31m" in result.stdout
    assert r"second \ud800" in result.stdout
    assert "all 0" in result.stdout
    found = json.loads(invoke("inspect", tmp_path / "model", "--json").stdout)
    assert found["plan"]["tensors"][0]["name"] == name
    assert [entry["rms"] == 0.0 for entry in found["tensors"]] == [True, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "No such file"),
        ("", "it is a folder"),
        ("truncated", "must have"),
        ("lying", "damaged"),
        ("plain_truncated", "must have"),
        ("plain_lying", "at most"),
        ("text", "safetensors"),
        ("empty", "safetensors"),
    ],
)
def test_inspect_what_is_no_good(files, name, words):
    if name in ("lying", "plain_truncated"):  # the others differ in what is raised, not in how it is told
        assert_fails(call("inspect", files / name), str(files / name), words)
    result = invoke("inspect", files / name, "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert str(files / name) in result.stderr
    assert words in result.stderr


# info


def test_info_of_this_installation():
    done = call("info", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["smh"] == smh.__version__
    assert result["specification"] == "2.0"
    assert result["python"] == ".".join(map(str, sys.version_info[:3]))
    assert result["packages"]["numpy"] == np.__version__
    rows = {row["name"]: row for row in result["backends"]}
    assert list(rows) == smh.list_backends()
    assert [name for name in rows if rows[name]["installed"]] == smh.list_backends(installed=True)
    for row in rows.values():
        if row["installed"]:
            assert row["version"]
            assert row["devices"]
            assert row["error"] is None


def test_info_imports_no_framework_before_it_runs():
    code = "import smh.cli, sys; print({'torch', 'jax', 'tensorflow', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_info_of_backends_that_fail(monkeypatch):
    def get_backend(name):
        if name == "torch":
            raise BackendError("backend 'torch' cannot be imported")
        if name == "broken":
            raise OSError("libfoo.so: \x1b cannot\nopen")
        return smh.get_backend(name)

    known = ["numpy", "torch", "broken", "tensorflow"]
    monkeypatch.setattr(look, "list_backends", lambda installed=False: known[:3] if installed else known)
    monkeypatch.setattr(look, "get_backend", get_backend)
    monkeypatch.setenv("SMH_BACKEND", "nmpy")
    result = invoke("info", "--json")
    assert result.exit_code == 0
    rows = {row.pop("name"): row for row in json.loads(result.stdout)["backends"]}
    assert rows["numpy"] == {"installed": True, "version": np.__version__, "devices": ["cpu"], "error": None}
    assert rows["torch"]["error"] == "backend 'torch' cannot be imported"
    assert rows["torch"]["devices"] == []
    assert rows["broken"] == {
        "installed": True,
        "version": None,
        "devices": [],
        "error": "libfoo.so: \x1b cannot open",
    }
    assert rows["tensorflow"] == {"installed": False, "version": None, "devices": [], "error": None}
    text = invoke("info").stdout
    assert r"libfoo.so: \x1b cannot open" in text
    assert 'not installed: pip install "structured-multi-hashing[keras]"' in text
    assert "nmpy (there is none of this name: change SMH_BACKEND)" in text


# demo


@pytest.mark.parametrize("pool", ["matmul", "kronecker", "hash"])
def test_demo_trains_saves_and_verifies(tmp_path, pool):
    path = tmp_path / "digits.safetensors"
    result = invoke("demo", "--epochs", 12, "--hidden", 64, "--pool", pool, "--ratio", 0.2, "--out", path)
    assert result.exit_code == 0, result.output
    assert "0 bits different" in result.output
    found = smh.load(path)
    assert found.digest in result.output
    assert smh.digest(found.plan, found.variables) == found.digest
    accuracies = [float(word[:-1]) for word in result.output.split() if word.endswith("%") and word != "100%"]
    assert len(accuracies) == 3  # and the share of bytes
    accuracies.pop()
    assert min(accuracies) > 85
    assert {name.split("/")[0] for name in load_file(path)} == {"pool", "scale", "dense"}


def test_demo_as_json(tmp_path):
    path = tmp_path / "digits.safetensors"
    done = call("demo", "--epochs", 1, "--hidden", 16, "--ratio", 0.3, "--out", path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    found = smh.load(path)
    assert result["digest"] == found.digest
    assert smh.Plan.from_dict(result["plan"]) == found.plan
    assert result["weights"] == found.plan.num_weights == 64 * 16 + 16 * 16 + 16 * 10
    assert result["pool"]["variables"] == found.plan.num_variables
    assert result["pool"]["bytes"] == path.stat().st_size
    assert result["dense"]["bytes"] == Path(result["dense"]["out"]).stat().st_size
    plain = load_file(result["dense"]["out"])
    assert sum(x.nbytes for x in plain.values()) == 4 * (result["weights"] + result["biases"])
    assert result["pool"]["out"] == str(path)
    assert 0 < result["dense"]["accuracy"] < 1
    assert 0 < result["pool"]["accuracy"] < 1
    assert (result["bits_different"], result["same"]) == (0, True)


def test_demo_of_weights_that_change(tmp_path, monkeypatch):
    class Other:
        def __getattr__(self, name):
            return getattr(smh, name)

        def load(self, path):
            found = smh.load(path)
            found.variables["scale/fc1"] = np.nextafter(found.variables["scale/fc1"], np.float32(9))
            return found

    monkeypatch.setattr("smh.cli.demo.smh", Other())
    result = invoke("demo", "--epochs", 1, "--hidden", 8, "--ratio", 0.5, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["same"] is False
    assert json.loads(result.stdout)["bits_different"] > 0


def test_demo_replaces_no_file_unless_it_is_forced(tmp_path):
    options = ["--epochs", 1, "--hidden", 8, "--ratio", 0.5, "--bits", 6, "--out", tmp_path / "d.safetensors"]
    for name in ("d.safetensors", "d-dense.safetensors"):
        (tmp_path / name).write_bytes(b"old")
        result = invoke("demo", *options)
        assert result.exit_code == 3
        assert f"replace it by --force; got '{tmp_path / name}'" in result.stderr
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
        (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"old")
    assert invoke("demo", *options, "--force").exit_code == 0
    assert (tmp_path / name).read_bytes() != b"old"
    assert smh.load(tmp_path / "d.safetensors").plan.pool.bits == 6


def test_demo_of_what_cannot_work(tmp_path):
    assert_fails(call("demo", "--out", tmp_path / "none" / "out"), str(tmp_path / "none"), "No such folder")
    for option, value in (("--ratio", "0.0001"), ("--ratio", "nan"), ("--pool", "matmull"), ("--seed", "-1")):
        assert_fails(invoke("demo", option, value, "--out", tmp_path / "out"), "Invalid value for", option, code=2)
    assert not os.listdir(tmp_path)


# conformance: what it finds is tested with the suite


def test_conformance_that_fails(monkeypatch):
    row = {"backend": "numpy", "device": "cpu", "mode": "eager", "passed": 23, "failed": 1, "xfailed": 0, "checks": 100}
    row |= {"bits": 3200, "different": 5, "skipped": ""}
    failures = [{"id": "test_weights[numpy]", "error": "[bold] 5 bits differ"}]
    none = dict.fromkeys(("passed", "failed", "xfailed", "checks", "bits", "different"), 0)
    declared = {"rows": [row | none], "failures": [], "seed": 5, "plans": 30}
    drawn = {"rows": [row | none | {"passed": 10, "bits": 64}], "failures": []}
    asked = []

    def check(suite, name, options, found=failures):
        asked.append(options)
        first = {"rows": [row], "failures": found}
        return copy.deepcopy(declared if "--collect-only" in options else drawn if "-k" in options else first)

    monkeypatch.setattr(conformance, "_check", check)
    result = invoke("conformance", "--backend", "numpy", "--deep", "--mode", "eager", "--json")
    asked_of_mode = ["--deep", "--mode", "eager"]
    more = ["-k", "test_drawn_plans"]
    assert asked[0] == [*asked_of_mode, "--collect-only"]
    assert sorted(asked[1:]) == [
        [*asked_of_mode, "--seed", "17", "--plans", "12", *more],
        [*asked_of_mode, "--seed", "29", "--plans", "6", *more],
        [*asked_of_mode, "--seed", "5", "--plans", "12"],
    ]
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "passed": False,
        "seeds": {"numpy": 5},
        "plans": {"numpy": 30},
        "rows": [row | {"passed": 43, "bits": 3328}],
        "failures": failures,
        "missing": [],
    }
    result = invoke("conformance", "--backend", "numpy")
    assert result.exit_code == 1
    assert "failed: test_weights[numpy]" in result.stdout
    assert "[bold] 5 bits differ" in result.stdout
    monkeypatch.setattr(conformance, "_check", functools.partial(check, found=[]))
    assert invoke("conformance", "--backend", "numpy").exit_code == 0


def test_conformance_that_cannot_run(monkeypatch):
    def fail(*_):
        raise ConformanceError("the suite did not run")

    monkeypatch.setattr(conformance, "_check", fail)
    result = invoke("conformance", "--backend", "numpy", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "error: the suite did not run\n")
