"""The exceptions that smh raises on purpose.

Every one of them derives from :class:`SmhError`, so ``except smh.SmhError`` catches all that the library can tell
about its input. Messages name the mistake, the received value and a remedy.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

from smh.text import shortened

MAX_MESSAGE = 4000
"""The most characters of a message, whatever a file put into the names and values that it shows."""
_EXTRAS = {"tensorflow": "keras"}  # where an extra has another name than its backend
_COMPARED = 120, 10_000  # the longest name, and the most known names, that a mistaken one is compared with


class SmhError(Exception):
    """Base class of all errors of smh. What a message shows of a very long text is its beginning and its end."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message), MAX_MESSAGE))


class PlanError(SmhError, ValueError):
    """A plan that cannot be made or read: sizes, rules, ratio, or its JSON."""


class VariableError(SmhError, ValueError):
    """An array that does not fit its plan: name, dtype or shape."""


class CheckpointError(SmhError):
    """A file that is not a whole, honest checkpoint of a known version."""


class BackendError(SmhError):
    """A backend that is unknown, not installed, or does not support the request."""


class PortError(SmhError, ValueError):
    """A mapping between models that does not fit them, or cannot be made."""


class ExportError(SmhError, ValueError):
    """Weights that cannot be written as a plain file: names that clash, or a disk without room."""


class LimitError(SmhError, ValueError):
    """What a file asks to be built is larger than the limit; the message says how to raise it."""


class ConformanceError(SmhError):
    """The conformance suite cannot run here."""


class UnknownNameError(SmhError, KeyError):
    """A name that the plan does not hold."""

    def __str__(self) -> str:
        """Return the message as it is (``KeyError`` would quote it)."""
        return str(self.args[0]) if self.args else ""


def install_line(extra: str) -> str:
    """Return the command that installs smh with an extra, or with what a built-in backend needs.

    Examples
    --------
    >>> install_line("torch")
    'pip install "structured-multi-hashing[torch]"'
    """
    return f'pip install "structured-multi-hashing[{_EXTRAS.get(extra, extra)}]"'


def needs(package: str, extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error for a framework that is not installed, or the given one if another module is missing."""
    if error.name != package:
        return error
    return ModuleNotFoundError(f"{package} is not installed: {install_line(extra)}", name=package)


def near_names(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Describe the names nearest to a mistaken one, at most ``limit`` of those there are, to end an error message.

    Examples
    --------
    >>> near_names("fc.wieght", ["fc.weight", "conv.weight"])
    "did you mean 'fc.weight' or 'conv.weight'?"
    >>> near_names("x", ["fc.weight", "conv.weight"])
    "known names: 'fc.weight', 'conv.weight'"
    """
    names = list(known)
    longest, most = _COMPARED  # the time to compare two texts grows with the product of their lengths
    candidates = [other for other in itertools.islice(names, most) if len(other) <= longest]
    close = difflib.get_close_matches(name, candidates, n=limit, cutoff=0.5) if len(name) <= longest else []
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return "there are no names to choose from"
    shown = ", ".join(repr(shortened(other, longest)) for other in names[:limit])
    return f"known names: {shown}{', ...' if len(names) > limit else ''}"
