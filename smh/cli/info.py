"""``smh info``: versions, and the backends of this installation with their devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from smh._version import __version__
from smh.backends.registry import DEFAULT, GROUP, VARIABLE, get_backend, list_backends
from smh.cli.output import AsJson, emit, progress
from smh.core.versions import VERSION
from smh.text import printable

_PACKAGES = ("numpy", "array-api-compat", "einops", "safetensors", "ml_dtypes", "scipy", "keras")


def run_info(as_json: bool = AsJson) -> None:
    """Show versions, and which backends there are, on which devices.

    Every installed framework is imported for that, which takes some seconds. A framework that cannot be imported is
    reported in its line of the table.
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
    emit(result, as_json, _shown(result))


def _backend(name: str, installed: bool) -> dict[str, Any]:
    """Return what there is to know of a backend, importing its framework if that is installed."""
    row: dict[str, Any] = {"name": name, "installed": installed, "version": None, "devices": [], "error": None}
    if installed:
        try:
            row["devices"] = get_backend(name).devices()
        except Exception as error:  # frameworks fail in ways of their own: drivers, libraries, versions of one another
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


def _shown(result: dict[str, Any]) -> Iterator[RenderableType]:
    versions = {name: result[name] for name in ("smh", "specification", "python")} | result["packages"]
    for name, version in versions.items():
        yield f"{name:<17} {version or 'not installed'}"
    yield f"{'platform':<17} {result['platform']}"
    unknown = result["default"] not in [row["name"] for row in result["backends"]]
    note = f" (there is none of this name: change {VARIABLE})" if unknown else ""
    yield f"{'default backend':<17} {printable(result['default'])}{note}"
    yield ""
    table = Table("backend", "version", "devices", title="Backends")
    for row in result["backends"]:
        devices = row["error"] or ", ".join(row["devices"])
        if not row["installed"]:
            devices = f"not installed: pip install 'smh[{row['name']}]'"
        table.add_row(row["name"], row["version"] or "", printable(devices), style="red" if row["error"] else None)
    yield table
