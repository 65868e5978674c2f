"""What the commands share: options, and how results, progress and failures reach people and programs."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from smh.backends.protocol import Backend
from smh.backends.registry import get_backend, list_backends
from smh.core.sizes import parse_size
from smh.errors import BackendError, PlanError, SmhError
from smh.files.dense import Tensors
from smh.text import printable

# Exit codes, besides 2 for wrong usage, such as a value that no file allows.
DIFFERENT = 1  # done, but the compared files differ or a check failed
FAILED = 3  # not done: a file cannot be used, or a value does not fit it, or the system refused; nothing was written
INTERRUPTED = 130  # by Ctrl-C, as in a shell
UNREAD = 141  # the reader of stdout went away, as in a shell

_PIPED = 140  # columns of output into a file or a pipe
_GAP = 2  # columns between those of a table
_NAME = 16  # columns that a name needs, before it is folded
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_EMPTY = ("", "scalar", "all 0", "various", "not finite", "nan", "inf")

SAFETENSORS, JSON = ".safetensors", ".json"
_CONVERSIONS = {
    ".npz": "numpy.savez({0!r}, **safetensors.numpy.load_file({1!r}))",
    **dict.fromkeys((".pt", ".pth", ".bin"), "torch.save(safetensors.torch.load_file({1!r}), {0!r})"),
}
"""What makes another format of a plain safetensors file."""
_SUFFIXES = {SAFETENSORS, JSON, ".npy", ".ckpt", ".pkl", ".pickle", ".h5", ".hdf5", ".keras", ".onnx", ".tflite", ".pb"}
_SUFFIXES |= {*_CONVERSIONS, ".gguf", ".ggml", ".msgpack", ".mlmodel", ".zip", ".csv", ".txt", ".svg", ".png", ".pdf"}


def parse_limit(text: str) -> int | None:
    """Return the limit that ``--max-bytes`` gives, or None where it is left out."""
    try:
        return parse_size(text) if text else None
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--max-bytes") from error


def valid(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Return a callback for an option whose value is wrong usage if a check raises PlanError."""

    def callback(value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except PlanError as error:
            raise typer.BadParameter(str(error)) from error
        return value

    return callback


def backend_named(name: str) -> Backend:
    """Return a backend, by default that of the environment; a name that no backend has is wrong usage."""
    try:
        return get_backend(name or None)
    except BackendError as error:
        if name and name not in list_backends():
            raise typer.BadParameter(str(error), param_hint="--backend") from error
        raise


File = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save.")
BackendName = typer.Option(
    "",
    "--backend",
    help="The backend that builds the weights. Default: the environment variable SMH_BACKEND, or numpy.",
)
AsJson = typer.Option(False, "--json", help="Print one JSON object instead of text.")
Quiet = typer.Option(False, "--quiet", "-q", help="Print errors and warnings only.")
ShowAll = typer.Option(False, "--all", help="Print a line for every tensor, not a summary.")
Force = typer.Option(False, "--force", help="Replace the output file if it exists.")
MaxBytes = typer.Option(
    "",
    metavar="SIZE",
    parser=parse_limit,
    help="Limit for the bytes of weights to build, such as '500 MB'. Default: 1 GiB, or 1,024 times the bytes that the "
    "file stores, whichever is more.",
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


class Listing:
    """A table whose first column is folded, never cut; a paragraph for each row where the console is too narrow."""

    def __init__(self, *columns: str, title: str = "") -> None:
        self._title, self._columns = title, columns
        self._rows: list[tuple[tuple[str, ...], str]] = []

    def add(self, *cells: object, style: str = "") -> None:
        """Add a row: texts, and whole numbers, which are shown with separators."""
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        self._rows.append((tuple(map(printable, texts)), style))

    def __len__(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._title:
            yield Text(self._title, "bold")
        filled = [k for k in range(len(self._columns)) if k == 0 or any(cells[k] for cells, _ in self._rows)]
        columns = [[self._columns[k], *(cells[k] for cells, _ in self._rows)] for k in filled]
        widths = [max(map(cell_len, column)) for column in columns]
        first = max(options.max_width - sum(widths[1:]) - _GAP * (len(widths) - 1), 0)
        if first < min(widths[0], _NAME):
            if not self._title:
                yield Text(self._columns[0], "bold")
            for cells, style in self._rows:
                pairs = zip(self._columns[1:], cells[1:], strict=True)
                details = ", ".join(f"{head} {cell}".strip() for head, cell in pairs if cell)
                yield Padding(Text(cells[0], style, overflow="fold"), (0, 0, 0, 2), expand=False)
                yield Padding(Text(details, style), (0, 0, 0, 4), expand=False)
            return
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for k, column in enumerate(columns):
            right = all(cell[:1].isdigit() or cell in _EMPTY for cell in column[1:])
            width = min(widths[0], first) if k == 0 else widths[k]
            table.add_column(column[0], justify="right" if k and right else "left", width=width, overflow="fold")
        for cells, style in self._rows:
            table.add_row(*(Text(cells[k]) for k in filled), style=style)
        yield table


def text_console(file: IO[str] | None = None, stderr: bool = False) -> Console:
    """Return a console that leaves numbers and brackets alone; output into a file or pipe has wide lines."""
    console = _Console(file=file, stderr=stderr, highlight=False, markup=False, soft_wrap=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED
    return console


def emit(
    result: Mapping[str, Any],
    as_json: bool,
    shown: Iterable[RenderableType],
    same: bool = True,
    *,
    warnings: Iterable[str] = (),
    quiet: bool = False,
) -> None:
    """Print a result on stdout, as JSON or as lines and tables for people, and exit with code 1 unless ``same``.

    Warnings go to stderr; in JSON they are a part of the result.
    """
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False, default=dataclasses.asdict))
    else:
        console, errors = text_console(), text_console(stderr=True)
        for part in () if quiet else shown:
            show(console, part)
        for warning in warnings:
            show(errors, marked(f"warning: {warning}", "yellow"))
    if not same:
        raise typer.Exit(DIFFERENT)


def show(console: Console, part: RenderableType) -> None:
    """Print a part of a result; on a terminal lines break between words, so a digest or a path stays whole."""
    if isinstance(part, str | Text):
        text, style = (part, "") if isinstance(part, str) else (part.plain, str(part.style))
        if console.is_terminal:
            lines = (textwrap.wrap(line, console.width, **_WHOLE_WORDS) or [""] for line in text.split("\n"))
            text = "\n".join(itertools.chain.from_iterable(lines))
        console.print(text, style=style, soft_wrap=True)
    else:
        console.print(part)


def marked(line: str, style: str = "red") -> Text:
    """Return a line in a color."""
    return Text(printable(line), style)


def progress(quiet: bool = False) -> Progress:
    """Return progress bars on stderr, which disappear when they are done; there are none unless it is a terminal."""
    console = Console(stderr=True)
    description = TextColumn("{task.description}", markup=False)  # it may be the name of a file
    columns = (SpinnerColumn(), description, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def check_out(
    out: Path, *inputs: str | Path | None, force: bool, suffix: str = SAFETENSORS, plain: bool = False
) -> None:
    """Raise, before any work is done, unless a file may be written there: it is not an input, and has a fitting name.

    ``suffix`` is that of the format that is written; a name with that of another format is wrong usage. ``plain`` says
    that the tensors are those of a model, so that another format could hold them.
    """
    ending = out.suffix.lower()
    if ending in _SUFFIXES and ending != suffix:
        better = str(out.with_suffix(suffix))
        convert = f", and convert it in Python: {_CONVERSIONS[ending]}" if plain and ending in _CONVERSIONS else ""
        what = f"{str(out)!r} would hold {suffix.removeprefix('.')}, whatever its name: write {better!r}{convert}"
        raise typer.BadParameter(what.format(str(out), better), param_hint="--out")
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(out.parent))
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out))
    if not out.exists():
        return
    if not out.is_file():
        raise SmhError(f"only a file can be replaced: choose another path, got {str(out)!r}")
    if any(path and os.path.exists(path) and out.samefile(path) for path in inputs):
        raise SmhError(f"the result would replace the input: choose another path, got {str(out)!r}")
    if not force:
        raise SmhError(f"the file exists: choose another path, or replace it by --force; got {str(out)!r}")


def fail(error: Exception) -> typer.Exit:
    """Print an error on one line of stderr, and return the exit that follows."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    line = " ".join(text.split()) or type(error).__name__
    show(text_console(stderr=True), marked(f"error: {line}"))
    return typer.Exit(FAILED)
