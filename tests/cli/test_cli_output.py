"""What people see: summaries, narrow consoles, --quiet, plots, and a missing package of the command line."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from safetensors.numpy import save_file

import smh
from smh.cli.output import Listing, show, text_console
from smh.cli.summary import grouped
from tests.cli.common import as_json, assert_fails, call, invoke

LAYER = "model.layers.{}.attention.projection.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    tensors = {LAYER.format(k): rng.normal(size=(8, 12)).astype(np.float32) for k in range(30)}
    tensors |= {f"model.layers.{k}.norm.scale": np.ones((4, 4), np.float32) for k in range(30)}
    tensors |= {f"model.layers.{k}.bias": np.ones(3, np.float32) for k in range(30)}
    save_file(tensors | {"steps": np.array(3)}, folder / "dense.safetensors")
    plan = smh.Plan.build({LAYER.format(k): (8, 12) for k in range(30)}, ratio=0.3)
    smh.save(folder / "model.safetensors", plan, smh.initialize(plan))
    return folder


def test_plan_groups_by_name_and_by_reason(files):
    text = invoke("plan", files / "dense.safetensors", "--ratio", "0.3").stdout
    assert re.search(r"model\.layers\.\*\.attention\.projection\.weight +30 +8x12 +2,880\n", text)
    assert re.search(r"it is a scale, such as model\.layers\.0\.norm\.scale +30 +480 +1,920\n", text)
    assert re.search(r"fewer than two axes, such as model\.layers\.0\.bias +30 +90 +360\n", text)
    assert re.search(r"it is of dtype I64, such as steps +1 +1 +8\n", text)
    assert len(text.splitlines()) < 15
    every = invoke("plan", files / "dense.safetensors", "--ratio", "0.3", "--all").stdout
    assert all(LAYER.format(k) in every and f"model.layers.{k}.bias" in every for k in range(30))


def test_inspect_groups(files):
    text = invoke("inspect", files / "dense.safetensors").stdout
    assert re.search(r"model\.layers\.\*\.norm\.scale +30 +F32 +4x4 +480 +1,920\n", text)
    assert re.search(r"steps +1 +I64 +scalar +1 +8\n", text)
    assert "safetensors file: 91 tensors, 3,451 numbers" in text
    text = invoke("inspect", files / "model.safetensors").stdout
    assert re.search(r"30 scales +F32 +scalar +120", text)
    assert len(text.splitlines()) < 15


def test_groups_lose_nothing():
    long = "x" * 300
    names = ["a1", "b", "a2", "a*", f"{long}1", f"{long}y", f"{long}z", "c7"]
    groups = grouped(names, str)
    assert [label for label, _ in groups] == ["a*", "b", f"{long}1", f"{long}y", f"{long}z", "c7"]
    assert sorted(name for _, members in groups for name in members) == sorted(names)
    pairs = [("a1", 1), ("a2", 2), ("a3", 1)]
    assert [x for _, x in grouped(pairs, lambda x: x[0], lambda x: x[1])] == [[pairs[0], pairs[2]], [pairs[1]]]


def test_many_groups_are_counted(tmp_path):
    save_file({"w" + "x" * k: np.ones((2, 2), np.float32) for k in range(50)}, tmp_path / "x")
    text = invoke("inspect", tmp_path / "x").stdout
    assert "and 10 groups more (--all shows all)" in text
    assert "groups more" not in invoke("inspect", tmp_path / "x", "--all").stdout


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("options", [["inspect"], ["plan", "--ratio", "0.3"], ["plan", "--ratio", "0.3", "--all"]])
def test_nothing_is_cut_at_any_width(files, width, options):
    wide, narrow = (invoke(*options, files / "dense.safetensors", columns=columns).stdout for columns in (300, width))
    count = 1 if options == ["inspect"] else 2  # listings, which come first
    for one, other in zip(wide.split("\n\n")[:count], narrow.split("\n\n")[:count], strict=True):
        head, *lines = other.splitlines()
        assert all(cell_len(line.rstrip()) <= width for line in lines)
        if len(head.split()) > 1:  # a table: the same characters, in other places
            assert sorted("".join(other.split())) == sorted("".join(one.split()))
        else:
            assert all(word in "".join(other.split()) for line in one.splitlines()[1:] for word in line.split())


def shown(listing, width):
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(listing)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_listing_folds_and_then_stacks():
    listing = Listing("name", "shape", "bytes", "note")
    listing.add("encoder.layer.0.weight", "8x12", 1234, "")
    assert shown(listing, 80) == [
        "name                    shape  bytes",
        "encoder.layer.0.weight   8x12  1,234",
    ]
    assert shown(listing, 32) == [
        "name                shape  bytes",
        "encoder.layer.0.we   8x12  1,234",
        "ight",
    ]
    assert shown(listing, 20) == [
        "name",
        "  encoder.layer.0.we",
        "  ight",
        "    shape 8x12,",
        "    bytes 1,234",
    ]


def test_a_listing_takes_no_markup_and_no_control_characters():
    listing = Listing("name", "shape")
    listing.add("[bold]a\x1b[31m\n", "1")
    for width in (80, 12):
        text = "".join(shown(listing, width)).replace(" ", "")
        assert r"[bold]a\x1b[31m\n" in text
        assert "\x1b" not in text


def test_lines_break_between_words_on_a_terminal():
    digest = "f" * 64
    file = io.StringIO()
    console = text_console(file)
    console.width = 30
    show(console, f"some words and more words before digest {digest}")
    assert file.getvalue().count("\n") == 1  # a pipe has whole lines
    file.seek(0)
    console = Console(file=file, width=30, force_terminal=True, color_system=None)
    show(console, f"some words and more words before digest {digest}")
    assert file.getvalue().splitlines() == ["some words and more words", "before digest", digest]


def test_quiet(files, tmp_path):
    dense, model = files / "dense.safetensors", files / "model.safetensors"
    for number, arguments in enumerate(
        (
            ["plan", dense, "--ratio", "0.3", "-o", tmp_path / "plan.json"],
            ["materialize", model, "-o", tmp_path / "out"],
            ["verify", model, "--backend", "numpy"],
            ["diff", model, model],
            ["inspect", model],
            ["inspect", dense],
            ["digest", model],
        )
    ):
        result = invoke(*arguments, ["-q", "--quiet"][number % 2])
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["out", "plan.json"]
    (tmp_path / "cut").write_bytes(model.read_bytes()[:-1])
    assert_fails(invoke("inspect", tmp_path / "cut", "-q"), "cut")
    result = invoke("diff", model, tmp_path / "out", "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    result = invoke("diff", model, dense, "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    result = invoke("fit", dense, "--ratio", "0.1", "-o", tmp_path / "fitted", "-q")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("warning: the fitted weights are off by")
    assert_fails(invoke("materialize", model, "-o", tmp_path / "out", "-q"), "the file exists")


def test_a_word_for_one(tmp_path):
    save_file({"w": np.eye(20, dtype=np.float32)}, tmp_path / "x")
    assert ": 1 tensor, 400 numbers" in invoke("inspect", tmp_path / "x").stdout
    text = invoke("fit", tmp_path / "x", "--ratio", "0.5", "-o", tmp_path / "model").stdout
    assert "of them in 0 kept tensors" in text
    assert "out: 1 tensor, 400 weights" in invoke("materialize", tmp_path / "model", "-o", tmp_path / "out").stdout
    assert "compared 1 tensor (" in invoke("diff", tmp_path / "out", tmp_path / "out").stdout


# plot


class Figure:
    def savefig(self, path, *, format, **options):
        with open(path, "w") as file:
            file.write(f"a picture in {format}")


def test_plot_writes_a_picture(files, tmp_path, monkeypatch):
    plan = smh.load(files / "model.safetensors").plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    drawn = []
    monkeypatch.setattr(smh.Plan, "plot", lambda self: drawn.append(self) or Figure())
    found = as_json("plot", files / "model.safetensors", "-o", tmp_path / "a.svg")
    assert found == {"file": str(files / "model.safetensors"), "out": str(tmp_path / "a.svg"), "bytes": 16}
    assert invoke("plot", tmp_path / "plan.json", "-o", tmp_path / "a.PNG").stdout == f"file   {tmp_path / 'a.PNG'}\n"
    assert (tmp_path / "a.PNG").read_text() == "a picture in png"
    assert drawn == [plan, plan]
    assert_fails(invoke("plot", tmp_path / "plan.json", "-o", tmp_path / "a.svg"), "the file exists", "--force")
    assert invoke("plot", tmp_path / "plan.json", "-o", tmp_path / "a.svg", "--force").exit_code == 0
    assert_fails(invoke("plot", files / "dense.safetensors", "-o", tmp_path / "b.svg"), "dense.safetensors")
    assert_fails(invoke("plot", tmp_path / "plan.json", "-o", tmp_path / "b.txt"), ".svg, .png", code=2)
    assert sorted(os.listdir(tmp_path)) == ["a.PNG", "a.svg", "plan.json"]


def test_plot_draws(files, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for suffix, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert invoke("plot", files / "model.safetensors", "-o", tmp_path / f"a.{suffix}").exit_code == 0
        assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)


def test_plot_without_matplotlib(files, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "smh.plots", raising=False)
    monkeypatch.delattr(smh, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    result = invoke("plot", files / "model.safetensors", "-o", tmp_path / "a.svg")
    assert_fails(result, 'pip install "structured-multi-hashing[plot]"')
    assert not os.listdir(tmp_path)


# What is not installed


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_a_package_of_the_command_line(package):
    code = (
        "import sys, smh.cli\n"
        f"if {package!r} in sys.modules: sys.exit('import smh imports it')\n"
        f"sys.modules[{package!r}] = None\n"
        "smh.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f'{package}, which is not installed: pip install "structured-multi-hashing[cli]"')


def test_another_package_that_is_missing_is_named():
    code = "import sys, smh.cli; sys.modules['smh.cli.look'] = None; smh.cli.main()"
    done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "smh.cli.look" in done.stderr
    assert "pip install" not in done.stderr


def test_the_package_imports_without_typer():
    code = "import sys; sys.modules['typer'] = None; import smh.cli; print(callable(smh.cli.main))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_warnings_are_in_json_and_on_stderr_alone(files, tmp_path):
    out = tmp_path / "out"
    done = call("fit", files / "dense.safetensors", "--ratio", "0.1", "-o", out, "--json")
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["warnings"]) == 1
    assert (
        "warning"
        not in invoke("fit", files / "dense.safetensors", "--ratio", "0.1", "-o", out, "--force").stdout.split("file ")[
            0
        ]
    )
