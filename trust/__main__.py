"""The command line: ``python -m trust``."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from trust import record

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_RESULTS = Annotated[Path, typer.Option(help="Where the line is added.")]
_BACKENDS = Annotated[list[str] | None, typer.Option(help="Which; all that are installed by default.")]
_OURS = "structured"
_SEED = Annotated[int, typer.Option(help="Of what is random.")]


@app.command()
def fuzz(
    inputs: Annotated[int, typer.Option(min=1, help="How many inputs.")] = 20_000,
    seed: _SEED = 0,
    engine: Annotated[str, typer.Option(help="What makes them: structured, or atheris where it is installed.")] = _OURS,
    results: _RESULTS = record.RESULTS,
) -> None:
    """Try hostile inputs on all that reads files."""
    from trust import coverage_guided
    from trust import fuzz as harness

    engines = {_OURS: harness.run, "atheris": coverage_guided.run}
    if engine not in engines:
        raise typer.BadParameter(f"--engine takes one of {', '.join(engines)}; got {engine}")
    findings = record.Findings("fuzz", labels={"engine": engine, "seed": str(seed)})
    try:
        harness.note(findings, engines[engine](inputs, seed))
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"the engine {engine} needs a package: pip install {error.name}") from error
    _finish(findings, results)


@app.command()
def demo(results: _RESULTS = record.RESULTS) -> None:
    """Run the demonstration, whose figures README shows."""
    from trust import suite

    _finish(suite.demo(), results)


@app.command()
def conformance(backend: _BACKENDS = None, results: _RESULTS = record.RESULTS) -> None:
    """Run the conformance suite for every backend that is installed."""
    from trust import suite

    _finish_all(suite.run("conformance", backend or ()), results)


@app.command()
def deep(
    backend: _BACKENDS = None,
    minutes: Annotated[float, typer.Option(min=0, help="How long at least, for each backend.")] = 60,
    plans: Annotated[int, typer.Option(min=1, help="How many each run draws; compilers take minutes for one.")] = 6,
    mode: Annotated[list[str] | None, typer.Option(help="Which of a backend's; all by default.")] = None,
    results: _RESULTS = record.RESULTS,
) -> None:
    """Run the deep conformance suite again and again, with other plans each time."""
    from trust import suite

    options = ["--plans", str(plans), *(part for name in mode or () for part in ("--mode", name))]
    _finish_all(suite.run("deep", backend or (), 60 * minutes, options), results)


@app.command()
def faults(
    runs: Annotated[int, typer.Option(min=1, help="How many savers are killed.")] = 500,
    seed: _SEED = 0,
    results: _RESULTS = record.RESULTS,
) -> None:
    """Kill savers, fill disks, take permissions away, let savers race: the file is always a whole one."""
    from trust import faults as harness

    _finish(harness.run(runs, seed), results)


@app.command()
def soak(
    steps: Annotated[int, typer.Option(min=20, help="Of each training.")] = 20_000,
    results: _RESULTS = record.RESULTS,
) -> None:
    """Train for long: memory stays flat, residencies keep the same bits, and a stopped training goes on as it was."""
    from trust import soak as harness

    _finish(harness.run(steps), results)


@app.command()
def numerics(
    rounds: Annotated[int, typer.Option(min=1, help="Of all attacks, with sums of all lengths.")] = 20,
    seed: _SEED = 0,
    results: _RESULTS = record.RESULTS,
) -> None:
    """Compare products of hostile operands, in every order and by every backend, with integers."""
    from trust import numerics as harness

    _finish(harness.run(rounds, seed), results)


@app.command()
def orders(results: _RESULTS = record.RESULTS) -> None:
    """Build golden vectors under several hash seeds, and with the frameworks imported in every order."""
    from trust import orders as harness

    _finish(harness.run(), results)


@app.command()
def packages(
    extras: Annotated[
        str, typer.Option(help="Some of none, torch, jax, keras, conformance.")
    ] = "none,torch,jax,keras,conformance",
    pip: Annotated[str, typer.Option(help="More options of pip install, such as an index.")] = "",
    results: _RESULTS = record.RESULTS,
) -> None:
    """Build the library, and install and use it with each extra in a fresh environment; takes gigabytes and minutes."""
    from trust import packages as harness

    chosen = extras.split(",")
    if odd := [name for name in chosen if name not in harness.EXTRAS]:
        raise typer.BadParameter(f"--extras takes some of {', '.join(harness.EXTRAS)}; got {', '.join(odd)}")
    _finish_all(harness.run(chosen, shlex.split(pip)), results)


@app.command()
def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="The Markdown file.")],
    readme: Annotated[Path | None, typer.Option(help="A file with marks, between which tables are put.")] = None,
    files: Annotated[
        list[Path] | None, typer.Argument(exists=True, help="Files of results; trust/results/trust.jsonl by default.")
    ] = None,
) -> None:
    """Write a page of tables from results."""
    from trust import marks
    from trust import report as pages

    lines = [line for path in files or [record.RESULTS] for line in record.read(path)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(pages.page(lines))
    if readme is not None:
        readme.write_text(marks.filled(readme.read_text(), lines))


def _finish_all(found: Iterable[record.Findings], results: Path) -> None:
    """Print all that is found, keep it at once, and exit with 1 if something did not hold."""
    passed = [_keep(findings, results) for findings in found]
    if not all(passed):
        raise typer.Exit(1)


def _finish(findings: record.Findings, results: Path) -> None:
    _finish_all([findings], results)


def _keep(findings: record.Findings, results: Path) -> bool:
    line = findings.line()
    for label in findings.labels.values():
        print(f"== {label}")
    for what, number in findings.counts.items():
        print(f"{what}: {number:,}")
    for what, value in findings.measured.items():
        bound = findings.bounds.get(what)
        print(f"{what}: {value:,.6g}" + ("" if bound is None else f" (at most {bound:,.6g})"))
    for what, why in findings.skipped.items():
        print(f"{what}: skipped, {why}")
    for what in findings.failures:
        print(f"FAILED: {what}")
    print(f"{findings.check}: {'passed' if line['passed'] else 'failed'} in {line['seconds']} s")
    record.append(results, line)
    return bool(line["passed"])


if __name__ == "__main__":
    app()
