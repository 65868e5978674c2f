"""Small disks of one's own, on Linux, where a process may have them: mounted in a namespace that ends with it."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _REMOUNT, _REC, _PRIVATE = 1, 32, 16384, 1 << 18


def why_not() -> str:
    """Return why a process cannot mount disks of its own here, or nothing; it is tried in a process that then ends."""
    if not sys.platform.startswith("linux"):
        return f"it needs the mounts of Linux, and this is {sys.platform}"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            private()
            tmpfs(tempfile.gettempdir(), 1 << 16)
            code = 0
        except OSError:
            pass
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return "this process may not mount disks" if os.waitstatus_to_exitcode(status) else ""


def private() -> None:
    """Give this process mounts that no other sees, as root or within a user namespace; raises ``OSError``."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEWNS if user == 0 else _NEWNS | _NEWUSER)
    if user != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _call("mount", b"none", b"/", None, _REC | _PRIVATE, None)


def tmpfs(folder: str, size: int) -> None:
    """Mount an empty disk of so many bytes; raises ``OSError``."""
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def make_read_only(folder: str) -> None:
    """Make a mounted disk read only; raises ``OSError``."""
    _call("mount", b"none", os.fsencode(folder), None, _REMOUNT | _RDONLY, None)


def unmount(folder: str) -> None:
    """Take a disk away; raises ``OSError``."""
    _call("umount", os.fsencode(folder))


def _call(name: str, *arguments: bytes | int | None) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in arguments]
    if getattr(library, name)(*given):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
