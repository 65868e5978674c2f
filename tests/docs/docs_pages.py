"""What tests of the documentation share: the blocks of a page, and a way to run them in order."""

import contextlib
import doctest
import io
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

import smh
from smh.cli import app

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- needs: (?P<needs>\w+) -->\n\s*)?```(?P<language>python|console)\n"
    r"(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n(?P=indent)```text\n(?P<output>.*?)^(?P=indent)```$)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of Python or of the console, also one inside a content tab."""

    language: str
    needs: str
    code: str
    output: str | None
    """What Python prints, if the page shows it in a block of text right below."""
    line: int


def blocks(text):
    """Return the blocks of a page in order; a fence that has more than a language, as a title, is none."""
    return [
        Block(
            language=found["language"],
            needs=found["needs"] or "",
            code=textwrap.dedent(found["code"]),
            output=None if found["output"] is None else textwrap.dedent(found["output"]),
            line=text.count("\n", 0, found.start("code")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def run(text, name, console=True):
    """Run the blocks of a page, which share their names; those of a backend that is not registered are left out.

    Code is compiled as that of the page, at its lines there, so that tracebacks, and AutoGraph, find its source.
    """
    names = {"__name__": "__main__"}
    for block in blocks(text):
        if block.needs and block.needs not in smh.list_backends():
            continue
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), names)
            if block.output is not None:
                _compare(f"line {block.line} of {name}", printed.getvalue(), block.output)
        elif console:
            _run_commands(block.code)


def _run_commands(code):
    """Run the commands of a console block, and compare what they print."""
    for example in code.removeprefix("$ ").split("\n$ "):
        command, _, expected = example.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "smh", f"examples call smh; got {command}"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        _compare(command, result.stdout, expected)


def _compare(what, got, expected):
    """Compare what was printed with what a page shows: ``...`` stands for anything, spaces and line ends for spaces."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    same = doctest.OutputChecker().check_output(expected.rstrip("\n") + "\n", got, options)
    assert same, f"{what} prints\n{got}\nand not\n{expected}"
