"""``smh inspect``: what a file holds, a checkpoint or a plain safetensors file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from smh.cli.output import AsJson, emit
from smh.files import checkpoint
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.dense import DenseFile, is_checkpoint
from smh.files.header import DTYPES
from smh.files.integers import pack, pool_arrays
from smh.text import printable, shortened

_BLOCK = 1 << 20  # elements that are squared at a time
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FLOAT32 = 4  # bytes of a weight
_MOST = 200  # characters of a name, in text
_TITLES = {
    "variable": "Variables",
    "training": "Training values of the pool",
    "kept": "Kept as they are",
    "carried": "Carried along, of no model",
}


def run(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint, or a plain safetensors file."),
    as_json: bool = AsJson,
) -> None:
    """Show what a file holds.

    Of a checkpoint: its plan, variables with the bits and exponents of their integers, whether it has training values,
    kept tensors, sizes, and the digest that it states. No weights are rebuilt: digest and verify compare the digest.
    Of a plain safetensors file: its tensors.
    """
    result, show = look(path)
    emit(result, as_json, show)


def look(path: Path) -> tuple[dict[str, Any], Callable[[Console], None]]:
    """Return what a file holds, in plain data, and what prints it for people.

    Parameters
    ----------
    path : Path
        A checkpoint, or a plain safetensors file.

    Returns
    -------
    tuple of (dict, callable)

    Raises
    ------
    CheckpointError
        If it is neither.
    OSError
        If it cannot be read.
    """
    if is_checkpoint(path):
        found = checkpoint.read(path)
        result = _of_checkpoint(path, found)
        return result, lambda console: _show_checkpoint(console, found, result)
    with DenseFile(path) as file:
        plain = _of_dense(path, file)
    return plain, lambda console: _show_dense(console, plain)


def _of_checkpoint(path: Path, found: Checkpoint) -> dict[str, Any]:
    tensors = list(_variables(found))
    for name, x in found.dense.items():
        kind = "carried" if name.startswith(CARRIED) else "kept"
        tensors.append(_entry(name, kind, _CODES[x.dtype.name], x.shape, x.nbytes))
    kept = sum(entry["bytes"] for entry in tensors if entry["kind"] == "kept")
    return {
        "file": str(path),
        "kind": "checkpoint",
        "bytes": os.stat(path).st_size,
        "dense_bytes": _FLOAT32 * found.plan.num_weights + kept,
        "digest": found.digest,
        "weights": found.plan.num_weights,
        "variables": found.plan.num_variables,
        "ratio": found.plan.ratio,
        "training": found.training,
        "plan": found.plan.to_dict(),
        "tensors": tensors,
    }


def _variables(found: Checkpoint) -> Iterator[dict[str, Any]]:
    """Iterate over the variables of a checkpoint as its file holds them: integers of the pool, then float32 arrays."""
    integers, exponents = pack(found.plan, found.variables)
    for name, bits, shape, _ in pool_arrays(found.plan):
        stored = integers[name]
        entry = _entry(name, "variable", _CODES[stored.dtype.name], shape, stored.nbytes)
        yield {**entry, "bits": bits, "exponent": exponents[name.removeprefix("pool/")], **_rms(found, name)}
    for name, x in found.variables.items():
        if name not in integers:
            yield {**_entry(name, "variable", "F32", x.shape, x.nbytes), **_rms(found, name)}
        elif found.training:
            yield {**_entry(f"training/{name}", "training", "F32", x.shape, x.nbytes)}


def _of_dense(path: Path, file: DenseFile) -> dict[str, Any]:
    return {
        "file": str(path),
        "kind": "plain",
        "bytes": os.stat(path).st_size,
        "tensors": [_entry(name, "plain", file.dtypes[name], file.shapes[name], file.sizes[name]) for name in file],
    }


def _entry(name: str, kind: str, dtype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
    numbers = math.prod(shape)
    return {"name": name, "kind": kind, "dtype": dtype, "shape": list(shape), "numbers": numbers, "bytes": size}


def _rms(found: Checkpoint, name: str) -> dict[str, float | None]:
    """Return the root mean square of a variable, or None if not all of it is finite."""
    flat = found.variables[name].reshape(-1)
    total = sum(
        float(np.sum(np.square(flat[start : start + _BLOCK], dtype=np.float64)))
        for start in range(0, flat.size, _BLOCK)
    )
    return {"rms": math.sqrt(total / flat.size) if math.isfinite(total) else None}


def _show_checkpoint(console: Console, found: Checkpoint, result: Mapping[str, Any]) -> None:
    console.print(str(found.plan), soft_wrap=True)
    console.print()
    for kind, title in _TITLES.items():
        if entries := [entry for entry in result["tensors"] if entry["kind"] == kind]:
            _show_tensors(console, title, entries)
    share = result["bytes"] / result["dense_bytes"]
    console.print(f"training values: {'stored' if found.training else 'not stored'}")
    console.print(f"{result['bytes']:,} bytes, {share:.1%} of {result['dense_bytes']:,} for the plain tensors")
    console.print(f"digest {result['digest']} (as stated, not rebuilt)", soft_wrap=True)


def _show_dense(console: Console, result: Mapping[str, Any]) -> None:
    tensors = result["tensors"]
    _show_tensors(console, "Plain safetensors file", tensors)
    numbers = sum(entry["numbers"] for entry in tensors)
    console.print(f"{len(tensors):,} tensors, {numbers:,} numbers, {result['bytes']:,} bytes")


def _show_tensors(console: Console, title: str, entries: Sequence[Mapping[str, Any]]) -> None:
    table = Table("name", "dtype", title=title)
    with_rms = any("rms" in entry for entry in entries)
    for column in ("shape", "numbers", "bytes", *(("bits", "exponent", "rms") if with_rms else ())):
        table.add_column(column, justify="right")
    for entry in entries:
        name, shape = shortened(printable(entry["name"]), _MOST), "x".join(map(str, entry["shape"]))
        row = [name, entry["dtype"], shape or "scalar"]
        row += [f"{entry['numbers']:,}", f"{entry['bytes']:,}"]
        if with_rms:
            row += [str(entry["bits"]), _exponent(entry["exponent"])] if "bits" in entry else ["", ""]
            row.append("not finite" if entry["rms"] is None else f"{entry['rms']:.4g}")
        table.add_row(*row)
    console.print(table)


def _exponent(exponent: int | None) -> str:
    return "all 0" if exponent is None else str(exponent)
