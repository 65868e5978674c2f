"""What all commands share: how results, progress and failures reach people and programs."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from smh.core.sizes import parse_size
from smh.errors import PlanError, SmhError
from smh.text import printable

_WIDTH = 140

AsJson = typer.Option(False, "--json", help="Print one JSON object instead of text.")
Force = typer.Option(False, "--force", help="Replace the file to be written if it exists.")
MaxBytes = typer.Option(
    "",
    metavar="SIZE",
    help="The most bytes of weights that a file may ask to be built: a number, or one with a unit, as 500 MB; default: "
    "1GiB, or 1,024 times what the file stores, whichever is more.",
)


class ExitCode(IntEnum):
    """Exit codes of all commands; besides, 130 is an interruption, as in a shell."""

    OK = 0
    """Done; what was compared is the same."""
    DIFFERENT = 1
    """Done; what was compared differs, or a check failed."""
    USAGE = 2
    """The command was not understood."""
    FAILED = 3
    """Not done: a file or an option cannot be used, or the system refused. Nothing was written."""
    UNREAD = 141
    """The reader of stdout went away, as in a shell."""


class _Console(Console):
    """A console that no control character of a text gets through, whoever chose the names in it.

    It leaves it to the frame of the commands what follows when nobody reads on.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to print; rich itself lets escape sequences pass."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def emit(result: Mapping[str, Any], as_json: bool, show: Callable[[Console], None]) -> None:
    """Print the result of a command on stdout.

    Parameters
    ----------
    result : mapping
        What ``--json`` prints: plain data.
    as_json : bool
        Whether it was asked for.
    show : callable
        Prints the result for people.
    """
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        show(text_console())


def text_console(file: IO[str] | None = None) -> Console:
    """Return a console that leaves numbers and brackets alone; what is no terminal takes whole tables.

    Parameters
    ----------
    file : text file, optional
        Where to; stdout by default.
    """
    console = _Console(file=file, highlight=False, markup=False, soft_wrap=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console


def progress() -> Progress:
    """Return progress bars on stderr, which are gone when they are done, and are not there unless it is a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),  # it may be the name of a file
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def check_out(out: Path, *inputs: Path, force: bool) -> None:
    """Raise unless a file may be written there. Commands call this before they do any work.

    Parameters
    ----------
    out : Path
        The file to be written.
    *inputs : Path
        Files that it must not replace.
    force : bool
        Whether it may replace another file.

    Raises
    ------
    SmhError
        If it would replace an input, a device or the like, or any file without ``force``.
    OSError
        If its folder is not there, or it is itself a folder.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(out.parent))
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out))
    if out.exists() and not out.is_file():
        raise SmhError(f"only a file can be replaced: choose another path, got {str(out)!r}")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise SmhError(f"the result would replace the input: choose another path, got {str(out)!r}")
    if out.exists() and not force:
        raise SmhError(f"the file exists: choose another path, or replace it by --force; got {str(out)!r}")


def parse_limit(text: str) -> int | None:
    """Return the limit that ``--max-bytes`` gives, or None where it is left out."""
    try:
        return parse_size(text) if text else None
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--max-bytes") from error


def fail(error: Exception) -> typer.Exit:
    """Print an error on one line of stderr, and return the exit that follows."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    line = " ".join(text.split()) or type(error).__name__
    text = f"[bold red]error:[/] {escape(printable(line))}"
    Console(stderr=True, highlight=False, emoji=False).print(text, soft_wrap=True)
    return typer.Exit(ExitCode.FAILED)
