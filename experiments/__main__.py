"""The command line: ``python -m experiments``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import cells, results, runner
from experiments.errors import run_app

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
HERE = Path(__file__).parent
_CONFIG = Annotated[Path, typer.Option(help="The configuration, a TOML file.")]
_IMPORT = Annotated[
    Path | None,
    typer.Option(
        "--import",
        exists=True,
        dir_okay=False,
        help="A Python file to execute first, which adds networks, methods or data sets.",
    ),
]


@app.command()
def run(
    config: _CONFIG = HERE / "fashion.toml",
    only: Annotated[str | None, typer.Option(help="Run only cells that match this regular expression.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each; 1 runs in this process.")] = 2,
    results_: Annotated[
        Path | None, typer.Option("--results", help="The file to append results to; results/CONFIG.jsonl by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data, if it is not in its default place.")
    ] = None,
    device: Annotated[str, typer.Option(help="The device to train on; results are reproducible on cpu only.")] = "cpu",
    list_: Annotated[bool, typer.Option("--list", help="Only list the cells and their states.")] = False,
    import_: _IMPORT = None,
) -> None:
    """Run every cell without a result. You can interrupt the command; the next call continues."""
    console = Console()
    if import_ is not None:
        runner.execute(import_)
    read = cells.read(config, data)
    path = results_ or HERE / "results" / f"{config.stem}.jsonl"
    selected = runner.choose(read, only)
    if list_:
        _list(console, selected, read, path)
        return
    failed = runner.Runner(read, path, console, device, import_).run(selected, jobs)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[
        list[Path] | None, typer.Argument(exists=True, help="Files of results; results/CONFIG.jsonl by default.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the page and its plots.")] = Path(
        "docs/results"
    ),
    config: _CONFIG = HERE / "fashion.toml",
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data, if it is not in its default place.")
    ] = None,
    import_: _IMPORT = None,
) -> None:
    """Write the page of tables and plots from results."""
    from experiments import report as pages

    if import_ is not None:
        runner.execute(import_)
    paths = files or [HERE / "results" / f"{config.stem}.jsonl"]
    lines = results.Results(line for path in paths for line in results.read(path))
    pages.write(cells.read(config, data), lines, output)


@app.command("bytes")
def report_bytes(
    files: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, help="Files of results; by default those of the configurations of the page."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the page and its plots.")] = Path(
        "docs/results"
    ),
) -> None:
    """Write the page on accuracy by bytes from results."""
    from experiments.report import by_bytes

    own = [HERE / "results" / f"{config}.jsonl" for config in by_bytes.CONFIGS]
    paths = files or [path for path in own if path.exists()]
    by_bytes.write([line for path in paths for line in results.read(path)], output)


def _list(console: Console, selected: list[cells.Cell], config: cells.Config, path: Path) -> None:
    lines = results.Results(results.read(path))
    states = [(cell, runner.status(cell, config, lines)) for cell in selected]
    for cell, state in states:
        console.print(f"{state:8}{cell.id}", highlight=False, markup=False, soft_wrap=True)
    done = sum(state in ("done", "cannot") for _, state in states)
    console.print(f"{done} of {len(states)} cells are done")


if __name__ == "__main__":
    run_app(app)
