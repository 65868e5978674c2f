"""``smh info``: what a checkpoint holds, and whether its weights are those that it was saved with."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

import smh
from smh.errors import CheckpointError


def run(
    path: Path = typer.Argument(..., help="A checkpoint written by smh.save."),
    verify: bool = typer.Option(False, "--verify", help="Build all weights and compare their digest."),
) -> None:
    """Show the plan of a checkpoint, and verify its digest if asked to."""
    console = Console()
    found = smh.load(path)
    console.print(str(found.plan), highlight=False, soft_wrap=True)
    if found.dense:
        console.print(f"dense tensors: {', '.join(found.dense)}", highlight=False, soft_wrap=True)
    console.print(f"digest {found.digest}", highlight=False, soft_wrap=True)
    if verify:
        digest = smh.digest(found.plan, found.variables)
        if digest != found.digest:
            raise CheckpointError(f"{path}: the weights built here have another digest; got {digest}")
        console.print("verified: the weights built here are the same, bit for bit")
