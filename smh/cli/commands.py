"""All commands, in the order of the help, and the frame that they run in."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from smh import __version__
from smh.cli import compare, compress, conformance, convert, demo, look, pack, plot
from smh.cli.output import INTERRUPTED, UNREAD, fail, show, text_console
from smh.errors import SmhError
from smh.files.atomic import replaced


class _Group(TyperGroup):
    """Commands whose expected failures end with one line, not with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        before = replaced["files"]
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # the reader of stdout has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter has yet to flush
            raise typer.Exit(UNREAD) from error
        except (SmhError, OSError, MemoryError) as error:
            raise fail(error) from error
        except KeyboardInterrupt as error:
            nothing = replaced["files"] == before
            show(
                text_console(stderr=True),
                "interrupted" + (", nothing written" if nothing else " after a file was written"),
            )
            raise typer.Exit(INTERRUPTED) from error


class _Command(TyperCommand):
    """A command whose texts are plain: no markup, and lines that are broken by the terminal, not as in the source."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        paragraphs = (self.help or "").split("\n\n")
        self.help = escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption):
                parameter.help = escape(parameter.help or "")


app = typer.Typer(
    name="smh",
    cls=_Group,
    help="Structured Multi-Hashing: weights generated from a small pool, with the same bits in every framework.",
    epilog="Exit codes: 0 done, 1 the comparison found a difference, 2 wrong usage, 3 failed and nothing written, "
    "130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"smh {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Take the options that come before a command."""


_PANELS = {
    "Compress": (compress.run_plan, compress.run_fit),
    "Look and compare": (look.run_inspect, plot.run_plot, compare.run_digest, compare.run_verify, compare.run_diff),
    "Convert": (convert.run_materialize, convert.run_port, pack.run_pack),
    "This installation": (look.run_info, conformance.run_conformance, demo.run_demo),
}

for _panel, _commands in _PANELS.items():
    for _run in _commands:
        app.command(_run.__name__.removeprefix("run_"), cls=_Command, rich_help_panel=_panel)(_run)
