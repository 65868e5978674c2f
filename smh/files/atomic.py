"""Files that appear whole or not at all, and what is left of those that did not."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator

from smh.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

_PRIVATE = re.compile(r"\.smh-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the path of an empty temporary file, which replaces a file when the block ends without an error.

    At every moment there is the whole old file or the whole new one, which keeps the permissions of the old one and the
    symbolic links to it. Raises :class:`~smh.CheckpointError` if the path is that of a device or the like.

    The temporary file lies in a private folder beside the file, which is removed with all that it holds when the block
    ends, fails or is interrupted. The folder is locked, so many processes can write side by side. A killed process
    loses its lock, and the next call for a file in the same place removes its folder, unless it belongs to another
    user, or there are no locks (Windows, some network disks).
    """
    target = os.path.realpath(path)
    mode = os.stat(target).st_mode if os.path.exists(target) else None
    if mode is not None and not stat.S_ISREG(mode):  # a rename would put the file in the place of a device
        raise CheckpointError(f"only a file can be replaced: choose another path, got {target!r}")
    folder = os.path.dirname(target)
    if not os.path.exists(folder):  # the system would name the temporary folder
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", folder)
    _remove_abandoned(folder)  # before anything is written, so that a full disk gets its room back
    with _private_folder(folder) as private:
        temporary = os.path.join(private, "file")
        with open(temporary, "xb") as created:  # with the permissions of a new file
            mode = os.fstat(created.fileno()).st_mode if mode is None else mode
        os.chmod(temporary, 0o600)  # while it is written: what it replaces may be private
        yield temporary
        with open(temporary, "r+b") as file:
            os.chmod(temporary, stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(temporary, target)
    if os.name != "nt":  # there, folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _private_folder(folder: str) -> Iterator[str]:
    """Make a locked folder within another one, and remove it when the block ends, with all that it holds."""
    private, lock = "", None
    try:
        while lock is None:
            private = os.path.join(folder, f".smh-{os.urandom(8).hex()}.tmp")
            try:
                os.mkdir(private, 0o700)
            except OSError as error:  # which names a folder that nobody knows
                raise OSError(error.errno, f"no file can be written there: {error.strerror}", folder) from None
            lock = _lock(private, wait=True)  # None if it was taken for abandoned: between these two lines it looks so
        yield private
    finally:
        if private:
            _remove(private, lock)


def _remove_abandoned(folder: str) -> None:
    """Remove the private folders within a folder whose owners have been killed."""
    for name in filter(_PRIVATE.fullmatch, os.listdir(folder)):
        private = os.path.join(folder, name)
        lock = _lock(private, wait=False)
        if lock is not None:
            _remove(private, lock)


def _lock(private: str, wait: bool) -> int | None:
    """Lock a private folder, for its maker (who waits) or to remove it; return an open file, or None if that cannot be.

    The lock ends with the process. Where there are no locks, the maker needs none, because nobody else gets one.
    """
    if sys.platform == "win32":
        return -1 if wait else None
    path = os.path.join(private, "lock")
    try:
        status = os.lstat(private)
        own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()  # nobody else can exchange it
        if not wait and not own:
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if wait and not isinstance(error, FileNotFoundError):
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            return descriptor
        os.close(descriptor)
        return None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    os.close(descriptor)  # who held the lock before has removed the folder
    return None


def _remove(private: str, lock: int | None) -> None:
    """Remove a private folder and give its lock back; what cannot be removed now is abandoned, for the next call."""
    shutil.rmtree(private, ignore_errors=True)
    if lock is not None and lock >= 0:
        os.close(lock)
        with contextlib.suppress(OSError):  # network disks keep an open file in its folder until now
            os.rmdir(private)
