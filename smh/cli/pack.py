"""``smh pack``: entropy-code the integers of a checkpoint, or write them as they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from smh.cli.output import AsJson, File, Force, Listing, Quiet, check_out, emit
from smh.core.integers import pool_arrays
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.coder import entropy
from smh.files.integers import from_stored, pack

_LEVEL = 19  # of zstd: the highest usual one


def run_pack(
    path: Path = File,
    out: Path = typer.Option(..., "--out", "-o", metavar="OUT", help="The checkpoint to write."),
    raw: bool = typer.Option(False, "--raw", help="Write the integers as they are, for any safetensors reader."),
    force: bool = Force,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Make a checkpoint smaller: entropy-code the integers of its pool.

    Every command and smh.load read the result, if constriction is installed (the extra pack). Plan, integers, kept
    tensors and stated digest do not change, and --raw makes the file as it was. The table compares the bytes of each
    array with its entropy, and with zstd if that is installed.
    """
    check_out(out, path, force=force)
    loaded = checkpoint.read(path)
    checkpoint.write(out, loaded.plan, loaded.variables, loaded.dense, loaded.digest, loaded.training, packed=not raw)
    coded = checkpoint.read(out).coded
    arrays = _arrays(loaded, coded)
    before, after = path.stat().st_size, out.stat().st_size
    result = {"file": str(path), "out": str(out), "bytes_before": before, "bytes": after, "arrays": arrays}
    listing = Listing("array", "bits", "integers", "raw", "entropy", *(["zstd"] if _zstd() else []), "stored")
    for row in [*arrays, _total(arrays)]:
        listing.add(*(cell for cell in row.values() if cell is not None))
    line = f"{out}: {after:,} bytes, {after / before:.1%} of the {before:,} of {path}"
    emit(result, as_json, [listing, "", line], quiet=quiet)


def _arrays(loaded: Checkpoint, coded: dict[str, int]) -> list[dict[str, Any]]:
    """Return the sizes of the arrays of a pool, in bytes."""
    integers, _ = pack(loaded.plan, loaded.variables)
    compress = _zstd()
    return [
        {
            "name": name,
            "bits": bits,
            "numbers": array.size,
            "raw": integers[name].nbytes,
            "entropy": round(entropy(array)),
            "zstd": len(compress(integers[name].tobytes(), _LEVEL)) if compress else None,
            "bytes": coded.get(name, integers[name].nbytes),
        }
        for name, bits, shape, _ in pool_arrays(loaded.plan)
        for array in [from_stored(name, bits, shape, integers[name])]
    ]


def _total(arrays: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row with the sums of the rows of arrays."""
    sums = {key: sum(row[key] for row in arrays) for key in ("numbers", "raw", "entropy")}
    zstd = sum(row["zstd"] for row in arrays) if _zstd() else None
    return {"name": "all", "bits": "", **sums, "zstd": zstd, "bytes": sum(row["bytes"] for row in arrays)}


def _zstd() -> Callable[[bytes, int], bytes] | None:
    """Return the function that compresses by zstd at a level, or None if it is not installed."""
    for module in ("compression.zstd", "zstandard"):  # that of Python 3.14, and a package
        try:
            compress: Callable[[bytes, int], bytes] = importlib.import_module(module).compress
        except ModuleNotFoundError:
            continue
        return compress
    return None
