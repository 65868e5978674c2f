"""Pages of results are what their commands write, and figures in texts are those of the results."""

import re
import tomllib
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("torch", reason="the experiments need torch")

from experiments import results
from experiments.report import by_bytes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def lines(*configs):
    return [line for config in configs for line in results.read(RESULTS / f"{config}.jsonl")]


def test_the_page_by_bytes_is_what_its_command_writes(tmp_path):
    by_bytes.write(lines(*by_bytes.CONFIGS), tmp_path)
    page = (ROOT / "docs" / "results" / "bytes.md").read_text(encoding="utf-8")
    assert (tmp_path / "bytes.md").read_text(encoding="utf-8") == page, "run python -m experiments bytes"


def best(config, share):
    """Return the dense lines, and the best points of smh and of other methods within a share of the dense bytes."""
    found = lines(config)
    dense = [line for line in found if line["settings"]["method"] == "dense"]
    points = [point for point in by_bytes.points(found) if point.size <= share * 4 * dense[0]["dense"]]
    ours, others = ([p for p in points if p.family.startswith("smh") == own] for own in (True, False))
    return dense, *(max(some, key=lambda p: (p.seeds, p.validation)) for some in (ours, others))


def test_figures_of_accuracy_by_bytes_in_the_readme():
    dense, ours, _ = best("cifar_resnet20", 0.05)
    share, behind = re.search(
        r"With (\S+) % of the dense bytes, `smh` is (\S+) points below the dense ResNet-20", README
    ).groups()
    assert share == f"{ours.size / dense[0]['dense'] * 25:.0f}"
    assert behind == f"{dense[0]['test_accuracy'] - ours.accuracy:.1f}"
    most, behind, at = re.search(
        r"accurate up to (\d) % of the dense bytes, and (\S+) points behind at (\d) %", README
    ).groups()
    for budget in by_bytes.BUDGETS:
        _, ours, others = best("bytes", budget)
        assert (ours.accuracy > others.accuracy) == (budget <= int(most) / 100)
        if budget == int(at) / 100:
            assert behind == f"{others.accuracy - ours.accuracy:.1f}"


def test_figures_of_the_claims_in_the_readme():
    found = {(x["settings"]["method"], x["settings"]["ratio"]): x["test_accuracy"] for x in lines("cifar_resnet32")}
    dense, large, small = found["dense", None], found["matmul", 0.258], found["matmul", 0.1]
    text = f"it lost {dense - large:.1f} and {dense - small:.1f} points (one seed), and at 10 % it was "
    assert f"{text}{small - found['width', 0.1]:.1f} ahead of a narrower network" in README


def test_answers_about_ideas_are_those_of_the_results():
    by_variant = {}
    for line in lines("ideas"):
        s = {
            "teacher": False,
            "activation": "relu",
            "average": 0.0,
            "first_bits": 0,
            "channel_scale": False,
            **line["settings"],
        }
        if s["method"] == "matmul" and s["bits"] == 8 and not (s["average"] or s["first_bits"] or s["channel_scale"]):
            by_variant.setdefault((s["model"], s["ratio"], s["teacher"], s["activation"]), {})[s["seed"]] = line[
                "test_accuracy"
            ]

    def gain(model, ratio, better, worse):
        one, other = by_variant[model, ratio, *better], by_variant[model, ratio, *worse]
        assert one.keys() == other.keys() == {0, 1, 2}
        return f"{mean(one.values()) - mean(other.values()):.1f}"

    plain, teacher = (False, "relu"), (True, "relu")
    answers = {
        q["name"]: q.get("answer", "") for q in tomllib.loads((ROOT / "experiments/ideas.toml").read_text())["question"]
    }
    small_files = " ".join((ROOT / "docs" / "small_files.md").read_text(encoding="utf-8").split())
    for network, name in (("cnn", "ideas"), ("convnet", "second-network")):
        gains = [gain(network, ratio, teacher, plain) for ratio in (0.1, 0.03)]
        assert f"{gains[0]} points at 0.1 and {gains[1]} at 0.03" in answers[name]
    alone = gain("cnn", 0.1, (False, "segments"), plain)
    more = gain("cnn", 0.1, (True, "segments"), teacher)
    assert f"{alone} points, and {more} in addition to distillation" in answers["activation"]
    assert f"gained {alone} points on one network, and {more} in addition to a teacher" in small_files
