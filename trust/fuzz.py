"""Fuzzing: hundreds of thousands of hostile inputs, and what came out of the readers.

Inputs are tried in a process of its own, whose memory is limited, with an alarm for each of them. What a reader must
not do is a defect: an exception that it does not document, a limit that is passed, a crash of the process. The input
is then made as small as it can be, and kept in ``trust/corpus``, where every test run tries it again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import platform
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from smh.files.packed import CODED
from trust import mutations
from trust.record import Findings
from trust.shrink import shrink

CORPUS = Path(__file__).parent / "corpus"
MOST_GROWTH = 64 << 20
"""Bytes that the process may hold more than before its first input; a result says how many it did."""
MOST_MEMORY = 512 << 20
"""Bytes of address space that it can take at all, beyond what it had before."""
MOST_SECONDS = 10
"""For one input, after which it is stopped."""
USUAL_SECONDS = 1
"""For one input, on a machine that does nothing else."""


class TooSlowError(Exception):
    """An input took longer than any may."""


@dataclass
class Found:
    """What a run of the fuzzer found.

    Attributes
    ----------
    inputs : int
        How many were tried.
    packed : int
        How many of them have tensors that say that they are packed.
    outcomes : dict of str to int
        How many came to which end, by reader and end.
    defects : dict of str to str
        Names of the inputs that were kept, and what happened.
    slowest : float
        Seconds of the slowest input.
    peak : int
        The most bytes that the process held.
    growth : int or None
        How many more that is than before the first input; None where that is not known.
    """

    inputs: int = 0
    packed: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    defects: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    peak: int = 0
    growth: int | None = None

    def count(self, target: str, outcome: str, seconds: float) -> bool:
        """Count one input, and say whether it is the first one of this end."""
        self.inputs += 1
        self.slowest = max(self.slowest, seconds)
        end = f"{target} {outcome}"
        self.outcomes[end] = self.outcomes.get(end, 0) + 1
        return self.outcomes[end] == 1


def attempt(target: str, content: bytes, seconds: float = MOST_SECONDS) -> str:
    """Return what a reader makes of an input: ``"accepted"``, ``"refused"``, or what it must not raise.

    Parameters
    ----------
    target : str
        A reader of :mod:`trust.targets`.
    content : bytes
        The input.
    seconds : float
        How long it may take; 0 for any time.
    """
    from trust.targets import TARGETS, DefectError

    try:
        with alarm(seconds):
            return TARGETS[target](content)
    except DefectError as error:
        return f"defect: {error}"
    except Exception as error:  # it is what a fuzzer looks for
        return f"{type(error).__name__}: {error}"


def is_fine(outcome: str) -> bool:
    """Say whether an outcome is one that a reader may have."""
    return outcome in ("accepted", "refused", "no text")


def run(inputs: int, seed: int, keep: Path | None = CORPUS) -> Found:
    """Try structured inputs in a process of its own.

    Parameters
    ----------
    inputs : int
        How many.
    seed : int
        Which ones.
    keep : Path, optional
        The folder for inputs that were not read as they should be; without one they are only counted.

    Returns
    -------
    Found
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    last = context.Value("q", -1, lock=False)
    process = context.Process(target=_work, args=(theirs, last, inputs, seed, keep))
    process.start()
    theirs.close()
    try:
        found: Found = ours.recv()
    except EOFError:
        process.join()
        found = Found(inputs=last.value + 1)
        _keep(found, keep, *mutations.make(seed, last.value), f"the process ended with code {process.exitcode}")
    process.join()
    return found


def _work(results: Connection, last: Any, inputs: int, seed: int, keep: Path | None) -> None:
    from trust import targets

    found = Found()
    for number in range(200):  # what is imported, and cached once, is no cost of an input
        attempt(*mutations.make(seed, number))
    before = peak()
    with limited(MOST_MEMORY):
        for number in range(inputs):
            last.value = number
            try_one(found, *mutations.make(seed, number), keep)
    found.peak, found.growth = peak(), peak() - before
    targets.clean()
    results.send(found)


def try_one(found: Found, target: str, content: bytes, keep: Path | None, seconds: float = MOST_SECONDS) -> None:
    """Try one input, and keep the first one of each kind that is not read as it should be.

    Parameters
    ----------
    found : Found
        What was found until now.
    target, content, seconds
        As for :func:`attempt`.
    keep : Path, optional
        As for :func:`run`.
    """
    begun = time.perf_counter()
    outcome = attempt(target, content, seconds)
    found.packed += CODED.encode() in content
    kind = outcome.partition(":")[0]
    if found.count(target, kind, time.perf_counter() - begun) and not is_fine(outcome):
        smaller = shrink(content, lambda other: attempt(target, other, seconds).partition(":")[0] == kind)
        _keep(found, keep, target, smaller, outcome)


def _keep(found: Found, keep: Path | None, target: str, content: bytes, why: str) -> None:
    name = f"{target}-{hashlib.sha256(content).hexdigest()[:12]}.bin"
    found.defects[name] = why[:300]
    if keep is not None:
        (keep / name).write_bytes(content)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlowError` in the block after some seconds; 0 for never."""

    def ring(*_: Any) -> None:
        raise TooSlowError(f"more than {seconds} seconds")

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited(more: int) -> Iterator[None]:
    """Let the process take so much more memory, and no more; only Linux says how much it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak() -> int:
    """Return the most bytes that this process has held."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def note(findings: Findings, found: Found) -> None:
    """Add what a run found to what is kept: every end is counted, every defect is a failure."""
    findings.count("inputs", found.inputs)
    findings.count("packed inputs", found.packed)
    for end, number in sorted(found.outcomes.items()):
        findings.count(end, number)
    findings.measure("seconds of the slowest input", round(found.slowest, 3), USUAL_SECONDS)
    findings.measure("bytes held at the peak", found.peak)
    if found.growth is not None:
        findings.measure("bytes held more than before the first input", found.growth, MOST_GROWTH)
    for name, why in found.defects.items():
        findings.expect(False, f"{name}: {why}")
