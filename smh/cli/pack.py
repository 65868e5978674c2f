"""``smh pack``: entropy-code the integers of a checkpoint, or write them as they are, and round kept tensors."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from smh.cli.model import read_checkpoint
from smh.cli.output import AsJson, File, Force, Listing, Quiet, check_out, emit
from smh.core.kept import BITS
from smh.files import checkpoint
from smh.files.checkpoint import Checkpoint
from smh.files.coder import entropy
from smh.files.header import CODES
from smh.files.integers import from_stored, pack
from smh.files.kept import ROUNDED, relative_error, round_kept
from smh.files.packed import integer_tensors
from smh.tables import counted

_LEVEL = 19  # of zstd: the highest usual one


def run_pack(
    path: Path = File,
    out: Path = typer.Option(..., "--out", "-o", metavar="OUT", help="The checkpoint to write."),
    kept_bits: int | None = typer.Option(
        None, "--kept-bits", metavar="BITS", help="Round kept tensors of floats to integers of so many bits: 8 or 16."
    ),
    raw: bool = typer.Option(False, "--raw", help="Write the integers as they are, for any safetensors reader."),
    force: bool = Force,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Make a checkpoint smaller: entropy-code its integers.

    Every command and smh.load read the result, if constriction is installed (the extra pack). Plan, integers, kept
    tensors and stated digest do not change, and --raw makes the file as it was. The table compares the bytes of each
    array with its entropy, and with zstd if that is installed.

    --kept-bits also rounds kept tensors, such as biases and norms, for good. Those that would lose too much get 16 bits
    or stay as they are. The last lines show the largest relative error.
    """
    if kept_bits not in (None, *BITS):
        raise typer.BadParameter(f"kept tensors are rounded to 8 or 16 bits; got {kept_bits}", param_hint="--kept-bits")
    check_out(out, path, force=force)
    loaded = read_checkpoint(path)
    bits = kept_bits or {name: one.bits for name, one in loaded.rounded.items()}
    checkpoint.write(out, loaded.plan, loaded.variables, loaded.dense, loaded.digest, loaded.training, not raw, bits)
    written = checkpoint.read(out)
    arrays, kept = _arrays(written), _kept(loaded, written)
    before, after = path.stat().st_size, out.stat().st_size
    result = {
        "file": str(path),
        "out": str(out),
        "bytes_before": before,
        "bytes": after,
        "arrays": arrays,
        "kept": kept,
    }
    listing = Listing("array", "bits", "integers", "raw", "entropy", *(["zstd"] if _zstd() else []), "stored")
    pool, rounded = ([row for row in arrays if row["name"].startswith(ROUNDED) is given] for given in (False, True))
    sums = [_total(counted(len(rounded), "kept tensor"), rounded)] if rounded else []
    for row in [*pool, *sums, _total("all", arrays)]:
        listing.add(*(cell for cell in row.values() if cell is not None))
    line = f"{out}: {after:,} bytes, {after / before:.1%} of the {before:,} of {path}"
    emit(result, as_json, [listing, "", *_kept_lines(kept), line], quiet=quiet)


def _arrays(written: Checkpoint) -> list[dict[str, Any]]:
    """Return the sizes of the arrays of integers in a file, in bytes."""
    integers = dict(pack(written.plan, written.variables).arrays)
    kept, _ = round_kept(written.dense, {name: one.bits for name, one in written.rounded.items()})
    integers |= {ROUNDED + name: q for name, q in kept.items()}
    compress = _zstd()
    return [
        {
            "name": name,
            "bits": bits,
            "numbers": array.size,
            "raw": integers[name].nbytes,
            "entropy": round(entropy(array)),
            "zstd": len(compress(integers[name].tobytes(), _LEVEL)) if compress else None,
            "bytes": written.coded.get(name, integers[name].nbytes),
        }
        for group in integer_tensors(written.plan, written.rounded)
        for name, bits, shape in group
        for array in [from_stored(name, bits, shape, integers[name])]
    ]


def _total(name: str, arrays: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row with the sums of the rows of arrays."""
    sums = {key: sum(row[key] for row in arrays) for key in ("numbers", "raw", "entropy")}
    zstd = sum(row["zstd"] for row in arrays) if _zstd() else None
    return {"name": name, "bits": "", **sums, "zstd": zstd, "bytes": sum(row["bytes"] for row in arrays)}


def _kept(before: Checkpoint, after: Checkpoint) -> list[dict[str, Any]]:
    """Return what became of kept tensors: bits and relative errors of the rounded ones, and bytes."""
    rows = []
    for name, x in before.dense.items():
        one = after.rounded.get(name)
        row = {"name": name, "dtype": CODES[x.dtype.name], "numbers": x.size, "bits": one and one.bits}
        row |= {"bytes_before": before.kept_bytes(name) or x.nbytes, "bytes": after.kept_bytes(name) or x.nbytes}
        rows.append({**row, "error": relative_error(x, after.dense[name]) if one else None})
    return rows


def _kept_lines(kept: list[dict[str, Any]]) -> Iterator[str]:
    rounded = [row for row in kept if row["bits"]]
    if not rounded:
        return
    counts = Counter(row["bits"] for row in rounded)
    words = " and ".join(f"{count} to {bits} bits" for bits, count in sorted(counts.items()))
    before, after = (sum(row[key] for row in kept) for key in ("bytes_before", "bytes"))
    yield f"kept tensors: {words}, {len(kept) - len(rounded)} as they are; {before:,} bytes before, {after:,} after"
    worst = max(rounded, key=lambda row: float(row["error"]))
    yield f"largest relative error of a kept tensor: {worst['error']:.2%} ({worst['name']!r})"


def _zstd() -> Callable[[bytes, int], bytes] | None:
    """Return the function that compresses by zstd at a level, or None if it is not installed."""
    for module in ("compression.zstd", "zstandard"):  # that of Python 3.14, and a package
        try:
            compress: Callable[[bytes, int], bytes] = importlib.import_module(module).compress
        except ModuleNotFoundError:
            continue
        return compress
    return None
