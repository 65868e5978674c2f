"""The benchmarks run and record, and the page says what was recorded. No test looks at how long anything takes."""

import functools
import json
import shutil
import tomllib
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__, kernels, measure, report, shapes

TARGETS = {
    "targets": {"kernels torch-int8 * build 0.1": 1.0, "kernels * build 0.1": 1.25, "step * 0.1": 2},
    "notes": {"kernels jax *": "Copies."},
}


def run(*arguments, results):
    """Run a command with what threads there are, and return what it recorded."""
    __main__.main([*arguments, "--rounds", "2", "--threads", "0", "--results", str(results)])
    (path,) = results.iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


def values(rows):
    return {(row["network"], row["ratio"], row["mode"], row["what"]): row["value"] for row in rows}


def recorded(folder, backend, command="kernels", int8=False, ratio=0.1, features=(), **results):
    rows = [
        {"network": "resnet34", "ratio": ratio, "mode": "fast", "what": what.replace("_", " "), "value": value}
        | {"low": value - 0.1, "high": value + 0.3}
        for what, value in results.items()
    ]
    path = measure.record(command, backend, 3, rows, folder)
    run = json.loads(path.read_text(encoding="utf-8")) | {"int8": int8, "features": [*features]}
    path.write_text(json.dumps(run), encoding="utf-8")


def test_cases_run_by_turns_and_the_first_round_does_not_count():
    calls = []

    def case(name):
        def prepare():
            calls.append(f"prepare {name}")
            return lambda: calls.append(name)

        return prepare

    found = measure.by_turns({name: case(name) for name in "ab"}, rounds=3)
    assert calls == ["prepare a", "a", "prepare b", "b"] * 4
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_round_by_round():
    row = measure.over([1.0, 20.0, 3.0], [1.0, 10.0, 1.0], what="build")
    assert row == {"what": "build", "value": 2, "low": 1.5, "high": 2.5, "seconds": 3, "floor": 1}
    assert measure.over([3.0], [2.0])["low"] == 1.5


def test_peak_memory_counts_what_is_freed_again():
    count = 4 * 1024 * 1024
    peak = (
        measure.peak_beyond(None, lambda: np.ones(count, dtype=np.float32).sum()) if measure.on_linux() else 4 * count
    )
    assert 4 * count <= peak + 2**16 < 5 * count


@pytest.mark.parametrize(("name", "total"), [("resnet34", 21_797_672), ("efficientnet_b0", 5_288_548)])
def test_tables_of_shapes_are_those_of_the_networks(name, total):
    pytest.importorskip("torch")
    from benchmarks.torch_networks import network

    parameters = list(network(name).parameters())
    assert sum(x.numel() for x in parameters) == total
    assert [tuple(x.shape) for x in parameters if x.ndim > 1] == list(shapes.shapes_of(name).values())


def test_unknown_shapes_are_refused():
    with pytest.raises(SystemExit, match="squareN, resnet34 or efficientnet_b0; got 'round'"):
        shapes.shapes_of("round")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own, when it compiles
@pytest.mark.parametrize("backend", kernels.CASES)
def test_kernels(backend, tmp_path, monkeypatch):
    framework = pytest.importorskip(backend)
    if backend == "torch":  # the default compiler is slow
        monkeypatch.setattr(framework, "compile", functools.partial(framework.compile, backend="aot_eager"))
    if backend != "numpy":  # in a fresh process, which is slow to import a framework
        monkeypatch.setattr(kernels, "peak_in_fresh_process", lambda *_: 4 * 1600)
    found = run("kernels", "--backend", backend, "--shapes", "square40", "--ratios", "0.2", results=tmp_path)
    assert {"processor", "int8", "threads", "versions", "commit", "date"} < set(found)
    rows = values(found["rows"])
    modes = {mode for _, _, mode, _ in rows}
    assert {"build", "exact gradients"} <= {what for *_, what in rows}
    assert modes == {"numpy": {"eager"}, "torch": {"eager", "compile"}, "jax": {"jit"}}.get(backend, {"function"})
    assert all(value > 0 for (*_, what), value in rows.items() if what != "memory of build")
    if measure.on_linux():
        assert ("square40", 0.2, found["rows"][-1]["mode"], "memory of build") in rows


def test_cases_of_kernels_compute_what_they_are_compared_with():
    work = kernels.Work.of("square40", 0.2)
    cases = {name: prepare()() for name, prepare in kernels.numpy_cases(work).items()}
    assert cases["eager: product"].shape == work.matrix.shape
    assert cases["eager: build"]["square"].shape == (40, 40)
    assert [x.shape for x in cases["eager: both products"]] == [x.shape for x in work.factors]
    assert list(cases["eager: exact gradients"]) == list(work.variables)


def test_steps_and_inference_of_pytorch(tmp_path, monkeypatch):
    torch_models = pytest.importorskip("benchmarks.torch_models", exc_type=ImportError)
    monkeypatch.setattr(torch_models, "MEMORY_NETWORK", "tiny 28x28")
    peaks = iter([100, 120, 110, 200, 80, 60])
    monkeypatch.setattr(torch_models, "peak_in_fresh_process", lambda *_: next(peaks))
    rows = values(run("step", "--shapes", "tiny 28x28", results=tmp_path / "step")["rows"])
    kinds = [*measure.GRADIENTS, "memory"]
    assert set(rows) == {("tiny 28x28", ratio, "eager", what) for ratio in (0.1, 0.02) for what in kinds}
    assert rows["tiny 28x28", 0.1, "eager", "memory"] == 1.2
    rows = values(run("inference", "--shapes", "tiny 28x28", results=tmp_path / "inference")["rows"])
    kinds = ["cached", "layer", "full", "cached, frozen"]
    timed = {("tiny 28x28, batch " + b, 0.1, "eager", kind) for b in ("1", "32") for kind in kinds}
    memory = {"memory of layer": 0.4, "memory of layer, frozen": 0.3}
    assert set(rows) == timed | {("tiny 28x28, batch 1", 0.1, "eager", kind) for kind in memory}
    assert all(rows["tiny 28x28, batch 1", 0.1, "eager", kind] == value for kind, value in memory.items())


def test_loading_of_pytorch(tmp_path, monkeypatch):
    loading = pytest.importorskip("benchmarks.loading", exc_type=ImportError)
    loads = []

    def first_inference(function, path, name, kind, cache):
        loads.append((Path(path).stat().st_size, kind, cache))
        seconds, peak = json.loads(loading.first_inference(path, name, kind, cache))
        assert seconds > 0
        assert peak is None or not measure.on_linux() or peak >= 0
        return json.dumps([{"dense": 1, "compressed": 2, "frozen": 0.5}[kind], {"dense": 100}.get(kind, 150)])

    monkeypatch.setattr(loading, "in_fresh_process", first_inference)
    found = run("loading", "--shapes", "tiny 28x28", "--ratios", "0.1", results=tmp_path)
    timed = {"warm": 2, "cold": 2, "warm, frozen": 0.5, "cold, frozen": 0.5, "memory": 1.5, "memory, frozen": 1.5}
    assert values(found["rows"]) == {("tiny 28x28", 0.1, "eager", what): value for what, value in timed.items()}
    assert len(loads) == 2 * 6
    assert {kind for size, kind, _ in loads if size == max(loads)[0]} == {"dense"}


def test_sizes_of_exported_files(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    found = run("sizes", "--shapes", "tiny 28x28", "--ratios", "0.1", results=tmp_path)
    compiled = ["AOTInductor"] * any(map(shutil.which, ("g++", "clang++", "c++")))
    assert list(dict.fromkeys(row["mode"] for row in found["rows"])) == ["ONNX", "torch.export", *compiled]
    sizes = {row["what"]: row["bytes"] for row in found["rows"] if row["mode"] == "ONNX"}
    parts = ["pool, float32", "pool", "integers", "kept", "graph"]
    assert list(sizes) == ["dense", "int8", *parts, "smh file", "smh file, packed"]
    assert all(size > 0 for size in sizes.values())
    assert sizes["pool, float32"] - sizes["pool"] == 3 * sizes["integers"]
    assert {row["value"] for row in found["rows"] if row["what"] == "dense"} == {1}
    assert "onnxruntime" in found["rows"][0]["tools"]
    page = report.sizes(report.read(tmp_path, TARGETS)["sizes"])
    assert f"| ONNX | tiny 28x28 | 0.1 | {sizes['dense']:,} |" in page


def test_the_small_language_model_generates_the_same_when_compressed():
    torch = pytest.importorskip("torch")
    import smh
    from benchmarks.torch_networks import Decoder

    model = smh.compress(Decoder(vocabulary=20, width=12, layers=1), 0.2).eval()
    prompt = torch.arange(3)[None]
    found = model.generate(prompt, max_new_tokens=4)
    assert found.shape == (1, 7)
    assert torch.equal(found, smh.materialize(model).generate(prompt, max_new_tokens=4))


def test_the_network_of_keras_has_the_same_shapes():
    pytest.importorskip("keras")
    from benchmarks.keras_models import network

    sizes = [tuple(x.shape) for x in network("resnet34 32x32").trainable_variables if len(x.shape) > 1]
    expected = [(*window, inputs, outputs) for outputs, inputs, *window in shapes.resnet34().values()]
    assert sorted(sizes) == sorted(expected)


def test_the_page_tells_what_is_missed_and_why(tmp_path):
    recorded(tmp_path, "numpy", build=1.2)
    recorded(tmp_path, "torch", build=1.1, int8=True)
    recorded(tmp_path, "jax", build=1.5, exact_gradients=3)
    recorded(tmp_path, "tensorflow", build=2)
    results = report.read(tmp_path, TARGETS)["kernels"]
    assert [r.target for r in results] == [1.25, 1.0, 1.25, None, 1.25]
    table = report.section(results, ["backend"], [lambda r: r.backend]).splitlines()
    assert table[:6] == [
        "| backend | build | exact gradients |",
        "| --- | --- | --- |",
        "| NumPy | 1.20 ± 0.20 (1.25) | – |",
        "| PyTorch (fast) | **1.10** ± 0.20 (1) | – |",
        "| JAX (fast) | **1.50** ± 0.20 (1.25) | 3.00 ± 0.20 |",
        "| TensorFlow (fast) | **2.00** ± 0.20 (1.25) | – |",
    ]
    assert "- build: PyTorch (fast), TensorFlow (fast) on ResNet-34, missed by 10 to 60 %. Not explained yet." in table
    assert "- build: JAX (fast) on ResNet-34, missed by 20 %. Copies." in table
    assert all(text in table[-1] for text in (measure.processor(), "3 rounds", measure.commit()))


def test_results_with_amx_stand_beside_others(tmp_path, monkeypatch):
    own = []
    for flags in ("avx512_vnni", "avx512_vnni amx_int8"):
        monkeypatch.setattr(measure, "_cpu", {"flags": flags, "model name": "a processor"}.get)
        monkeypatch.setattr(measure, "_multiplies_bytes", lambda backend: True)
        own.append(measure.record("kernels", "torch", 3, [], tmp_path).name)
    assert own == ["kernels-torch.json", "kernels-torch-amx.json"]
    for name in own:
        (tmp_path / name).unlink()
    recorded(tmp_path, "torch", int8=True, features=["amx_int8"], build=1.1)
    (found,) = report.read(tmp_path, {"targets": {"kernels torch-int8-amx *": 1.0}, "notes": {}})["kernels"]
    assert (found.backend, found.target) == ("PyTorch (fast, AMX)", 1.0)


def test_a_page_and_plots_without_results(tmp_path):
    report.write(tmp_path, tmp_path)
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert page.count("No results are recorded yet.") == 4
    assert "@@" not in page
    assert len(list((tmp_path / "assets").glob("performance-*.svg"))) == 2


@pytest.mark.parametrize(
    ("backend", "int8", "what", "ratio", "target"),
    [
        ("numpy", True, "build", 0.02, 1.4),
        ("tensorflow", False, "build", 0.5, 1.3),
        ("tensorflow", False, "memory of build", 0.02, 1.2),
        ("torch", True, "exact gradients", 0.1, 1.5),
        ("torch", False, "exact gradients", 0.1, 2.6),
        ("jax", True, "exact gradients", 0.02, 3.6),
        ("jax", False, "fast gradients", 0.02, 1.5),
    ],
)
def test_special_targets_come_before_general_ones(tmp_path, backend, int8, what, ratio, target):
    recorded(tmp_path, backend, int8=int8, ratio=ratio, **{what: 1.0})
    texts = tomllib.loads((report.HERE / "targets.toml").read_text(encoding="utf-8"))
    assert [r.target for r in report.read(tmp_path, texts)["kernels"]] == [target]


def test_every_target_is_that_of_a_result():
    texts = tomllib.loads((report.HERE / "targets.toml").read_text(encoding="utf-8"))
    backends = ["numpy", "torch", "torch-int8", "torch-int8-amx", "jax", "tensorflow"]
    whats = {
        "kernels": ([*report.KERNELS_NETWORKS], [*report.FLOORS, "memory of build"]),
        "step": (__main__.STEP["torch"], ["exact", "fast", "memory"]),
        "inference": (
            [*(f"{n}, batch {b}" for n in __main__.INFERENCE for b in (1, 32)), "language model, generate()"],
            ["cached", "layer", "full", "cached, frozen", "memory of layer", "memory of layer, frozen"],
        ),
    }
    names = {
        f"{command} {backend} {network} {what} {ratio}"
        for command, (networks, kinds) in whats.items()
        for backend, network, what, ratio in product(backends, networks, kinds, ["0.02", "0.1", "0.5"])
    }
    for pattern in [*texts["targets"], *texts["notes"]]:
        assert any(fnmatchcase(name, pattern) for name in names), f"no result has the name {pattern!r}"


def test_the_page_is_that_of_the_recorded_results(tmp_path):
    report.write(measure.RESULTS, tmp_path)
    page = Path(measure.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == page, "run python -m benchmarks report"
    page = Path(measure.ROOT / "docs" / "results" / "sizes.md").read_text(encoding="utf-8")
    assert (tmp_path / "results" / "sizes.md").read_text(encoding="utf-8") == page, "run python -m benchmarks report"
