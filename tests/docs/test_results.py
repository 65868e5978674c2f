"""Pages of results are what their commands write, and figures in texts are those of the results."""

import re
import tomllib
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("torch", reason="the experiments need torch")

from experiments import results
from experiments.report import by_bytes
from experiments.report.places import ahead
from experiments.settings import Settings, from_dict

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
README, SMALL_FILES = (
    " ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "docs/small_files.md")
)


def lines(*configs):
    return [line for config in configs for line in results.read(RESULTS / f"{config}.jsonl")]


def test_the_page_by_bytes_is_what_its_command_writes(tmp_path):
    by_bytes.write(lines(*by_bytes.CONFIGS), tmp_path)
    page = (ROOT / "docs" / "results" / "bytes.md").read_text(encoding="utf-8")
    assert (tmp_path / "bytes.md").read_text(encoding="utf-8") == page, "run python -m experiments bytes"


def dense_and_points(config):
    """Return the dense accuracies by seed, the bytes of the dense model, and the points of all methods."""
    found = lines(config)
    dense = {x["settings"]["seed"]: x["test_accuracy"] for x in found if x["settings"]["method"] == "dense"}
    return dense, 4 * found[0]["dense"], by_bytes.points(found)


def test_figures_of_accuracy_by_bytes_in_the_readme():
    dense, whole, points = dense_and_points("cifar_resnet20")
    share, behind = re.search(
        r"With (\S+) % of the dense bytes, `smh` is (\S+) points below the dense ResNet-20", README
    ).groups()
    ours = by_bytes.best(points, "smh, matrix product, with the rate and a teacher", 0.05 * whole)
    assert share == f"{100 * ours.size / whole:.0f}"
    assert dense.keys() == ours.by_seed.keys() == {0, 1, 2}
    assert behind == f"{ahead(dense, ours.by_seed):.1f}"
    least, most = re.search(r"between (\d+) and (\d+) % no other method is more accurate", README).groups()
    for budget in by_bytes.BUDGETS:
        if int(least) / 100 <= budget <= int(most) / 100:
            ours, other = by_bytes.leaders(points, budget * whole)
            assert ahead(ours.by_seed, other.by_seed) > 0
    (behind,) = re.search(r"within 10, 2, 1 and 0.7 %, and (\S+) points behind within 5 %", README).groups()
    _, whole, points = dense_and_points("bytes")
    for budget in by_bytes.BUDGETS:
        ours, other = by_bytes.leaders(points, budget * whole)
        lead = ahead(ours.by_seed, other.by_seed)
        assert ours.seeds == other.seeds == 3
        assert (lead > 0) == (budget != 0.05)
        if lead < 0:
            assert behind == f"{-lead:.1f}"


def test_fewer_bits_in_a_larger_pool_are_more_accurate_with_fewer_bytes():
    _, _, points = dense_and_points("bytes")
    for title in ("matrix product", "Kronecker products"):
        plain = [p for p in points if p.family == f"smh, {title}"]
        (eight,) = (p for p in plain if p.bits == 8 and p.settings.ratio == 0.1)
        fewer = [p for p in plain if p.bits in (4, 5)]
        assert len(fewer) == 2
        for point in fewer:
            assert point.seeds == eight.seeds == 3
            assert point.size < eight.size
            assert point.accuracy > eight.accuracy


def test_stable_rps_is_the_best_method_at_no_size():
    _, whole, points = dense_and_points("bytes")
    families = {point.family: point.settings.method for point in points}
    for budget in by_bytes.BUDGETS:
        found = [x for family in families if (x := by_bytes.best(points, family, budget * whole))]
        assert max(found, key=lambda point: point.accuracy).settings.method != "fold"


def test_figures_of_fewer_bits_with_the_rate():
    _, _, points = dense_and_points("bytes")
    of = [p for p in points if p.family == "smh, Kronecker products, with the rate and a teacher" and p.seeds == 3]
    (few,) = (p for p in of if (p.bits, p.settings.ratio, p.settings.rate) == (3, 0.25, 3e-6))
    (eight,) = (p for p in of if (p.bits, p.settings.ratio, p.settings.rate) == (8, 0.1, 1e-5))
    text = f"reached {few.accuracy:.1f} % in {few.size / 1000:.1f} kB, and 8 bits at a tenth {eight.accuracy:.1f} % in "
    assert f"{text}{eight.size / 1000:.1f} kB" in SMALL_FILES


def test_figures_of_the_claims_in_the_readme():
    found = {(x["settings"]["method"], x["settings"]["ratio"]): x["test_accuracy"] for x in lines("cifar_resnet32")}
    dense, large, small = found["dense", None], found["matmul", 0.258], found["matmul", 0.1]
    less = [large - found["width", 0.258], small - found["width", 0.1]]
    text = f"it lost {dense - large:.1f} and {dense - small:.1f} points (one seed), "
    assert f"{text}{less[0]:.1f} and {less[1]:.1f} less than a narrower network" in README


def test_answers_about_ideas_are_those_of_the_results():
    base = Settings(data="cifar10", model="cnn", method="matmul", ratio=0.1, seed=0, lr=1e-2)
    base = base.replace(training=10_000, validation=5_000, epochs=4, batch=100, optimizer="adamw")
    found = ((from_dict(x["settings"], "a result"), x["test_accuracy"]) for x in lines("ideas"))
    accuracies = {settings.replace(dense_lr=None): accuracy for settings, accuracy in found}

    def gain(better, worse=None, model="cnn", ratio=0.1):
        """Return the mean difference of a variant and another one, the base by default, over three seeds."""
        one, other = (base.replace(model=model, ratio=ratio, **changes) for changes in (better, worse or {}))
        return mean(accuracies[one.replace(seed=k)] - accuracies[other.replace(seed=k)] for k in range(3))

    def gains(better, worse=None, model="cnn", sign=1):
        found = [sign * gain(better, worse, model, ratio) for ratio in (0.1, 0.03)]
        assert min(found) > 0, "a gain is a loss, or a loss a gain"
        return [f"{x:.1f}" for x in found]

    def losses(better, worse=None):
        return gains(better, worse, sign=-1)

    questions = tomllib.loads((ROOT / "experiments/ideas.toml").read_text())["question"]
    answers = {question["name"]: question.get("answer", "") for question in questions}
    teacher, segments = {"teacher": True}, {"activation": "segments"}
    both = {**teacher, **segments}
    for network, name in (("cnn", "ideas"), ("convnet", "second-network")):
        assert "{} points at 0.1 and {} at 0.03".format(*gains(teacher, model=network)) in answers[name]
    cnn, convolutions = (gains(both, teacher, model) for model in ("cnn", "convnet"))
    assert "{} points at 0.1 and {} at 0.03 on the CNN".format(*cnn) in answers["activation"]
    assert "{} and {} on the network of convolutions".format(*convolutions) in answers["activation"]
    alone = [*gains(segments), *gains(segments, model="convnet")]
    assert "it gains {} and {}, and {} and {}.".format(*alone) in answers["activation"]
    least, most = min(cnn + convolutions), max(cnn + convolutions)
    assert f"gained {least} to {most} points in addition to a teacher, on two networks" in SMALL_FILES

    both_ratios = "{} points at 0.1 and {} at 0.03"
    assert both_ratios.format(*losses({"bits": 4})) in answers["bits"]
    assert all(gain({"bits": 16}, ratio=ratio) <= 0 for ratio in (0.1, 0.03))
    assert both_ratios.format(*losses({"method": "product"})) in answers["pools"]
    sums = [gain({"method": f"kronecker{x}"}, ratio=ratio) for x in ("", "_hash") for ratio in (0.1, 0.03)]
    assert max(map(abs, sums)) < 0.45
    longer = losses({"method": "fit", "epochs": 8})
    assert "{} points below the base at 0.1 and {} at 0.03".format(*longer) in answers["longer-warm-start"]
    early = {"first_bits": 16}
    assert both_ratios.format(*losses(early)) in answers["annealed-bits"]
    assert "{} and {} with 4".format(*losses({**early, "bits": 4}, {"bits": 4})) in answers["annealed-bits"]
    assert both_ratios.format(*losses({"channel_scale": True})) in answers["channel-scales"]
    rows, tiles = {"method": "rows"}, {"method": "tiles"}
    assert both_ratios.format(*gains(tiles, rows)) in answers["layouts"]
    for order in ("diagonals", "shuffled"):
        assert "{} and {}".format(*losses({"method": order}, rows)) in answers["layouts"]
    assert both_ratios.format(*gains(tiles, rows, "convnet")) in answers["layouts-second-network"]
    assert f"lose {-gain(tiles, rows, 'mlp', 0.03):.1f} points" in answers["layouts-mlp"]


def test_errors_on_mnist_are_those_of_the_results():
    (question,) = tomllib.loads((ROOT / "experiments/mnist_hashed.toml").read_text())["question"]
    found = ((x["settings"], f"{100 - x['test_accuracy']:.2f}") for x in lines("mnist_hashed"))
    errors = {(settings["method"], settings["ratio"]): error for settings, error in found}
    small, large = ([errors[method, ratio] for method in ("matmul", "hash1")] for ratio in (1 / 64, 1 / 8))
    text = "At a sixty-fourth yes, with {} % errors of a matrix product and {} % of one hash. "
    assert text.format(*small) in question["answer"]
    assert "At an eighth no, with {} and {} %".format(*large) in question["answer"]
