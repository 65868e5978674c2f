"""``smh info``: this installation and its backends; ``smh inspect``: the content of a file."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import RenderableType

from smh._version import __version__
from smh.backends.registry import DEFAULT, GROUP, VARIABLE, get_backend, list_backends
from smh.cli.model import MODEL_HELP, check_no_plan
from smh.cli.output import AsJson, Listing, Quiet, ShowAll, emit, progress
from smh.cli.summary import entry_lines, generated_lines, plan_lines, variable_lines
from smh.core.integers import pool_arrays
from smh.core.versions import VERSION
from smh.errors import install_line
from smh.files import checkpoint
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.files.dense import is_checkpoint
from smh.files.formats import is_safetensors, open_dense
from smh.files.header import DTYPES
from smh.files.integers import pack
from smh.tables import counted
from smh.text import printable

_PACKAGES = ("numpy", "array-api-compat", "einops", "safetensors", "ml_dtypes", "scipy", "keras")
_BLOCK = 1 << 20  # elements that are squared at a time
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FLOAT32 = 4  # bytes of a weight
_TITLES = {"training": "training value", "kept": "kept", "carried": "carried along"}  # of tensors, by their kind


def run_info(as_json: bool = AsJson) -> None:
    """Show versions, backends and devices.

    This imports every installed framework, which takes seconds. The table says why a framework cannot be imported.
    """
    installed = list_backends(installed=True)
    rows = []
    with progress() as bars:
        task = bars.add_task("backends", total=len(installed))
        for name in list_backends():
            bars.update(task, description=name)
            rows.append(_backend(name, name in installed))
            bars.advance(task, name in installed)
    result = {
        "smh": __version__,
        "specification": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed_version(name) for name in _PACKAGES},
        "default": os.environ.get(VARIABLE) or DEFAULT,
        "backends": rows,
    }
    emit(result, as_json, _shown_installation(result))


def _backend(name: str, installed: bool) -> dict[str, Any]:
    """Return the facts on a backend, importing its framework if that is installed."""
    row: dict[str, Any] = {"name": name, "installed": installed, "version": None, "devices": [], "error": None}
    if installed:
        try:
            row["devices"] = get_backend(name).devices()
        except Exception as error:  # frameworks fail in many ways: drivers, libraries, versions
            row["error"] = " ".join(str(error).split()) or type(error).__name__
        brought = [
            entry.dist.version for entry in importlib.metadata.entry_points(group=GROUP, name=name) if entry.dist
        ]
        framework = getattr(sys.modules.get(name), "__version__", None)
        row["version"] = brought[0] if brought else framework or _installed_version(name)
    return row


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _shown_installation(result: dict[str, Any]) -> Iterator[RenderableType]:
    unknown = result["default"] not in [row["name"] for row in result["backends"]]
    note = f" (there is none of this name: change {VARIABLE})" if unknown else ""
    lines = {name: result[name] for name in ("smh", "specification", "python")} | result["packages"]
    lines |= {"platform": result["platform"], "default backend": printable(result["default"]) + note}
    for name, value in lines.items():
        yield f"{name:<17} {value or 'not installed'}"
    yield ""
    listing = Listing("backend", "version", "devices", title="Backends")
    for row in result["backends"]:
        devices = row["error"] or ", ".join(row["devices"])
        if not row["installed"]:
            devices = f"not installed: {install_line(row['name'])}"
        listing.add(row["name"], row["version"] or "", devices, style="red" if row["error"] else "")
    yield listing


def run_inspect(
    path: Path = typer.Argument(..., metavar="FILE", help=f"A checkpoint, or a model: {MODEL_HELP}"),
    every: bool = ShowAll,
    quiet: bool = Quiet,
    as_json: bool = AsJson,
) -> None:
    """Show what a file holds.

    For a checkpoint: its plan, its variables with the bits and exponents of their integers, training values, kept
    tensors, sizes, and the digest that it states. No weights are rebuilt: smh digest and smh verify check the digest.
    For a model of plain tensors: its tensors.
    """
    check_no_plan(path)
    result: dict[str, Any] = {"file": str(path)}
    if not is_safetensors(path) or not is_checkpoint(path):
        with open_dense(path) as file:
            tensors = [_entry(name, "plain", file.dtypes[name], file.shapes[name], file.sizes[name]) for name in file]
            kind, notes, size = file.kind, file.notes, sum(map(os.path.getsize, file.files))
        numbers = sum(entry["numbers"] for entry in tensors)
        result |= {"kind": "plain", "format": kind, "bytes": size, "tensors": tensors}
        line = f"{kind}: {counted(len(tensors), 'tensor')}, {numbers:,} numbers, {size:,} bytes"
        emit(result, as_json, [*entry_lines("tensor", tensors, every), *notes, line], quiet=quiet)
        return
    loaded = checkpoint.read(path)
    tensors = list(_tensors(loaded))
    kept_bytes = sum(x.nbytes for name, x in loaded.dense.items() if not name.startswith(CARRIED))
    groups = {kind: [entry for entry in tensors if entry["kind"] == kind] for kind in ("variable", *_TITLES)}
    result |= {
        "kind": "checkpoint",
        "bytes": path.stat().st_size,
        "dense_bytes": _FLOAT32 * loaded.plan.num_weights + kept_bytes,
        "digest": loaded.digest,
        "kept_digest": loaded.kept_digest,
        "weights": loaded.plan.num_weights,
        "variables": loaded.plan.num_variables,
        "ratio": loaded.plan.ratio,
        "training": loaded.training,
        "packed": bool(loaded.coded),
        "plan": loaded.plan.to_dict(),
        "tensors": tensors,
    }
    share = result["bytes"] / result["dense_bytes"]
    shown: list[RenderableType] = [*generated_lines(loaded.plan, every), *variable_lines(groups["variable"], every)]
    for kind, title in _TITLES.items():
        shown += entry_lines(title, groups[kind], every)
    shown += [
        *plan_lines(loaded.plan),
        f"training values: {'stored' if loaded.training else 'not stored'}",
        *([f"packed: {counted(len(loaded.coded), 'array')} entropy-coded"] if loaded.coded else []),
        f"{result['bytes']:,} bytes, {share:.1%} of {result['dense_bytes']:,} for the plain tensors",
        f"digest {loaded.digest} (as stated, not rebuilt)",
        *([f"digest of kept tensors {loaded.kept_digest} (verified)"] if loaded.kept_digest else []),
    ]
    emit(result, as_json, shown, quiet=quiet)


def _tensors(loaded: Checkpoint) -> Iterator[dict[str, Any]]:
    """Iterate over the content of a checkpoint file: integers of the pool, float32 arrays, other tensors."""
    integers, exponents = pack(loaded.plan, loaded.variables)
    for name, bits, shape, _ in pool_arrays(loaded.plan):
        stored = integers[name]
        size = loaded.coded.get(name, stored.nbytes)
        entry = _entry(name, "variable", _CODES[stored.dtype.name], shape, size)
        exponent = exponents[name.removeprefix("pool/")]
        yield {**entry, "bits": bits, "exponent": exponent, "rms": _rms(loaded.variables[name])}
    for name, x in loaded.variables.items():
        if name not in integers:
            yield {**_entry(name, "variable", "F32", x.shape, x.nbytes), "rms": _rms(x)}
        elif loaded.training:
            yield _entry(f"training/{name}", "training", "F32", x.shape, x.nbytes)
    for name, x in loaded.dense.items():
        kind = "carried" if name.startswith(CARRIED) else "kept"
        entry = _entry(name, kind, _CODES[x.dtype.name], x.shape, x.nbytes)
        if one := loaded.rounded.get(name):
            size = loaded.kept_bytes(name)
            entry |= {"dtype": one.code, "bytes": size, "bits": one.bits, "exponent": one.exponent}
        yield entry


def _entry(name: str, kind: str, dtype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
    numbers = math.prod(shape)
    return {"name": name, "kind": kind, "dtype": dtype, "shape": list(shape), "numbers": numbers, "bytes": size}


def _rms(x: np.ndarray) -> float | None:
    """Return the root mean square of a variable, or None if not all of it is finite."""
    flat = x.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    total = sum(float(np.sum(np.square(block, dtype=np.float64))) for block in blocks)
    return math.sqrt(total / flat.size) if math.isfinite(total) else None
