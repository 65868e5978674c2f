"""The command line: one file per command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from smh import __version__
from smh.cli import conformance, demo, info
from smh.errors import SmhError

app = typer.Typer(
    name="smh",
    help="Structured Multi-Hashing: weights generated from a small pool of variables, with the same bits everywhere.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smh {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Take the options that come before a command."""


app.command("demo")(demo.run)
app.command("info")(info.run)
app.command("conformance")(conformance.run)


def main() -> None:
    """Run the command line; errors of smh end with a message and status 1, not with a traceback."""
    try:
        app()
    except (SmhError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        sys.exit(1)
