"""The commands plan and fit."""

import json
import os
import re
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import smh
from conformance.bits import assert_same_bits
from smh.core.pools import Matmul
from smh.files.integers import pack, unpack
from smh.models.fit import fit_variables
from tests.cli.common import as_json, assert_fails, call, invoke

rng = np.random.default_rng(0)
DENSE = {
    "fc1.weight": rng.normal(size=(30, 40)).astype(np.float32),
    "fc2.weight": rng.normal(size=(40, 20)).astype(np.float16),
    "conv.weight": rng.normal(size=(8, 4, 3, 3)).astype(ml_dtypes.bfloat16),
    "fc1.bias": np.linspace(0, 1, 40, dtype=np.float32),
    "norm.bias": np.ones(3, dtype=ml_dtypes.bfloat16),
    "ids": np.arange(12).reshape(3, 4),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.float32),
}
GENERATED = {"fc1.weight", "fc2.weight", "conv.weight"}
SHAPES = {name: x.shape for name, x in DENSE.items() if name in GENERATED}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files, good and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    save_file(DENSE, folder / "dense.safetensors")
    data = (folder / "dense.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(data[:-1])
    (folder / "lying.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    plan = smh.Plan.build({"fc1": (30, 40)}, ratio=0.3)
    smh.save(folder / "model.safetensors", plan, smh.initialize(plan))
    (folder / "shapes.json").write_text(json.dumps({"fc1": [30, 40], "fc2": [40, 5], "bias": [40]}))
    return folder


# plan


def test_plan_of_words():
    done = call("plan", "fc1=30x40", "fc2=40x5", "bias=40", "--ratio", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    plan = smh.Plan.build({"fc1": (30, 40), "fc2": (40, 5)}, ratio=0.2)
    assert f"1,400 weights in 2 tensors, from {plan.num_variables} variables" in done.stdout
    assert re.search(r"fewer than two axes, such as bias +1 +40 +160\n", done.stdout)
    before, after = 4 * 1440, plan.file_bytes + 160
    assert (
        f"{before:,} bytes before, {after:,} after ({after / before:.1%}), 160 of them in 1 kept tensor\n"
        in done.stdout
    )
    every = call("plan", "fc1=30x40", "fc2=40x5", "bias=40", "--ratio", "0.2", "--all").stdout
    assert re.search(r"fc1 +30x40 +1,200 +fan_in\n", every)
    assert re.search(r"bias +40 +160 +fewer than two axes *\n", every)


def test_plan_as_json(files, tmp_path):
    out = tmp_path / "plan.json"
    done = call("plan", files / "shapes.json", "--ratio", "0.2", "-o", out, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = smh.Plan.build({"fc1": (30, 40), "fc2": (40, 5)}, ratio=0.2)
    assert json.loads(done.stdout) == {
        "out": str(out),
        "weights": 1400,
        "variables": plan.num_variables,
        "ratio": plan.ratio,
        "bits": [8],
        "capacity": plan.capacity,
        "bytes_before": 4 * 1440,
        "bytes_after": plan.file_bytes + 160,
        "kept": {"bias": "fewer than two axes"},
        "kept_numbers": 40,
        "kept_bytes": 160,
        "warnings": [],
        "plan": plan.to_dict(),
    }
    assert out.read_text() == plan.to_json() + "\n"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_plan_of_a_plain_file(files):
    found = as_json("plan", files / "dense.safetensors", "--ratio", "20%", "--convention", "default")
    order = [tensor["name"] for tensor in found["plan"]["tensors"]]
    assert sorted(order) == sorted(GENERATED)
    assert smh.Plan.from_dict(found["plan"]) == smh.Plan.build({name: SHAPES[name] for name in order}, ratio=0.2)
    assert found["kept"] == {
        "fc1.bias": "fewer than two axes",
        "norm.bias": "fewer than two axes",
        "ids": "it is of dtype I64",
        "mask": "it is of dtype BOOL",
        "empty": "it is empty",
    }
    assert found["kept_bytes"] == sum(DENSE[name].nbytes for name in found["kept"])
    assert found["bytes_before"] == sum(x.nbytes for x in DENSE.values())
    assert found["bytes_after"] == smh.Plan.from_dict(found["plan"]).file_bytes + found["kept_bytes"]


@pytest.mark.parametrize("command", [["plan"], ["fit", "-o", "out"]])
@pytest.mark.parametrize(("x", "why"), [(np.ones((8, 9), np.int32), "dtype I32"), (np.ones(8, np.float32), "two axes")])
def test_a_model_without_matrices_has_nothing_to_generate(tmp_path, monkeypatch, command, x, why):
    monkeypatch.chdir(tmp_path)
    save_file({"w": x}, tmp_path / "x")
    for scale in ("fan_in", "match"):
        done = invoke(*command, tmp_path / "x", "--ratio", "0.5", "--scale", scale)
        assert_fails(done, "the model has nothing to generate: 'w': ", why)


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (["a.weight", "b.bias"], "o i"),
        (["a/kernel", "b/bias"], "i o"),
        (["a/embedding", "b.scale"], "o i"),
        (["w", "b"], None),
        (["a.weight", "b/kernel"], None),
    ],
)
def test_names_tell_what_axes_mean(tmp_path, names, axes):
    save_file({name: np.ones((8 - k, 9), np.float32) for k, name in enumerate(names)}, tmp_path / "x")
    arguments = ["plan", tmp_path / "x", "--ratio", "0.5"]
    if axes is None:
        assert_fails(invoke(*arguments), "names do not tell what axes mean", "--convention torch")
        assert as_json(*arguments, "--scale", "0.1")["plan"]["tensors"]  # which does not ask
        axes, arguments = "o i", [*arguments, "--convention", "torch"]
    else:
        assert "guessed from names; --convention changes it" in invoke(*arguments).stdout
    assert as_json(*arguments)["plan"]["tensors"][0]["axes"] == axes


def test_a_warning_says_when_most_is_kept(tmp_path):
    save_file({"a.weight": np.ones((8, 9), np.float32), "b.bias": np.ones(73, np.float32)}, tmp_path / "x")
    result = invoke("plan", tmp_path / "x", "--ratio", "0.5")
    assert "warning: only 50% of the numbers are generated" in result.stderr
    assert "warning" not in result.stdout
    assert len(as_json("plan", tmp_path / "x", "--ratio", "0.5")["warnings"]) == 1
    assert invoke("plan", "a=8x9", "b=72", "--ratio", "0.5").stderr == ""


def test_plan_takes_every_option():
    options = ["--pool", "kronecker", "--layout", "cyclic", "--scale", "0.25", "--fixed-scales", "--seed", "7"]
    options += ["--bits", "5", "--optimizer", "adam", "--exponents", "fixed"]
    found = smh.Plan.from_dict(as_json("plan", "a=30x40", "b=9x9", "--ratio", "0.3", *options)["plan"])
    assert found == smh.Plan.build(
        {"a": (30, 40), "b": (9, 9)},
        ratio=0.3,
        pool="kronecker",
        layout="cyclic",
        scale=0.25,
        learn_scale=False,
        seed=7,
        bits=5,
        optimizer="adam",
        exponents="fixed",
    )


def test_plan_of_a_size_counts_what_is_kept(files):
    for path in (files / "dense.safetensors", files / "shapes.json"):
        found = as_json("plan", path, "--size", "1.5 kB")
        assert 1400 < found["bytes_after"] <= 1500
        assert found["kept_bytes"] > 0
    text = invoke("plan", files / "shapes.json", "--size", "1500").stdout
    assert "160 of them in 1 kept" in text
    assert_fails(invoke("plan", files / "shapes.json", "--size", "200"), "need at least", "got 200")
    small = invoke("plan", files / "shapes.json", "--size", "small")
    assert_fails(small, "size must be a number of bytes", "'small'", code=2)


def test_a_ratio_that_compresses_nothing_is_refused_unless_allowed(files, tmp_path):
    out = tmp_path / "model"
    for command in (["plan", "a=30x40"], ["fit", files / "dense.safetensors", "-o", out]):
        for ratio, hint in (("1", "0.1"), ("10", "0.1"), ("25", "0.25")):
            words = ("as many numbers as before or more", f"did you mean {hint}?")
            assert_fails(invoke(*command, "--ratio", ratio), *words, "--allow-expansion", code=2)
    assert not os.listdir(tmp_path)
    assert as_json("plan", "a=30x40", "--ratio", "1", "--allow-expansion")["ratio"] > 0.9
    result = invoke("fit", files / "dense.safetensors", "-o", out, "--ratio", "1", "--allow-expansion")
    assert result.exit_code == 0, result.output


def test_nothing_replaces_a_file_unless_it_is_forced(files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    for command in (["plan", "a=30x40"], ["fit", files / "dense.safetensors"]):
        arguments = [*command, "--ratio", "0.3", "-o", out]
        assert_fails(invoke(*arguments), "the file exists", "--force", str(out))
        assert out.read_bytes() == b"old"
        assert invoke(*arguments, "--force").exit_code == 0
        assert out.read_bytes() != b"old"
        out.write_bytes(b"old")
    dense = files / "dense.safetensors"
    before = dense.read_bytes()
    assert_fails(invoke("fit", dense, "--ratio", "0.3", "-o", dense, "--force"), "would replace the input")
    assert dense.read_bytes() == before


def test_plan_knows_what_axes_mean():
    words = ["a=30x40", "b=8x6x5", "c=8x4x3x3", "d=8x4x2x3x3", "e=7"]
    shapes = {"a": (30, 40), "b": (8, 6, 5), "c": (8, 4, 3, 3), "d": (8, 4, 2, 3, 3), "e": (7,)}
    axes = {"a": "o i", "b": "o i w", "c": "o i h w", "d": "o i d h w"}
    options = ["--ratio", "0.2", "--include", "*"]
    found = smh.Plan.from_dict(as_json("plan", *words, *options, "--convention", "torch")["plan"])
    assert found == smh.Plan.build(shapes, ratio=0.2, axes=axes, include="*")
    found = smh.Plan.from_dict(as_json("plan", *words, *options)["plan"])
    assert found == smh.Plan.build(shapes, ratio=0.2, include="*")


def test_plan_of_many_axes():
    assert_fails(invoke("plan", "a=3x4x5x6x7x8", "--ratio", "0.2"), "'fan_in'", "6 of them", "a number")
    found = as_json("plan", "a=3x4x5x6x7x8", "--ratio", "0.2", "--scale", "0.1")
    assert found["plan"]["tensors"][0]["shape"] == [3, 4, 5, 6, 7, 8]


def test_plan_with_scales_of_present_values(files):
    found = as_json("plan", files / "dense.safetensors", "--ratio", "0.2", "--scale", "match")
    scales = {tensor["name"]: tensor["scale"] for tensor in found["plan"]["tensors"]}
    for name in GENERATED:
        assert scales[name] == np.float32(np.std(DENSE[name].astype(np.float64)))


@pytest.mark.parametrize(
    ("options", "hashed"),
    [
        (["--include", "fc*"], {"fc1.weight", "fc2.weight", "fc1.bias"}),
        (["--include", "fc1"], {"fc1.weight"}),
        (["--include", "weight"], GENERATED),
        (["--include", r"re:fc\d\..*"], {"fc1.weight", "fc2.weight", "fc1.bias"}),
        (["--include", r"re:.*1\.bias", "--include", "conv.weight"], {"fc1.bias", "conv.weight"}),
        (["--exclude", "fc2.*"], {"fc1.weight", "conv.weight"}),
        (["--exclude", "ids"], GENERATED),
        (["--include", "*", "--exclude", "bias", "--exclude", "conv"], {"fc1.weight", "fc2.weight"}),
    ],
)
def test_plan_of_chosen_tensors(files, options, hashed):
    found = as_json("plan", files / "dense.safetensors", "--ratio", "0.3", *options)
    assert {tensor["name"] for tensor in found["plan"]["tensors"]} == hashed
    assert set(found["kept"]) == set(DENSE) - hashed


def test_a_bias_of_two_axes_is_kept_also_where_others_are_excluded():
    words = ["a.weight=30x40", "a.bias=30x4", "b.weight=30x40"]
    for options in ([], ["--exclude", "b.*"]):
        assert "a.bias" in as_json("plan", *words, "--ratio", "0.2", *options)["kept"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.safetensors"], ["No such file"]),
        (["none.json"], ["No such file"]),
        ([""], ["model.safetensors': it is a checkpoint of smh"]),
        (["truncated.safetensors"], ["truncated.safetensors", "data section"]),
        (["lying.safetensors"], ["lying.safetensors", "at most"]),
        (["model.safetensors"], ["a checkpoint of smh", "smh materialize"]),
        (["dense.safetensors", "--include", "ids"], ["no tensor is left", "'ids': it is of dtype I64"]),
        (["dense.safetensors", "--include", "fc3.*"], ["--include 'fc3.*' matches no tensor", "'fc1.bias'"]),
        (["dense.safetensors", "--exclude", "eight"], ["--exclude 'eight' matches no tensor"]),
        (["dense.safetensors", "--exclude", "re:fc"], ["--exclude 're:fc' matches no tensor"]),
        (["dense.safetensors", "--exclude", r"fc\d.*"], ["is written --exclude 're:fc"]),
        (["dense.safetensors", "--exclude", "*"], ["no tensor is left"]),
        (["dense.safetensors", "--ratio", "0.00001"], ["the smallest feasible ratio is"]),
        (["dense.safetensors", "-o", "none/plan.json"], ["none: No such folder"]),
        (["shapes.json", "-o", "shapes.json"], ["would replace the input"]),
        (["dense.safetensors", "-o", ""], ["Is a directory"]),
        (["shapes.json", "--scale", "match"], ["present values"]),
    ],
)
def test_plan_of_what_is_no_good(files, arguments, words):
    before = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    places = [n for n, x in enumerate(arguments) if n == 0 or arguments[n - 1] == "-o"]
    given = [files / x if n in places else x for n, x in enumerate(arguments)]
    ratio = [] if "--ratio" in arguments else ["--ratio", "0.2"]
    assert_fails(invoke("plan", *given, *ratio), *words)
    if arguments in (["none.json"], ["truncated.safetensors"]):  # the others differ in what is raised only
        assert_fails(call("plan", *given, *ratio), *words)
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "plain JSON"),
        (b"\xff\xfe", "plain JSON"),
        (b"[[3, 4]]", "must hold an object"),
        (b'"fc=3x4"', "must hold an object"),
        (b"{}", "no tensors"),
        (b'{"a": 12}', "list of at most 64 sizes"),
        (b'{"a": "30x40"}', "list of at most 64 sizes"),
        (b'{"a": ["30", "40"]}', "list of at most 64 sizes"),
        (b'{"a": [[30, 40]]}', "list of at most 64 sizes"),
        (b'{"a": {"b": [30, 40]}}', "list of at most 64 sizes"),
        (b'{"a": [-30, 40]}', "list of at most 64 sizes"),
        (b'{"a": [30.0, 40]}', "list of at most 64 sizes"),
        (b'{"a": [true, 40]}', "list of at most 64 sizes"),
        (b'{"a": [null]}', "list of at most 64 sizes"),
        (b'{"a": [1' + b",1" * 64 + b"]}", "list of at most 64 sizes"),
        (b'{"a": [0, 40]}', "every size"),
        (b'{"a": [2147483648, 2]}', "every size"),
        (b'{"a": [99999999999999999999999999, 2]}', "every size"),
        (b'{"a": [' + b"9" * 5000 + b"]}", "32 characters"),
        (b'{"a": [50000, 50000]}', "2147483647"),
        (b'{"a": [30, NaN]}', "plain JSON"),
        (b'{"a": [30, 40], "a": [3, 4]}', "once"),
        (b'{"": [30, 40]}', "name"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "plain JSON"),
        (b'{"a": [' + b"1," * 600_000 + b"1]}", "values"),
        (b" " * (9 << 20), "bytes"),
    ],
)
def test_plan_of_hostile_shapes(tmp_path, text, words):
    (tmp_path / "shapes.json").write_bytes(text)
    result = invoke("plan", tmp_path / "shapes.json", "--ratio", "0.2", "-o", tmp_path / "plan.json")
    assert_fails(result, words)
    assert os.listdir(tmp_path) == ["shapes.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a=30y40", "--ratio", "0.2"], "a=30y40"),
        (["a=30x40", "b", "--ratio", "0.2"], "'b'"),
        (["a=30x40", "a=3x4", "--ratio", "0.2"], "each name once"),
        (["a=" + "9" * 5000, "--ratio", "0.2"], "words such as"),
        (["a=30x-4", "--ratio", "0.2"], "words such as"),
        (["a=30x40"], "got neither"),
        (["a=30x40", "--ratio", "0.2", "--size", "1 kB"], "got both"),
        (["a=30x40", "--ratio", "much"], "valid"),
        (["a=30x40", "--ratio", "0.2", "--include", "re:["], "--include: 're:[' is not a regular expression: untermin"),
        (["a=30x40", "--ratio", "0.2", "--include", "re:(a+)+b"], "which can take for ever"),
        (["a=0x40", "--ratio", "0.2"], "sizes are at least 1"),
        (["a=99999x99999", "--ratio", "0.2"], "at most 2147483647 elements"),
        (["--ratio", "0.2"], "MODEL"),
    ],
)
def test_plan_that_was_not_understood(arguments, words):
    assert_fails(invoke("plan", *arguments), words, code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--convention", "tf"], ["convention", "torch", "'tf'"]),
        (["--ratio", "nan"], ["a number above 0", "'nan'"]),
        (["--ratio", "0"], ["a number above 0"]),
        (["--ratio", "ten"], ["a number above 0", "'ten'"]),
        (["--size", "5mo"], ["'5mo'", "2 MiB"]),
        (["--size", "0"], ["at least 1 byte"]),
        (["--pool", "matmull"], ["'matmull'", "kronecker"]),
        (["--layout", "round"], ["'round'", "cyclic"]),
        (["--scale", "wide"], ["'wide'", "fan_in"]),
        (["--scale", "-1"], ["initial scale must be at least"]),
        (["--optimizer", "sdg"], ["'sdg'", "'sgd', 'adam'"]),
        (["--exponents", "both"], ["'both'", "'free', 'fixed'"]),
        (["--bits", "1"], ["bits", "got 1"]),
        (["--seed", "-1"], ["seed"]),
    ],
)
def test_values_that_no_file_allows_are_wrong_usage(tmp_path, options, words):
    """There is no file, which would be told next."""
    ratio = [] if options[0] in ("--ratio", "--size") else ["--ratio", "0.2"]
    for command in (["plan"], ["fit", "-o", tmp_path / "out"]):
        assert_fails(
            invoke(*command, tmp_path / "none", *ratio, *options), *words, "Invalid value for", options[0], code=2
        )
    assert not os.listdir(tmp_path)


def test_an_error_is_at_least_0(tmp_path):
    for error in ("-1", "nan"):
        result = invoke("fit", tmp_path / "none", "--ratio", "0.2", "-o", tmp_path / "out", "--max-error", error)
        assert_fails(result, "a number of at least 0", code=2)


@given(st.dictionaries(st.text(max_size=3), st.lists(st.integers(-1, 50), max_size=4) | st.integers() | st.none()))
@settings(max_examples=50)
def test_plan_of_any_shapes_ends_well(tmp_path_factory, shapes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(shapes))
    result = invoke("plan", path, "--ratio", "0.5", "--json")
    assert result.exit_code in (0, 3), result.output
    if result.exit_code == 0:
        assert {tensor["name"] for tensor in json.loads(result.stdout)["plan"]["tensors"]} <= set(shapes)


# fit


def expected(path, plan):
    """Return what a checkpoint of the plan, fitted to the file, holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # noise is fitted badly
        variables, report = fit_variables(plan, {name: DENSE[name].astype(np.float32) for name in GENERATED})
    found = smh.load(path)
    assert found.plan == plan
    variables |= unpack(plan, *pack(plan, variables))
    for name, x in variables.items():
        assert_same_bits(found.variables[name], x, name)
    return found, report


def test_fit(files, tmp_path):
    out = tmp_path / "model.safetensors"
    done = call("fit", files / "dense.safetensors", "--ratio", "0.3", "-o", out, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    order = [name for name in load_file_order(files / "dense.safetensors") if name in GENERATED]
    plan = smh.Plan.build(
        {name: SHAPES[name] for name in order},
        ratio=0.3,
        scale="match",
        values={name: DENSE[name].astype(np.float32) for name in GENERATED},
    )
    found, report = expected(out, plan)
    kept = set(DENSE) - GENERATED
    assert set(found.dense) == kept
    for name in kept:
        assert found.dense[name].dtype == DENSE[name].dtype
        assert found.dense[name].shape == DENSE[name].shape
        assert found.dense[name].tobytes() == DENSE[name].tobytes()
    assert result["digest"] == found.digest == smh.digest(found.plan, found.variables)
    assert (result["file"], result["out"]) == (str(files / "dense.safetensors"), str(out))
    assert result["bytes"] == out.stat().st_size
    assert result["error"] == pytest.approx(report.error)
    assert result["error_unrounded"] == pytest.approx(report.error_unrounded)
    assert 0 < result["error_unrounded"] < 1
    assert result["errors"] == pytest.approx(report.errors)
    assert result["kept_bytes"] == sum(DENSE[name].nbytes for name in kept)
    assert (result["weights"], result["variables"]) == (plan.num_weights, plan.num_variables)


def load_file_order(path):
    """Return the names in the order of their data."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def test_fit_says_how_close_it_came(files, tmp_path):
    out = tmp_path / "model"
    result = invoke("fit", files / "dense.safetensors", "--ratio", "0.3", "-o", out, "--include", "fc*weight")
    assert result.exit_code == 0, result.output
    assert "fc1.weight" in result.stdout
    assert "relative error" in result.stdout
    assert "before rounding to integers" in result.stdout
    assert "warning: the fitted weights are off by" in result.stderr
    assert re.search(r"fc\*\.weight +2 +0\.\d+\n", result.stdout)
    assert re.search(r"not selected, such as conv\.weight +1 +288 +576\n", result.stdout)
    assert f"digest {smh.load(out).digest}" in result.stdout


def test_fit_by_a_plan(files, tmp_path):
    plan = smh.Plan.build(SHAPES, ratio=0.3, pool="hash", layout="padding", scale="fan_in", seed=5)
    (tmp_path / "plan.json").write_text(plan.to_json())
    found = as_json(
        "fit", files / "dense.safetensors", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out.safetensors"
    )
    assert expected(tmp_path / "out.safetensors", plan)[1].error == pytest.approx(found["error"])
    again = tmp_path / "again.safetensors"  # by the plan of a checkpoint
    as_json("fit", files / "dense.safetensors", "--plan", tmp_path / "out.safetensors", "-o", again)
    assert again.read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_metadata_is_kept_from_end_to_end(tmp_path):
    metadata = {"format": "pt", "note": "\u00fc \n"}
    save_file({"w": np.eye(20, dtype=np.float32)}, tmp_path / "dense", metadata)
    as_json("fit", tmp_path / "dense", "--ratio", "0.5", "-o", tmp_path / "model")
    as_json("materialize", tmp_path / "model", "-o", tmp_path / "again")
    with safe_open(tmp_path / "again", "np") as file:
        assert file.metadata() == metadata
    found = smh.load(tmp_path / "model")
    for forged in (b"[]", b'{"a":1}', b'{"smh":"x"}', b"{", b"\xff"):
        dense = {"carried/__metadata__": np.frombuffer(forged, np.uint8)}
        smh.save(tmp_path / "forged", found.plan, found.variables, dense)
        assert_fails(invoke("materialize", tmp_path / "forged", "-o", tmp_path / "out"), "metadata")
        assert not (tmp_path / "out").exists()


def test_fit_of_full_rank_is_close(tmp_path):
    x = np.outer(np.arange(1, 21), np.arange(1, 21)).astype(np.float32)
    save_file({"w": x, "bias": np.ones(3, np.float32)}, tmp_path / "dense")
    found = as_json("fit", tmp_path / "dense", "--ratio", "0.1", "--bits", "16", "-o", tmp_path / "model")
    assert found["error"] < 1e-3
    assert found["error_unrounded"] < 1e-5
    assert found["warnings"] == []
    done = invoke("materialize", tmp_path / "model", "-o", tmp_path / "again")
    assert done.exit_code == 0
    again = load_file(tmp_path / "again")
    np.testing.assert_allclose(again["w"], x, atol=0.5)
    assert_same_bits(again["bias"], np.ones(3, np.float32), "bias")


def plans(tmp_path):
    """Write plans that do not fit, and texts that are no plans."""
    texts = {
        "other": smh.Plan.build({"fc1.weight": (40, 30)}, ratio=0.3).to_json(),
        "unknown": smh.Plan.build({"fc3.weight": (40, 30)}, ratio=0.3).to_json(),
        "of_ids": smh.Plan.build({"ids": (3, 4)}, ratio=0.9, pool="hash").to_json(),
        "no_plan": "{}",
        "no_json": "plan",
        "deep": "[" * 100_000,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    save_file(DENSE, tmp_path / "plain")


@pytest.mark.parametrize(
    ("dense", "options", "words"),
    [
        ("none", ["--ratio", "0.3"], ["No such file"]),
        ("", ["--ratio", "0.3"], ["model.safetensors': it is a checkpoint of smh"]),
        ("truncated.safetensors", ["--ratio", "0.3"], ["data section"]),
        ("lying.safetensors", ["--ratio", "0.3"], ["at most"]),
        ("model.safetensors", ["--ratio", "0.3"], ["a checkpoint of smh", "smh materialize"]),
        ("shapes.json", ["--ratio", "0.3"], ["shapes.json", "must have a weight_map"]),
        (
            "dense.safetensors",
            ["--ratio", "0.3", "--max-error", "0.01"],
            ["the relative error is", "nothing was written"],
        ),
        ("dense.safetensors", ["--ratio", "0.00001"], ["the smallest feasible ratio is"]),
        ("dense.safetensors", ["--ratio", "0.3", "--include", "ids"], ["it is of dtype I64"]),
        ("dense.safetensors", ["--plan", "other"], ["'fc1.weight'", "(40, 30)", "(30, 40)"]),
        ("dense.safetensors", ["--plan", "unknown"], ["'fc3.weight'"]),
        ("dense.safetensors", ["--plan", "of_ids"], ["'ids'", "dtype I64"]),
        ("dense.safetensors", ["--plan", "no_plan"], ["must be a plan in JSON"]),
        ("dense.safetensors", ["--plan", "no_json"], ["must be a plan in JSON"]),
        ("dense.safetensors", ["--plan", "deep"], ["must be a plan in JSON"]),
        (
            "dense.safetensors",
            ["--plan", "plain"],
            ["smh plan -o writes it, or a checkpoint", "a plain safetensors file"],
        ),
        ("dense.safetensors", ["--plan", "none"], ["No such file"]),
    ],
)
def test_fit_of_what_is_no_good(files, tmp_path, dense, options, words):
    plans(tmp_path)
    before = set(os.listdir(tmp_path))
    options = [tmp_path / x if options[n - 1] == "--plan" else x for n, x in enumerate(options)]
    assert_fails(invoke("fit", files / dense, *options, "-o", tmp_path / "out"), *words)
    if options[-1] == "0.00001" or dense == "model.safetensors":  # the others differ in what is raised only
        assert_fails(call("fit", files / dense, *options, "-o", tmp_path / "out"), *words)
    assert set(os.listdir(tmp_path)) == before


def test_fit_where_nothing_can_be_written(files, tmp_path, monkeypatch):
    dense, data = files / "dense.safetensors", (files / "dense.safetensors").read_bytes()
    monkeypatch.setattr("smh.models.fit.fit_variables", None)  # all is found out before any work
    os.symlink(dense, tmp_path / "link")
    assert_fails(invoke("fit", dense, "--ratio", "0.3", "-o", dense), "would replace the input")
    assert_fails(invoke("fit", dense, "--ratio", "0.3", "-o", tmp_path / "link"), "would replace the input")
    assert_fails(invoke("fit", dense, "--ratio", "0.3", "-o", tmp_path / "none" / "x"), "No such folder")
    assert_fails(invoke("fit", dense, "--ratio", "0.3", "-o", tmp_path), "Is a directory")
    assert dense.read_bytes() == data
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("code", ["F6_E2M3", "carried/x"])
def test_fit_of_what_a_checkpoint_cannot_keep(tmp_path, monkeypatch, code):
    name, dtype, size = ("odd", code, 3) if code.startswith("F6") else (code, "F16", 8)
    header = {
        "w": {"dtype": "F32", "shape": [20, 20], "data_offsets": [0, 1600]},
        name: {"dtype": dtype, "shape": [4], "data_offsets": [1600, 1600 + size]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "dense").write_bytes(len(text).to_bytes(8, "little") + text + os.urandom(400) * 4 + bytes(size))
    monkeypatch.setattr("smh.models.fit.fit_variables", None)
    result = invoke("fit", tmp_path / "dense", "--ratio", "0.3", "--scale", "0.1", "-o", tmp_path / "out")
    assert_fails(result, repr(name), code)
    assert os.listdir(tmp_path) == ["dense"]


def test_fit_of_values_that_are_not_finite(tmp_path):
    save_file({"w": np.full((20, 20), np.nan, dtype=np.float32)}, tmp_path / "dense")
    for scale in ("match", "0.1"):
        result = invoke("fit", tmp_path / "dense", "--ratio", "0.3", "--scale", scale, "-o", tmp_path / "out")
        assert_fails(result, "'w'", "finite")
    assert os.listdir(tmp_path) == ["dense"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--ratio", "--plan"]),
        (["--plan", "p", "--ratio", "0.3"], ["leave out --ratio"]),
        (["--plan", "p", "--seed", "0", "--fixed-scales"], ["leave out --seed, --fixed-scales"]),
        (["--plan", "p", "--include", "fc*"], ["leave out --include"]),
    ],
)
def test_fit_that_was_not_understood(files, tmp_path, options, words):
    result = invoke("fit", files / "dense.safetensors", *options, "-o", tmp_path / "out")
    assert_fails(result, *words, code=2)
    assert not os.listdir(tmp_path)


MEASURE = """
import re, sys
from smh.cli import app
def peak():  # not that of getrusage, which begins with the peak of the process that started this one
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
middle = sys.argv.index("/")
app(sys.argv[1:middle], standalone_mode=False)  # imports, and what BLAS keeps
start = peak()
app(sys.argv[middle + 1:], standalone_mode=False)
print(peak() - start)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the peak")
def test_fit_never_holds_the_file(tmp_path):
    """The virtual weights are few here, so that they hide nothing."""
    shapes = {f"layer{k}": (1024, 1024) for k in range(48)}
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [k << 22, (k + 1) << 22]}
        for k, (name, shape) in enumerate(shapes.items())
    }
    text = json.dumps(entries).encode()
    block = rng.standard_normal(1 << 20, dtype=np.float32).tobytes()
    with open(tmp_path / "dense", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in shapes:
            file.write(block)
    plan = smh.Plan.build(shapes, ratio=0.1, pool=Matmul(n=100, m=4), layout="cyclic", scale=1.0)
    (tmp_path / "plan.json").write_text(plan.to_json())
    save_file({"w": rng.standard_normal((100, 100), dtype=np.float32)}, tmp_path / "small")
    first = ["fit", tmp_path / "small", "--ratio", "0.2", "-o", tmp_path / "first", "-q"]
    arguments = ["fit", tmp_path / "dense", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "-q"]
    command = [sys.executable, "-c", MEASURE, *map(str, [*first, "/", *arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    os.remove(tmp_path / "dense")
    assert int(done.stdout) < 96 << 10, "a file of 192 MiB took more than 96"
    assert smh.load(tmp_path / "out").plan == plan
