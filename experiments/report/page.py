"""The page of results."""

from __future__ import annotations

from pathlib import Path
from statistics import mode
from typing import Any

from experiments.cells import Config
from experiments.errors import ExperimentError
from experiments.pruning import START, STOP
from experiments.report import plots, tables
from experiments.report.claims import claims
from experiments.report.markdown import percent, table
from experiments.report.places import MODELS, NAMES, Place, Places, Tuning, gather, tunings
from experiments.results import Line, Results

_DATA = {
    "fashion-mnist": "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, "
    "[arXiv 1708.07747](https://arxiv.org/abs/1708.07747), MIT licence)",
    "digits": "scikit-learn's handwritten digits",
    "cifar10": "CIFAR-10 (Krizhevsky 2009)",
    "images": "a folder of images",
}
_METHODS = {
    "matmul": "Structured Multi-Hashing: all weights are one matrix product",
    "kronecker": "Structured Multi-Hashing: all weights are one sum of Kronecker products",
    "hash1": "every weight is an entry of a table, with a sign, as in HashedNets (Chen et al. 2015), but all layers "
    "share one table",
    "hash2": "every weight is the sum of two such entries",
    "hash10": "every weight is the sum of ten such entries",
    "sum": "the sum of both, with half of the variables each",
    "width": "a narrower network, all hidden layers by the same factor",
    "lowrank": "every layer is a product of two factors, trained from the start; all layers have the same rank, and a "
    "layer that would not become smaller stays whole; convolutions are matrices of outputs x (inputs x window)",
    "pruned": f"the smallest weights over all layers are set to zero, gradually from {percent(START)} to "
    f"{percent(STOP)} of the steps (Zhu and Gupta 2017); the positions of the remaining weights are not counted",
    "integers": "every weight is an integer, with a learned scale for each layer",
    "kronecker_hash": "the sum of Kronecker products and one hash, with half of the variables each",
    "product": "every weight is an entry of the matrix product times one of a table, with half of the variables each",
    "fit": "dense at first, then a matrix product that is fitted to the dense model",
    "fold": "every weight is an entry of one table, and all entries are used equally often (STABLE-RPS, Desai and "
    "Shrivastava 2024)",
    "random": "a matrix product with a frozen initial pool: only scales, biases and batch norm are trained and counted",
}
_NETWORKS = {
    "mlp": "784-1000-1000-10, ReLU, the three layers of HashedNets",
    "cnn": "three convolutions of stride 2 with batch norm, 32-64-64 channels, two dense layers of 216 and 10 units",
    "convnet": "four convolutions of stride 2 with batch norm, 32-64-128-160 channels, average pooling, a dense layer",
    "resnet32": "ResNet-32 for CIFAR-10 (He et al. 2016)",
    "resnet20": "ResNet-20 for CIFAR-10 (He et al. 2016)",
    "tiny": "one hidden layer of 40 units",
}
_COUNTED = """On this page, a *ratio* is the number of all stored variables over that of the dense model. Stored
variables are the variables of pools, scales, biases, and the parameters and running statistics of batch norm. Kept
tensors therefore leave less room for the pool. Each method uses its largest model within the ratio. Accuracies are
percentages of the test images, mean ± standard deviation over seeds. The seed determines the initial values and the
order of the images. Repeating a run on the same machine reproduces its figures. A different processor adds in a
different order, which has the effect of a different seed: means change by about the standard deviation shown, and three
seeds estimate it only roughly.
"""
_CLAIMS = """The figures of the paper ([arXiv 1911.11177](https://arxiv.org/abs/1911.11177)) are for ResNet-32 on
CIFAR-10. The last column was measured with the networks above and counts all stored variables. Differences are points
of test accuracy.
"""
_RATES = """Accuracy on validation images by learning rate, one seed. The selected rate is bold, and marked † if it is
the lowest or highest of the list.

![Accuracy by learning rate](rates.svg)
"""


def write(config: Config, results: Results, output: Path) -> None:
    """Write the page and its plots to a folder.

    Raises
    ------
    ExperimentError
        If no cell of the configuration has a result.
    """
    groups = gather(config, results)
    tuned = tunings(config, results)
    lines = _used(groups, tuned, config, results)
    if not lines:
        raise ExperimentError(f"there are no results of {config.name}: run python -m experiments run first")
    output.mkdir(parents=True, exist_ok=True)
    parts = [_head(config, groups, lines)]
    for group in (group for group in groups if group in MODELS):
        parts.append(_network(group, groups, output))
    asked = [question for question in config.questions if any(p.lines for p in groups[question.name].values())]
    if asked:
        parts.append("## Questions\n")
        parts += [tables.question(question, groups[question.name]) for question in asked]
    if any(group in MODELS for group in groups):
        parts.append(f"## What the paper claims\n\n{_CLAIMS}\n{claims(groups)}")
    if tuned:
        parts.append(f"## Learning rates\n\n{_RATES}\n{tables.rates(tuned)}")
        plots.rates(tuned, output / "rates.svg")
    (output / config.page.name).write_text("\n".join(parts))


def _network(group: str, groups: Places, output: Path) -> str:
    rows = groups[group]
    parts = [f"## {MODELS[group]}\n", tables.accuracy(rows)]
    if any(place.lines for place in rows.values()):
        plots.accuracy(MODELS[group], list(rows.values()), output / f"accuracy-{group}.svg")
        parts.append(f"![Accuracy over stored variables](accuracy-{group}.svg)\n")
    parts.append(f"Stored variables:\n\n{tables.stored(rows)}")
    return "\n".join(parts)


def _used(groups: Places, tuned: list[Tuning], config: Config, results: Results) -> list[Line]:
    """Return each line of results on the page once."""
    lines = [line for places in groups.values() for place in places.values() for line in place.lines]
    lines += [line for t in tuned for s in config.tuning_of(t.base) if (line := results.lines.get(s.key))]
    return list({line["id"]: line for line in lines}.values())


def _head(config: Config, groups: Places, lines: list[Line]) -> str:
    settings = [line["settings"] for line in lines]
    data = ", ".join(_DATA[name] for name in dict.fromkeys(s["data"] for s in settings))
    places = [place for group in groups.values() for place in group.values()]
    return f"""# {config.page.title}

<!-- Written by `python -m experiments report`; changes by hand are lost. -->

Test accuracy by ratio on {data}, for Structured Multi-Hashing and its alternatives.

{_methods(groups)}
{_COUNTED}
{_training(settings, tuned=bool(config.rates))}
{_state(places)}{_conditions(lines)}"""


def _methods(groups: Places) -> str:
    used = {place.settings.method for places in groups.values() for place in places.values()}
    return table(["method", "description"], ([NAMES[m], what] for m, what in _METHODS.items() if m in used))


def _training(settings: list[dict[str, Any]], tuned: bool) -> str:
    """Describe the training of all runs, and the differences between networks."""
    rows = dict.fromkeys(
        (str(s["model"]), f"{s['training']:,}", f"{s['validation']:,}", str(s["epochs"]), str(s["batch"]))
        for s in settings
    )
    body = table(
        ["network", "layers", "training images", "validation images", "epochs", "batch"],
        ([MODELS[model], _NETWORKS[model], *rest] for model, *rest in rows),
    )
    warmup = ", ".join(dict.fromkeys(percent(float(s["warmup"])) for s in settings))
    optimizer = tables.OPTIMIZERS[mode(s["optimizer"] for s in settings)]
    strength = mode(s["weight_decay"] for s in settings)
    decay = f"with a weight decay of {strength:g}" if strength else "without weight decay"
    rates = ", ".join(dict.fromkeys(f"{s['lr']:g}" for s in settings))
    rate = f"No rate was tuned: it is {rates}"
    if tuned:
        rate = "Every method was tuned over the same rates, and all variables have the same rate"
    return (
        f"Unless a table says otherwise, training uses {optimizer} {decay}. The learning rate rises during the "
        f"first {warmup} of the steps and then decays to 0 along a cosine. {rate}.\n\n{body}"
    )


def _state(places: list[Place]) -> str:
    asked = sum(place.asked for place in places if place.cannot is None)
    done = sum(len(place.lines) for place in places)
    return "" if done == asked else f"Results are partial: {done} of {asked} runs of the tables are complete.\n\n"


def _conditions(lines: list[Line]) -> str:
    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(str(line[name]) for line in lines))

    versions = dict.fromkeys(f"{name} {v}" for line in lines for name, v in sorted(line["versions"].items()) if v)
    commits = dict.fromkeys(f"{line['commit']}{' with changes' if line['changed'] else ''}" for line in lines)
    hours = sum(line["seconds"] for line in lines) / 3600
    return (
        f"{len(lines):,} runs, {hours:.1f} hours, each on {each('threads')} thread of {each('cpu')} "
        f"({each('device')}); {', '.join(versions)}; commit {', '.join(commits)}.\n"
    )
