"""Fixtures for tests of files."""

import pytest
from typer.testing import CliRunner


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and returns its path."""

    def write(content, name="model"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def call():
    """Return a function that runs the command line in this process."""
    from smh.cli import app

    options = {"env": {"COLUMNS": "120"}}  # the width of a terminal changes what is printed
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
