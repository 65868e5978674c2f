"""``smh inspect``: what a file holds, a checkpoint or a plain safetensors file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table

from smh.cli.output import AsJson, emit, number
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


def run_inspect(
    path: Path = typer.Argument(..., metavar="FILE", help="A checkpoint, or a plain safetensors file."),
    as_json: bool = AsJson,
) -> None:
    """Show what a file holds.

    Of a checkpoint: its plan, variables with the bits and exponents of their integers, whether it has training values,
    kept tensors, sizes, and the digest that it states. No weights are rebuilt: digest and verify compare the digest.
    Of a plain safetensors file: its tensors.
    """
    if is_checkpoint(path):
        found = checkpoint.read(path)
        result = _of_checkpoint(path, found)
        emit(result, as_json, _shown_checkpoint(found, result))
    else:
        with DenseFile(path) as file:
            tensors = [_entry(name, "plain", file.dtypes[name], file.shapes[name], file.sizes[name]) for name in file]
        size, numbers = path.stat().st_size, sum(entry["numbers"] for entry in tensors)
        result = {"file": str(path), "kind": "plain", "bytes": size, "tensors": tensors}
        line = f"{len(tensors):,} tensors, {numbers:,} numbers, {size:,} bytes"
        emit(result, as_json, [_table("Plain safetensors file", tensors), line])


def _of_checkpoint(path: Path, found: Checkpoint) -> dict[str, Any]:
    tensors = list(_variables(found))
    for name, x in found.dense.items():
        kind = "carried" if name.startswith(CARRIED) else "kept"
        tensors.append(_entry(name, kind, _CODES[x.dtype.name], x.shape, x.nbytes))
    kept = sum(entry["bytes"] for entry in tensors if entry["kind"] == "kept")
    return {
        "file": str(path),
        "kind": "checkpoint",
        "bytes": path.stat().st_size,
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
        exponent = exponents[name.removeprefix("pool/")]
        yield {**entry, "bits": bits, "exponent": exponent, "rms": _rms(found.variables[name])}
    for name, x in found.variables.items():
        if name not in integers:
            yield {**_entry(name, "variable", "F32", x.shape, x.nbytes), "rms": _rms(x)}
        elif found.training:
            yield _entry(f"training/{name}", "training", "F32", x.shape, x.nbytes)


def _entry(name: str, kind: str, dtype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
    numbers = math.prod(shape)
    return {"name": name, "kind": kind, "dtype": dtype, "shape": list(shape), "numbers": numbers, "bytes": size}


def _rms(x: np.ndarray) -> float | None:
    """Return the root mean square of a variable, or None if not all of it is finite."""
    flat = x.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    total = sum(float(np.sum(np.square(block, dtype=np.float64))) for block in blocks)
    return math.sqrt(total / flat.size) if math.isfinite(total) else None


def _shown_checkpoint(found: Checkpoint, result: dict[str, Any]) -> Iterator[RenderableType]:
    yield str(found.plan)
    yield ""
    for kind, title in _TITLES.items():
        if entries := [entry for entry in result["tensors"] if entry["kind"] == kind]:
            yield _table(title, entries)
    share = result["bytes"] / result["dense_bytes"]
    yield f"training values: {'stored' if found.training else 'not stored'}"
    yield f"{result['bytes']:,} bytes, {share:.1%} of {result['dense_bytes']:,} for the plain tensors"
    yield f"digest {result['digest']} (as stated, not rebuilt)"


def _table(title: str, entries: list[dict[str, Any]]) -> Table:
    table = Table("name", "dtype", *map(number, ("shape", "numbers", "bytes")), title=title)
    with_rms = any("rms" in entry for entry in entries)
    if with_rms:
        for column in ("bits", "exponent", "rms"):
            table.add_column(column, justify="right")
    for entry in entries:
        name, shape = shortened(printable(entry["name"]), _MOST), "x".join(map(str, entry["shape"]))
        row = [name, entry["dtype"], shape or "scalar", f"{entry['numbers']:,}", f"{entry['bytes']:,}"]
        if with_rms:
            exponent = entry.get("exponent", "")
            row += [str(entry.get("bits", "")), "all 0" if exponent is None else str(exponent)]
            row.append("not finite" if entry["rms"] is None else f"{entry['rms']:.4g}")
        table.add_row(*row)
    return table
