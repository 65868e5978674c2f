"""``smh digest``: rebuild the weights of a checkpoint, and print their digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer
from rich.console import Console

from smh.backends.protocol import Backend
from smh.backends.registry import get_backend
from smh.cli.output import AsJson, ExitCode, MaxBytes, emit, parse_limit, progress
from smh.files import checkpoint, digests
from smh.files.checkpoint import Checkpoint
from smh.files.export import canonical
from smh.files.limits import check_file

Watch = Callable[[list[str], list[np.ndarray]], object]


def run(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint written by smh.save."),
    backend: str = typer.Option(
        "", help="The backend that builds the weights; default: that of the environment variable SMH_BACKEND, or numpy."
    ),
    max_bytes: str = MaxBytes,
    as_json: bool = AsJson,
) -> None:
    """Rebuild the weights of a checkpoint and print their digest; exit 1 unless it is the one that the file states."""
    limit = parse_limit(max_bytes)
    builder = get_backend(backend or None)
    found = checkpoint.read(path)
    check_file(found, limit)
    with progress() as bars:
        task = bars.add_task(f"weights by {backend or builder.name}", total=found.plan.num_weights)
        digest = rebuild(builder, found, lambda _, arrays: bars.advance(task, sum(x.size for x in arrays)))
    same = digest == found.digest
    result = {
        "file": str(path),
        "backend": backend or builder.name,
        "digest": digest,
        "stated": found.digest,
        "same": same,
    }

    def show(console: Console) -> None:
        console.print(digest, soft_wrap=True)
        if not same:
            console.print(f"not the same: the file states {found.digest}", style="red", soft_wrap=True)

    emit(result, as_json, show)
    if not same:
        raise typer.Exit(ExitCode.DIFFERENT)


def rebuild(backend: Backend, found: Checkpoint, watch: Watch) -> str:
    """Return the digest of the weights that a backend builds, some tensors at a time.

    Parameters
    ----------
    backend : Backend
        Builds them.
    found : Checkpoint
        With NumPy arrays.
    watch : callable
        Is given names and weights, in their canonical shapes, after each step.

    Returns
    -------
    str
        64 hexadecimal digits, those of :func:`smh.digest`.
    """
    plan = canonical(found.plan)
    own = {name: backend.asarray(x) for name, x in found.variables.items()}

    def build(names: list[str]) -> list[np.ndarray]:
        built = backend.materialize(plan, own, names)
        arrays = [backend.to_numpy(built[name]) for name in names]
        watch(names, arrays)
        return arrays

    return digests.digest(plan, build)
