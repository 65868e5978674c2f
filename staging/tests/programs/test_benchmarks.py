"""The benchmarks run, and their figures are complete. No test looks at how long anything takes."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = ROOT / "benchmarks" / "run.py"
KEYS = {
    "cell",
    "backend",
    "model",
    "pool",
    "ratio",
    "operation",
    "variant",
    "value",
    "low",
    "high",
    "unit",
    "floor",
    "bar",
    "baseline",
    "baseline_ms",
    "rounds",
    "threads",
    "clock",
    "extra",
    "machine",
    "versions",
    "commit",
    "changed",
    "source",
}


def run(*arguments):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Return the figures of a quick run with NumPy, and the file that has them."""
    path = tmp_path_factory.mktemp("figures") / "quick.jsonl"
    done = run("--quick", "--backends", "numpy", "--json", path)
    assert done.returncode == 0, f"the quick run failed: {done.stderr}"
    return [json.loads(line) for line in path.read_text().splitlines()], path


def test_a_quick_run_measures_every_cell_of_the_backend_completely(figures):
    found, _ = figures
    assert {figure["cell"] for figure in found} == {"numeric", "memory", "files"}
    for figure in found:
        assert figure.keys() >= KEYS, f"keys are missing: {KEYS - figure.keys()}"
        assert figure["value"] > 0, f"a ratio or time is not positive: {figure}"
        if figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"], f"the median is not between: {figure}"
    pools = {(figure["pool"], figure["variant"]) for figure in found if figure["cell"] == "numeric"}
    arithmetics = {(pool, variant) for pool in ("matmul", "kronecker", "hash") for variant in ("exact", "fast")}
    assert pools > arithmetics, f"pools or arithmetics are missing: {arithmetics - pools}"


@pytest.mark.parametrize("backend", ["torch", "jax", "tf.function"])
def test_a_quick_run_measures_models_of_every_framework(backend, tmp_path):
    pytest.importorskip({"tf.function": "tensorflow"}.get(backend, backend))
    path = tmp_path / "quick.jsonl"
    done = run("--quick", "--cells", "step,inference,files", "--backends", backend, "--json", path)
    assert done.returncode == 0, f"the quick run failed: {done.stderr}"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert {figure["backend"] for figure in found} == {backend}
    assert {figure["cell"] for figure in found} == {"step", "inference", "files"}
    assert all(figure.keys() >= KEYS and figure["value"] > 0 for figure in found)
    residencies = {figure["variant"] for figure in found if figure["cell"] == "inference"}
    assert residencies >= {"cached, exact", "layer, exact", "full, exact", "layer, fast", "full, fast"}


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_models_have_the_same_weights_in_every_framework(framework, monkeypatch):
    pytest.importorskip(framework)
    monkeypatch.syspath_prepend(str(RUN.parent))
    shapes = importlib.import_module("cost.shapes").MODELS
    models = importlib.import_module(f"cost.{framework}_models")
    for name, size in (("resnet34", 224), ("efficientnet_b0", 64)):
        plan = models.plan_of(models.compress(models.make(name, size), 0.1, "exact"))
        expected = sorted(math.prod(shape) for shape in shapes[name]().values())
        assert sorted(tensor.size for tensor in plan.tensors) == expected


def test_no_figure_is_measured_twice(figures):
    found, _ = figures
    names = [tuple(f[key] for key in ("cell", "model", "pool", "ratio", "operation", "variant")) for f in found]
    assert len(set(names)) == len(names), f"the same figure comes twice: {sorted(map(str, names))}"


def test_the_report_has_every_figure_and_shows_missed_bars(figures, tmp_path):
    found, path = figures
    missed = found[-1] | {"bar": found[-1]["value"] / 2, "operation": "misses its bar"}
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps(missed) + "\n")
    done = run("report", path, more, "-o", tmp_path / "costs.md")
    assert done.returncode == 0, f"the report failed: {done.stderr}"
    page = (tmp_path / "costs.md").read_text()
    tables = page[page.index("## Building") :]
    assert sum(line.startswith("| ") and "---" not in line for line in tables.splitlines()) == len(found) + 1 + 3
    assert "misses its bar" in page.split("## Building")[0], "a missed bar is not among the missed ones"
    assert "✗" in page


def test_the_readme_gets_the_medians_between_its_marks(figures, tmp_path):
    of_torch = figures[0][0] | {"cell": "numeric", "backend": "torch", "model": "resnet34", "pool": "matmul"}
    of_torch |= {"variant": "exact", "unit": "times"}
    measured = ((0.02, "build all", 1.5), (0.1, "build all", 1.914), (0.5, "gradients", 3.4))
    lines = [json.dumps(of_torch | {"ratio": r, "operation": what, "value": x}) for r, what, x in measured]
    step = {"cell": "step", "ratio": 0.1, "operation": "step, 32 x 32, batch 32", "variant": "fast", "value": 1.11}
    lines.append(json.dumps(of_torch | step))
    results, readme = tmp_path / "results.jsonl", tmp_path / "README.md"
    results.write_text("\n".join(lines))
    begin, end = "<!-- costs: written by `python benchmarks/run.py report` -->", "<!-- end of costs -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):  # once more changes nothing
        done = run("report", results, "-o", tmp_path / "costs.md", "--readme", readme)
        assert done.returncode == 0, f"the report failed: {done.stderr}"
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "| PyTorch | 1.5 | 1.91 | – | – | – | 3.4 |" in text
        assert "| PyTorch | ResNet-34, 32 x 32 | 1.11 | – | – | – | – | – |" in text
    readme.write_text("no marks")
    assert run("report", results, "-o", tmp_path / "costs.md", "--readme", readme).returncode != 0
    assert readme.read_text() == "no marks"


def test_what_is_not_known_is_refused():
    done = run("--cells", "nothing")
    assert done.returncode == 2
    assert "got nothing" in done.stderr


def test_the_page_says_of_every_missed_bar_why():
    page = (ROOT / "docs" / "costs.md").read_text()
    head, _, rest = page.partition("## Where the time goes")
    headings = {line.removeprefix("### ").lower().replace(" ", "-") for line in rest.splitlines() if line[:4] == "### "}
    missed = [line for line in head.splitlines() if line.startswith("|") and "✗" in line]
    assert missed
    for line in missed:
        named = set(re.findall(r"\]\(#([a-z0-9-]+)\)", line.split("|")[-2]))
        assert named, f"no reason: {line}"
        assert named <= headings, f"a reason that the page does not give: {line}"
