"""What the commands share: options, and how results, progress and failures reach people and programs."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from smh.core.sizes import parse_size
from smh.errors import PlanError, SmhError
from smh.files.dense import Tensors
from smh.text import printable

# Exit codes, besides 2 for wrong usage and 130 for an interruption, as in a shell.
DIFFERENT = 1  # done; what was compared differs, or a check failed
FAILED = 3  # not done: a file or an option cannot be used, or the system refused; nothing was written
UNREAD = 141  # the reader of stdout went away, as in a shell


def parse_limit(text: str) -> int | None:
    """Return the limit that ``--max-bytes`` gives, or None where it is left out."""
    try:
        return parse_size(text) if text else None
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--max-bytes") from error


File = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save.")
BackendName = typer.Option(
    "",
    "--backend",
    help="The backend that builds the weights; default: that of the environment variable SMH_BACKEND, or numpy.",
)
AsJson = typer.Option(False, "--json", help="Print one JSON object instead of text.")
Force = typer.Option(False, "--force", help="Replace the file to be written if it exists.")
MaxBytes = typer.Option(
    "",
    metavar="SIZE",
    parser=parse_limit,
    help="The most bytes of weights that a file may ask to be built: a number, or one with a unit, as 500 MB; default: "
    "1GiB, or 1,024 times what the file stores, whichever is more.",
)


class Lazy(Tensors):
    """Tensors, each of which a function reads when it is asked for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> None:
        self.shapes, self._read = shapes, read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)


class _Console(Console):
    """A console that no control character of a text gets through; commands handle a reader that goes away."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to print; rich itself lets escape sequences pass."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def text_console(file: IO[str] | None = None) -> Console:
    """Return a console that leaves numbers and brackets alone; what is no terminal takes tables of 140 columns."""
    console = _Console(file=file, highlight=False, markup=False, soft_wrap=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)
    return console


def emit(result: Mapping[str, Any], as_json: bool, shown: Iterable[RenderableType], same: bool = True) -> None:
    """Print a result on stdout, as JSON or as lines and tables for people, and exit with code 1 unless ``same``."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False, default=dataclasses.asdict))
    else:
        console = text_console()
        for part in shown:
            console.print(part, soft_wrap=isinstance(part, str | Text))
    if not same:
        raise typer.Exit(DIFFERENT)


number = functools.partial(Column, justify="right")  # a column of a table


def marked(line: str, style: str = "red") -> Text:
    """Return a line in a colour."""
    return Text(printable(line), style)


def first_lines(lines: Sequence[str], most: int, where: str, kind: str = "", style: str = "red") -> Iterator[Text]:
    """Iterate over the first lines, and one that says how many more there are."""
    for line in lines[:most]:
        yield marked(line, style)
    if len(lines) > most:
        yield marked(f"{where} {len(lines) - most:,} more{kind} (--json names all)", style)


def progress() -> Progress:
    """Return progress bars on stderr, which are gone when they are done, and are not there unless it is a terminal."""
    console = Console(stderr=True)
    description = TextColumn("{task.description}", markup=False)  # it may be the name of a file
    columns = (SpinnerColumn(), description, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def check_out(out: Path, *inputs: Path | None, force: bool) -> None:
    """Raise SmhError or OSError, before any work is done, unless a file may be written there that is no input."""
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(out.parent))
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out))
    if not out.exists():
        return
    if not out.is_file():
        raise SmhError(f"only a file can be replaced: choose another path, got {str(out)!r}")
    if any(path and path.exists() and out.samefile(path) for path in inputs):
        raise SmhError(f"the result would replace the input: choose another path, got {str(out)!r}")
    if not force:
        raise SmhError(f"the file exists: choose another path, or replace it by --force; got {str(out)!r}")


def fail(error: Exception) -> typer.Exit:
    """Print an error on one line of stderr, and return the exit that follows."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    line = " ".join(text.split()) or type(error).__name__
    text = f"[bold red]error:[/] {escape(printable(line))}"
    Console(stderr=True, highlight=False, emoji=False).print(text, soft_wrap=True)
    return typer.Exit(FAILED)
