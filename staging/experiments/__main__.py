"""The command line: ``python -m experiments``."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import cells, results, runner
from smh.v2.errors import SmhError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
HERE = Path(__file__).parent
_CONFIG = Annotated[Path, typer.Option(help="What to run, TOML.")]


@app.command()
def run(
    config: _CONFIG = HERE / "fashion.toml",
    only: Annotated[str | None, typer.Option(help="A regular expression: only cells whose name has it.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each with one thread; 1 runs in this one.")] = 2,
    results_: Annotated[
        Path | None, typer.Option("--results", help="Where lines are added; results/CONFIG.jsonl by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data, where it is not in its usual place.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train; runs are repeatable on cpu only.")] = "cpu",
    list_: Annotated[bool, typer.Option("--list", help="Only say which cells there are, and which are done.")] = False,
) -> None:
    """Run every cell that is not in the file of results yet. Stop it at any time; call it again to go on."""
    console = Console()
    read = cells.read(config, data)
    path = results_ or HERE / "results" / f"{config.stem}.jsonl"
    chosen = runner.choose(read, only)
    if list_:
        _list(console, chosen, read, path)
        return
    failed = runner.Runner(read, path, console, device).run(chosen, jobs)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    files: Annotated[
        list[Path] | None, typer.Argument(exists=True, help="Results; results/CONFIG.jsonl by default.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the page and its plots.")] = Path(
        "docs/results"
    ),
    config: _CONFIG = HERE / "fashion.toml",
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data, where it is not in its usual place.")
    ] = None,
) -> None:
    """Write tables and plots from results."""
    from experiments import report as pages

    paths = files or [HERE / "results" / f"{config.stem}.jsonl"]
    found = results.Results(line for path in paths for line in results.read(path))
    pages.write(cells.read(config, data), found, output)


def _list(console: Console, chosen: list[cells.Cell], config: cells.Config, path: Path) -> None:
    found = results.Results(results.read(path))
    states = [(cell, runner.status(cell, config, found)) for cell in chosen]
    for cell, state in states:
        console.print(f"{state:8}{cell.id}", highlight=False, markup=False, soft_wrap=True)
    settled = sum(state in ("done", "cannot") for _, state in states)
    console.print(f"{settled} of {len(states)} are done")


def main() -> None:
    """Run the command line; errors that the project knows are one line, not a traceback."""
    try:
        app()
    except SmhError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
