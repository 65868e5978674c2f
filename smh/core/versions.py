"""The version of plans and files, and errors about newer versions (specification, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smh.errors import SmhError

VERSION = "2.0"
"""The version that is written. A reader accepts every minor number of its major number, and rejects unknown keys."""

NEWEST = "2.1"
"""The newest version with additions that are read, and written where they are used: packed and rounded tensors."""

_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
_MAJOR, _MINOR = map(int, NEWEST.split("."))


def is_readable(version: Any) -> bool:
    """Return whether this smh reads a version.

    >>> [is_readable(version) for version in ("2.0", "2.7", "3.0", "2", 2.0)]
    [True, True, False, False, False]
    """
    form = _FORM.fullmatch(version) if isinstance(version, str) else None
    return form is not None and int(form[1]) == _MAJOR


@contextmanager
def explained(version: str) -> Iterator[None]:
    """Extend errors within the block if a newer smh wrote the content, according to its version."""
    try:
        yield
    except SmhError as error:
        if int(version.split(".")[1]) <= _MINOR:
            raise
        what = f"this is of version {version}, newer than {NEWEST}, which this smh reads: upgrade smh"
        raise type(error)(f"{error} ({what})") from error
