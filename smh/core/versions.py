"""The version of plans and files: what this smh reads, and what it says of newer ones (specification, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smh.errors import SmhError

VERSION = "2.0"
"""What is written. A reader takes every minor number of the same major one, and refuses keys that it does not know."""

_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
_MAJOR, _MINOR = map(int, VERSION.split("."))


def is_readable(version: Any) -> bool:
    """Say whether this smh reads a version.

    >>> [is_readable(version) for version in ("2.0", "2.7", "3.0", "2", 2.0)]
    [True, True, False, False, False]
    """
    form = _FORM.fullmatch(version) if isinstance(version, str) else None
    return form is not None and int(form[1]) == _MAJOR


@contextmanager
def explained(version: str) -> Iterator[None]:
    """Add to an error within the block that a newer smh wrote what is read, if its readable version says so."""
    try:
        yield
    except SmhError as error:
        if int(version.split(".")[1]) <= _MINOR:
            raise
        what = f"this is of version {version}, newer than {VERSION}, which this smh reads: upgrade smh"
        raise type(error)(f"{error} ({what})") from error
