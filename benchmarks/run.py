"""What smh costs, over raw baselines of the same framework.

    python benchmarks/run.py --json benchmarks/results/all.jsonl       # the default table, one thread, half an hour
    python benchmarks/run.py --cells numeric --backends jax --models resnet34 --ratios 0.1 --json FILE
    python benchmarks/run.py --cells growth --json benchmarks/results/growth.jsonl
    python benchmarks/run.py report benchmarks/results/*.jsonl -o docs/costs.md --readme README.md

Every figure is the median over rounds of a ratio of two times that were taken by turns in one process, with its
quartiles; peaks of memory, and the times of fresh processes, are of processes of their own. Each figure carries the
theoretical floor of its ratio, the bar that the project wants to hold where there is one, and machine, load, versions,
commit and threads. FILE gets one JSON object per line, at once, after those that it has.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from cost import jobs, readme, report
from cost.bars import bar
from cost.context import Figure, context, fresh
from cost.timing import CLOCKS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0])
KEYS = ("cell", "backend", "model", "pool", "ratio", "operation", "variant", "value", "low", "high", "unit", "floor")
KEYS += ("bar", "baseline", "baseline_ms", "rounds", "threads", "clock", "extra")


@app.callback(invoke_without_command=True)
def measure(
    context_: typer.Context,
    cells: Annotated[str, typer.Option(help=f"Some of {', '.join(jobs.CELLS)}; all but growth by default.")] = "",
    backends: Annotated[str, typer.Option(help=f"Some of {', '.join(jobs.BACKENDS)}.")] = "",
    models: Annotated[str, typer.Option(help=f"Some of {', '.join(jobs.NUMERIC_MODELS)}.")] = "",
    pools: Annotated[str, typer.Option(help=f"Some of {', '.join(jobs.POOLS)}.")] = "",
    ratios: Annotated[str, typer.Option(help="Pool variables per weight, as 0.1,0.02.")] = "",
    arithmetics: Annotated[str, typer.Option(help="One of exact, fast, to measure only what it changes.")] = "",
    sizes: Annotated[str, typer.Option(help="Of images, or widths, in steps and inference, as 32,64.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every library.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 7,
    clock: Annotated[str, typer.Option(help=f"One of {', '.join(CLOCKS)}.")] = "wall",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes and 3 rounds, to see that all runs.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Where figures are appended, one a line.")] = None,
) -> None:
    """Measure, print, and append to a file."""
    if context_.invoked_subcommand is not None:
        return
    try:
        choice = jobs.Choice(
            cells=jobs.checked("--cells", cells, jobs.CELLS),
            backends=jobs.checked("--backends", backends, jobs.BACKENDS),
            models=jobs.checked("--models", models, jobs.NUMERIC_MODELS),
            pools=jobs.checked("--pools", pools, jobs.POOLS),
            ratios=tuple(float(part) for part in ratios.split(",") if part),
            arithmetics=jobs.checked("--arithmetics", arithmetics, jobs.ARITHMETICS) or jobs.ARITHMETICS,
            sizes=jobs.checked("--sizes", sizes, jobs.SIZES),
            threads=threads,
            rounds=3 if quick else rounds,
            clock=jobs.checked("--clock", clock, tuple(CLOCKS))[0],
            quick=quick,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    shared = context()
    failed = []
    for one in jobs.make_jobs(choice):
        try:
            for found in fresh(one):
                _keep(_complete(found, one) | shared, json_)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(one)
    if failed:
        print(f"{len(failed)} of the measurements failed; see above", file=sys.stderr)
        raise typer.Exit(1)


@app.command(hidden=True)
def job(description: str) -> None:
    """Do one job in this process, and print its figures as JSON lines."""
    described = json.loads(description)
    if described["threads"] == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for found in jobs.run(described):
        print(json.dumps(found), flush=True)


@app.command("report")
def write_report(
    files: Annotated[list[Path], typer.Argument(exists=True, help="JSON lines.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The Markdown file.")],
    readme_: Annotated[Path | None, typer.Option("--readme", help="A file whose tables of costs are renewed.")] = None,
) -> None:
    """Write a page of tables from figures."""
    found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report.page(report.latest(found)))
    if readme_ is not None:
        readme.write(report.latest(found), readme_)
    growth = [figure for figure in found if figure["cell"] == "growth"]
    if growth:
        import_module("cost.plot").plot(report.latest(growth), output.parent / report.PLOT)


def _complete(found: Figure, one: Figure) -> Figure:
    """Return a figure with all keys."""
    taken = {key: one[key] for key in ("cell", "backend", "rounds", "threads", "clock")}
    known = {"unit": "times", **taken, **found}
    known["bar"] = bar(known)
    return {key: known[key] for key in KEYS} | {key: known[key] for key in known.keys() - set(KEYS)}


def _keep(figure: Figure, path: Path | None) -> None:
    print(report.line(figure), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(figure, sort_keys=True) + "\n")


if __name__ == "__main__":
    app()
