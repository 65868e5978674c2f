"""The command line: one file per command, and what they share in :mod:`smh.cli.output`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from smh import __version__
from smh.cli import conformance, demo, info
from smh.cli.output import fail
from smh.errors import SmhError


class _Group(TyperGroup):
    """Commands whose expected failures end with one line, not with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of stdout has seen enough
            raise
        except (SmhError, OSError) as error:
            raise fail(error) from error


app = typer.Typer(
    name="smh",
    cls=_Group,
    help="Structured Multi-Hashing: weights generated from a small pool of variables, with the same bits everywhere.",
    epilog="Exit codes: 0 done, 1 what was compared differs, 2 wrong usage, 3 failed and nothing written, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
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
    """Run the command line."""
    app()
