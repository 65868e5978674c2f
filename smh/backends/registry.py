"""Backends by name: built-in backends and entry points of other packages."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

from smh.backends.protocol import Backend
from smh.errors import BackendError, install_line, near_names

if TYPE_CHECKING:  # a fifth of the import time of the library
    from importlib.metadata import EntryPoint

GROUP = "smh.backends"
VARIABLE = "SMH_BACKEND"
DEFAULT = "numpy"

# By the names of the packages they need.
_BUILT_IN = {name: f"smh.backends.{name}:backend" for name in ("numpy", "torch", "jax", "tensorflow")}
_loaded: dict[str, Backend] = {}


def list_backends(installed: bool = False) -> list[str]:
    """Return the names of the registered backends, without importing a framework.

    Parameters
    ----------
    installed : bool
        Omit built-in backends whose frameworks, and entry points whose packages are not installed.

    Returns
    -------
    list of str
        Built-in backends first, then entry points of other packages (group ``smh.backends``).

    Examples
    --------
    >>> "numpy" in list_backends()
    True
    """
    entries = _entries()
    return [name for name in entries if not installed or _is_there(name if name in _BUILT_IN else entries[name].value)]


def get_backend(name: str | None = None) -> Backend:
    """Return a :class:`~smh.backends.protocol.Backend`, importing only its framework.

    Parameters
    ----------
    name : str, optional
        A name of :func:`list_backends`; by default the environment variable ``SMH_BACKEND``, or ``"numpy"``.

    Raises
    ------
    BackendError
        If the backend is unknown or its framework is not installed.

    Examples
    --------
    >>> get_backend("numpy").name
    'numpy'
    """
    source = ""
    if name is None:
        name, source = os.environ.get(VARIABLE) or DEFAULT, f" (from the environment variable {VARIABLE})"
    if not isinstance(name, str) or name not in _loaded:
        entries = _entries()
        if not isinstance(name, str) or name not in entries:
            raise BackendError(f"there is no backend {name!r}{source}: {near_names(str(name), entries)}")
        _loaded[name] = _load(entries[name])
    return _loaded[name]


def _entries() -> dict[str, EntryPoint]:
    from importlib.metadata import EntryPoint, entry_points

    entries = {name: EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()}
    for entry in entry_points(group=GROUP):
        entries.setdefault(entry.name, entry)
    return entries


def _is_there(reference: str) -> bool:
    """Return whether the package of a module or object is installed, without importing it."""
    package = re.split("[.:]", reference)[0].strip()
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is loaded without a specification, as __main__ may be; or the name is empty
        return package in sys.modules


def _load(entry: EntryPoint) -> Backend:
    try:
        backend = entry.load()
    except ImportError as error:
        advice = install_line(entry.name) if entry.name in _BUILT_IN else f"install what {entry.value} needs"
        raise BackendError(f"backend {entry.name!r} cannot be imported ({error}): {advice}") from error
    if not isinstance(backend, Backend):
        raise BackendError(f"{entry.value} must be a smh.backends.protocol.Backend; got {type(backend).__name__}")
    return backend
