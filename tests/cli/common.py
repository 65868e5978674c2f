"""How tests run the command line, and what a failure must look like."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from smh.cli.commands import app

SMH = [sys.executable, "-m", "smh"]


def call(*args, env=None, **options):
    """Run the command line in a process of its own; no expected failure shows a traceback."""
    command = [*SMH, *map(str, args)]
    environment = os.environ | (env or {})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, encoding="utf-8", **options
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def invoke(*args, columns=160):
    """Run the command line in this process."""
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(arg) for arg in args])


def as_json(*args):
    """Run a command that succeeds, and return the JSON object that it prints."""
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_fails(result, *words, code=3):
    """It failed, with one line that says what was wrong."""
    returned = result.returncode if isinstance(result, subprocess.CompletedProcess) else result.exit_code
    assert returned == code, result.stderr
    assert result.stdout == ""
    if code == 3:
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert len(line) < 1500
    text = " ".join(result.stderr.replace("│", " ").split())
    for word in words:
        assert word in text
