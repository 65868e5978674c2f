"""Atomic replacement of files and folders, and removal of abandoned temporary files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from smh.errors import CheckpointError, ExportError

if sys.platform != "win32":
    import fcntl

replaced: Counter[str] = Counter()
"""How often this process has put a file in its place, as ``replaced["files"]``; counted just before."""
_PRIVATE = re.compile(r"\.smh-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the path of an empty temporary file, which replaces a file when the block ends without an error.

    At every moment the path has the complete old file or the complete new file. The new file keeps the permissions and
    symbolic links of the old one. Raises :class:`~smh.CheckpointError` if the path is not a regular file, such as a
    device.

    The temporary file is in a private folder next to the file. The folder and its content are removed when the block
    ends, fails or is interrupted. The folder is locked, so several processes can write at the same time. A killed
    process loses its lock, and the next call for a file in the same folder removes the private folder, unless it
    belongs to another user or locks are missing (Windows, some network disks).
    """
    target = os.path.realpath(path)
    mode = os.stat(target).st_mode if os.path.exists(target) else None
    if mode is not None and not stat.S_ISREG(mode):  # a rename would replace a device by the file
        raise CheckpointError(f"only a file can be replaced: choose another path, got {target!r}")
    folder = os.path.dirname(target)
    if not os.path.exists(folder):  # the error of the system would name the temporary folder
        raise FileNotFoundError(errno.ENOENT, "No such folder", folder)
    _remove_abandoned(folder)  # before anything is written, to free space on a full disk
    with _private_folder(folder) as private:
        temporary = os.path.join(private, "file")
        with open(temporary, "xb") as created:  # with the permissions of a new file
            mode = os.fstat(created.fileno()).st_mode if mode is None else mode
        os.chmod(temporary, 0o600)  # while it is written, because the old file may be private
        yield temporary
        with open(temporary, "r+b") as file:
            os.chmod(temporary, stat.S_IMODE(mode))
            os.fsync(file.fileno())
        replaced["files"] += 1
        os.replace(temporary, target)
    if os.name != "nt":  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], replaceable: Callable[[Path], bool]) -> Iterator[str]:
    """Yield the path for a new folder, which takes its place when the block ends without an error.

    An old folder is replaced only if it is empty or ``replaceable``, otherwise :class:`~smh.ExportError` is raised. It
    is moved aside before the new folder is moved: between these two steps the path has none.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not (target.is_dir() and (replaceable(target) or not any(target.iterdir()))):
        raise ExportError(f"only a folder of the same format can be replaced: choose another path, got {str(target)!r}")
    if not target.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(target.parent))
    _remove_abandoned(str(target.parent))
    with _private_folder(str(target.parent)) as private:
        yield os.path.join(private, "new")
        if target.exists():
            os.rename(target, os.path.join(private, "old"))
        os.rename(os.path.join(private, "new"), target)


@contextlib.contextmanager
def _private_folder(folder: str) -> Iterator[str]:
    """Make a locked folder in a folder, and remove it with its content when the block ends."""
    private, lock = "", None
    try:
        while lock is None:
            private = os.path.join(folder, f".smh-{os.urandom(8).hex()}.tmp")
            try:
                os.mkdir(private, 0o700)
            except OSError as error:  # the error names the private folder, unknown to users
                raise OSError(error.errno, f"cannot write a file there: {error.strerror}", folder) from None
            lock = _lock(private, wait=True)  # None if another process removed it as abandoned between these two lines
        yield private
    finally:
        if private:
            _remove(private, lock)


def _remove_abandoned(folder: str) -> None:
    """Remove the private folders of killed processes from a folder."""
    for name in filter(_PRIVATE.fullmatch, os.listdir(folder)):
        private = os.path.join(folder, name)
        lock = _lock(private, wait=False)
        if lock is not None:
            _remove(private, lock)


def _lock(private: str, wait: bool) -> int | None:
    """Lock a private folder, for its maker (waiting) or to remove it. Return an open file, or None without the lock.

    The lock ends with the process. Without locks on the system, the maker needs none, because nobody else can lock.
    """
    if sys.platform == "win32":
        return -1 if wait else None
    path = os.path.join(private, "lock")
    try:
        status = os.lstat(private)
        own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()  # nobody else can replace it
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
    os.close(descriptor)  # the previous holder of the lock has removed the folder
    return None


def _remove(private: str, lock: int | None) -> None:
    """Remove a private folder and release its lock. What cannot be removed now is left to the next call."""
    shutil.rmtree(private, ignore_errors=True)
    if lock is not None and lock >= 0:
        os.close(lock)
        with contextlib.suppress(OSError):  # network disks keep an open file in its folder until here
            os.rmdir(private)
