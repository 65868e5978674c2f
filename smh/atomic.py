"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from smh.errors import CheckpointError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the path of a temporary file, which takes the place of a file when the block ends without an error.

    At every moment there is the whole old file or the whole new one. The temporary file lies in the same folder, is
    private while it is written, and is removed if the block fails or is interrupted. A file that is replaced keeps its
    permissions, and a symbolic link keeps pointing to it.

    Parameters
    ----------
    path : str or os.PathLike
        Where to. Its folder must exist.

    Yields
    ------
    str
        The path of an empty file, to be filled within the block.

    Raises
    ------
    CheckpointError
        If the path is that of a device or the like.
    OSError
        If the system cannot write there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/greeting") as temporary:
    ...         _ = pathlib.Path(temporary).write_text("hello")
    ...     os.listdir(folder)
    ['greeting']
    """
    target = os.path.realpath(path)
    mode = os.stat(target).st_mode if os.path.exists(target) else None
    if mode is not None and not stat.S_ISREG(mode):  # a rename would put the file in the place of a device
        raise CheckpointError(f"only a file can be replaced: choose another path, got {target!r}")
    folder = os.path.dirname(target)
    if not os.path.exists(folder):  # the system would name the temporary file
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", folder)
    temporary = os.path.join(folder, f".smh-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as created:  # with the permissions of a new file; mkstemp gives 0600
            mode = os.fstat(created.fileno()).st_mode if mode is None else mode
        os.chmod(temporary, 0o600)  # while it is written: what it replaces may be private
        yield temporary
        with open(temporary, "r+b") as file:
            os.chmod(temporary, stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
    if os.name != "nt":  # there, folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
