"""The page of results."""

from __future__ import annotations

from pathlib import Path
from statistics import mode
from typing import Any

from experiments.cells import Config
from experiments.errors import ExperimentError
from experiments.report import names, plots, tables
from experiments.report.claims import claims
from experiments.report.markdown import percent, table
from experiments.report.places import Place, Places, Tuning, gather, tunings
from experiments.results import Line, Results

_COUNTED = """On this page, a *ratio* is the number of all stored variables divided by that of the dense model. Stored
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
    page = output / config.page.name
    parts = [_head(config, groups, lines)]
    parts += [_network(group, groups, page) for group in config.tables]
    asked = [question for question in config.questions if any(p.lines for p in groups[question.name].values())]
    if asked:
        parts.append("## Questions\n")
        parts += [tables.question(question, groups[question.name]) for question in asked]
    if config.page.claims:
        parts.append(f"## What the paper claims\n\n{_CLAIMS}\n{claims(groups, config.tables)}")
    if tuned:
        plot = page.with_name(f"{page.stem}-rates.svg")
        shown = f"![Accuracy by learning rate]({plot.name})\n\n" if plots.rates(tuned, plot) else ""
        parts.append(f"## Learning rates\n\n{_RATES}\n{shown}{tables.rates(tuned)}")
    page.write_text("\n".join(parts))


def _network(group: str, groups: Places, page: Path) -> str:
    rows, title = groups[group], names.title(names.NETWORKS, group)
    parts = [f"## {title}\n", tables.accuracy(rows)]
    if any(place.lines for place in rows.values()):
        plot = page.with_name(f"{page.stem}-{group}.svg")
        plots.accuracy(title, list(rows.values()), plot)
        parts.append(f"![Accuracy over stored variables]({plot.name})\n")
    parts.append(f"Stored variables:\n\n{tables.stored(rows)}")
    return "\n".join(parts)


def _used(groups: Places, tuned: list[Tuning], config: Config, results: Results) -> list[Line]:
    """Return each line of results on the page once."""
    lines = [line for places in groups.values() for place in places.values() for line in place.lines]
    lines += [line for t in tuned for s in config.tuning_of(t.base) if (line := results.lines.get(s.key))]
    return list({line["id"]: line for line in lines}.values())


def _head(config: Config, groups: Places, lines: list[Line]) -> str:
    settings = [line["settings"] for line in lines]
    used = dict.fromkeys(s["data"] for s in settings)
    data = ", ".join(names.description(names.DATA, name) or name for name in used)
    places = [place for group in groups.values() for place in group.values()]
    return f"""# {config.page.title}

<!-- Written by `python -m experiments report`; changes by hand are lost. -->

Test accuracy by ratio on {data}, for Structured Multi-Hashing and its alternatives.

{_methods(groups)}
{_COUNTED}
{_training(settings, tuned=bool(config.rates))}
{_state(places)}{_conditions(lines)}"""


def _methods(groups: Places) -> str:
    used = names.ordered(names.METHODS, (p.settings.method for places in groups.values() for p in places.values()))
    rows = ([names.title(names.METHODS, m), names.description(names.METHODS, m)] for m in used)
    return table(["method", "description"], rows)


def _training(settings: list[dict[str, Any]], tuned: bool) -> str:
    """Describe the training of all runs, and the differences between networks."""
    rows = dict.fromkeys(
        (str(s["model"]), f"{s['training']:,}", f"{s['validation']:,}", str(s["epochs"]), str(s["batch"]))
        for s in settings
    )
    body = table(
        ["network", "layers", "training images", "validation images", "epochs", "batch"],
        ([names.title(names.NETWORKS, m), names.description(names.NETWORKS, m), *rest] for m, *rest in rows),
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
