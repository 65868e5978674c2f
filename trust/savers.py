"""Files in versions, and processes that save them: what the harness of faults disturbs.

Version ``k`` of a file has variables, kept tensors and a digest that no other version has, so a file can be told to be
whole, and which one it is. Processes are forks of this one, which has loaded everything: they start within
milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import smh
from smh.files.export import export

Save = Callable[[str, int], object]
"""Saves one version at a path."""

PATIENCE = 60
"""Seconds that a process may take to end."""
KEPT = 1 << 19
"""Elements of the tensor that is kept: two MiB, which take some milliseconds to write."""
PLAN = smh.Plan.build({"a": (300, 200), "b": (200, 10)}, ratio=0.2)


class TornError(Exception):
    """A file that is no whole version."""


def variables_of(version: int) -> dict[str, np.ndarray]:
    """Return the variables of a version: those of the pool are on their grid, scales tell all versions apart."""
    rng = np.random.default_rng(version)
    return {
        name: (rng.integers(-127, 128, shape) if name.startswith("pool/") else np.full(shape, version + 1)).astype("f4")
        for name, shape in PLAN.variable_shapes.items()
    }


def save_checkpoint(path: str, version: int) -> None:
    """Save a version as a checkpoint."""
    smh.save(path, PLAN, variables_of(version), {"kept": np.full(KEPT, version, np.int32)})


def save_packed(path: str, version: int) -> None:
    """Save a version as a packed checkpoint."""
    smh.save(path, PLAN, variables_of(version), {"kept": np.full(KEPT, version, np.int32)}, packed=True)


def save_plain(path: str, version: int) -> None:
    """Save a version as a plain file of weights."""
    export(path, smh.Checkpoint(PLAN, variables_of(version), {"kept": np.full(KEPT, version, np.int32)}, "0" * 64))


def version_of(path: str) -> int:
    """Return which version a checkpoint is, once everything in it has been looked at.

    Raises
    ------
    TornError
        If it is none, or a part of it is of another.
    """
    try:
        found = smh.load(path)
    except (smh.SmhError, OSError) as error:
        raise TornError(f"the file cannot be loaded: {error}") from error
    version = int(found.dense["kept"][0])
    whole = smh.digest(found.plan, found.variables) == found.digest and np.all(found.dense["kept"] == version)
    expected = variables_of(version)
    if not whole or any(np.any(x != expected[name]) for name, x in found.variables.items()):
        raise TornError(f"the file holds parts of several versions, one of them {version}")
    return version


def plain_version_of(path: str) -> int:
    """Return which version a plain file is; raises :class:`TornError` as :func:`version_of` does."""
    try:
        found = load_file(path)
    except Exception as error:  # of a kind that the format's own library chooses
        raise TornError(f"the file cannot be loaded: {error}") from error
    version = int(found["kept"][0])
    expected = smh.materialize(PLAN, variables_of(version))
    if np.any(found["kept"] != version) or any(found[name].tobytes() != w.tobytes() for name, w in expected.items()):
        raise TornError(f"the file holds parts of several versions, one of them {version}")
    return version


@dataclass
class Child:
    """A process that is at work, and a pipe from it.

    Attributes
    ----------
    pid : int
        Its number.
    pipe : int
        What it writes to its standard output and says can be read here.
    """

    pid: int
    pipe: int

    def said(self) -> bytes:
        """Return all that the process says until it ends."""
        with open(self.pipe, "rb", closefd=False) as file:
            return file.read()

    def end(self, number: int | None = None) -> int:
        """Send a signal if one is given, wait for the end, and return the exit code, negative for a signal.

        A process that has not ended after a minute is killed.
        """
        if number is not None:
            os.kill(self.pid, number)
        deadline = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.001)


@contextlib.contextmanager
def forked(work: Callable[[Callable[[bytes], object]], object]) -> Iterator[Child]:
    """Do work in a fork of this process, which exits with 0, with 130 if it is interrupted, or with 1 after an error.

    Parameters
    ----------
    work : callable
        Gets a function that sends bytes to the parent.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
            work(lambda data: os.write(writing, data))
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    child = Child(pid, reading)
    try:
        yield child
    finally:
        os.close(reading)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # where it has ended and was waited for
            os.kill(pid, 0)
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                child.end(signal.SIGKILL)


def again_and_again(save: Save, path: str, first: int) -> Callable[[Callable[[bytes], object]], None]:
    """Return work that saves one version after another, and tells which ones are done, a line each."""

    def work(tell: Callable[[bytes], object]) -> None:
        version = first
        while True:
            save(path, version)
            tell(b"%d\n" % version)
            version += 1

    return work


def litter(folder: str | Path, *names: str) -> list[str]:
    """Return what lies in a folder besides the files of those names."""
    return sorted(set(os.listdir(folder)) - set(names))
