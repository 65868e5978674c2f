"""The reference of the command line, made from the commands themselves."""

from __future__ import annotations

import html
from typing import Any

from typer.main import get_command

from smh.cli.commands import app

MARK = "<!-- all commands -->"


def reference() -> str:
    """Return a section of Markdown for every command: usage, what it does, arguments and options."""
    group: Any = get_command(app)
    return "\n\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    parameters = command.get_params(context)
    usage = " ".join(["smh", name, *command.collect_usage_pieces(context)])
    rows = [_row(*parameter.get_help_record(context)) for parameter in parameters]
    table = ["| argument or option | |", "|---|---|", *rows]
    return "\n\n".join([f"## smh {name}", f"```text\n{usage}\n```", _plain(command.help), "\n".join(table)])


def _row(names: str, text: str) -> str:
    """Return one row of a table, in which a bar would end the cell."""
    return f"| `{names}` | {_escaped(_plain(text))} |".replace("\n", " ")


def _plain(text: str) -> str:
    r"""Return a text without the escapes that keep rich from taking brackets for markup."""
    return text.replace("\\[", "[")


def _escaped(text: str) -> str:
    text = html.escape(text, quote=False)
    for character in "\\|[]*_":
        text = text.replace(character, f"\\{character}")
    return text
