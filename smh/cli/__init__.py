"""The command line: a file for each group of commands; shared code is in :mod:`smh.cli.output`.

The commands need typer and rich, which the extra ``cli`` installs; this module does not.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

_NEEDED = ("typer", "click", "rich")


def main() -> None:
    """Run the command line."""
    try:
        from smh.cli.commands import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        hint = 'pip install "structured-multi-hashing[cli]"'
        sys.stderr.write(f"error: the command line needs {package}, which is not installed: {hint}\n")
        sys.exit(2)
    try:
        app(prog_name="smh")
    except Exception:  # not foreseen; exit code 1, Python's default for that, would say that something differs
        traceback.print_exc()
        sys.exit(3)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smh.cli.commands import app

    return app
