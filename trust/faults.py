"""Faults while a file is saved over an older one: at every moment there is the whole old file or the whole new one.

Savers are killed at random moments, interrupted, run out of room, may not write, and race. After each fault the file is
read, its digest computed anew, and all its contents compared with what the version of it is known to hold. What killed
savers leave beside the file must not add up.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable

from trust import mounts
from trust.record import Findings
from trust.savers import (
    KEPT,
    Save,
    TornError,
    again_and_again,
    forked,
    litter,
    plain_version_of,
    save_checkpoint,
    save_packed,
    save_plain,
    version_of,
)

Tell = Callable[[bytes], object]
ROUND = 6
"""How many killed savers there are for each of the other faults."""
KILLED, PLAIN = "killed while saving a checkpoint", "killed while writing a plain file"
PACKED = "killed while saving a packed checkpoint"
INTERRUPTED = "interrupted while saving a checkpoint"


def run(runs: int, seed: int) -> Findings:
    """Bring about all faults, and return what came of them."""
    findings = Findings("faults")
    rng = random.Random(seed)
    others = max(3, runs // ROUND)
    with tempfile.TemporaryDirectory(prefix="smh-faults-") as folder:
        os.chmod(folder, 0o755)  # for a saver that is another user
        for name, fault in {
            "killed": lambda place: kill(findings, place, runs, rng),
            "plain": lambda place: kill(findings, place, others, rng, PLAIN, save_plain, plain_version_of),
            "packed": lambda place: kill(findings, place, others, rng, PACKED, save_packed),
            "interrupted": lambda place: kill(findings, place, others, rng, INTERRUPTED, number=signal.SIGINT),
            "race": lambda place: race(findings, place, others, rng),
            "limit": lambda place: size_limit(findings, place, others, rng),
            "full": lambda place: full_disk(findings, place, others, rng),
            "denied": lambda place: denied(findings, place),
            "read only": lambda place: read_only(findings, place),
            "signals": lambda place: handled_signals(findings, place, others),
        }.items():
            place = os.path.join(folder, name)
            os.mkdir(place)
            fault(place)
    return findings


def kill(
    findings: Findings,
    folder: str,
    runs: int,
    rng: random.Random,
    what: str = KILLED,
    save: Save = save_checkpoint,
    look: Callable[[str], int] = version_of,
    number: int = signal.SIGKILL,
) -> None:
    """Send a signal to savers at random moments.

    The file must be the last version that a saver has told, or the one after it. What lies beside it must be no more
    than one saver leaves, however many have been killed, and be gone after the next save.
    """
    path = os.path.join(folder, "model")
    save(path, 0)
    started = time.monotonic()
    save(path, 1)
    duration = time.monotonic() - started
    version, most = 1, 0
    for outcome in ("", ": the old file is there", ": the new file is there", ": a part of a new file beside it"):
        findings.count(what + outcome, 0)
    for _ in range(runs):
        with forked(again_and_again(save, path, version + 1)) as child:
            first = os.read(child.pipe, 100)  # it is at work
            time.sleep(rng.uniform(0, 2 * duration))
            code = child.end(number)
            told = int((first + child.said()).split()[-1])
        findings.count(what)
        expected = 130 if number == signal.SIGINT else -number
        findings.expect(code == expected, f"{what}: exit code {code}, not {expected}")
        left = litter(folder, "model")
        most = max(most, len(left))
        findings.count(f"{what}: a part of a new file beside it", int(bool(left)))
        try:
            found = look(path)
        except TornError as error:
            findings.expect(False, f"{what}: {error}")
            save(path, version)
            continue
        findings.expect(found in (told, told + 1), f"{what}: version {found} after {told} had been saved")
        findings.count(f"{what}: the {'old' if found == told else 'new'} file is there")
        version = found
    findings.measure(f"{what}: most that is left at any time", most, 1)
    save(path, version + 1)
    findings.measure(f"{what}: left after one more save", len(litter(folder, "model")), 0)


def race(findings: Findings, folder: str, rounds: int, rng: random.Random) -> None:
    """Let savers race on one path, some of them killed: the file is one of theirs, and no other saver is disturbed."""
    path = os.path.join(folder, "model")
    save_checkpoint(path, 0)
    for turn in range(rounds):
        first = 1000 * (turn + 1)

        def saves(start: int) -> Callable[[Tell], None]:
            def work(tell: Tell) -> None:
                for version in range(start, start + 4):
                    save_checkpoint(path, version)

            return work

        with forked(saves(first)) as one, forked(saves(first + 100)) as two, forked(saves(first + 200)) as killed:
            time.sleep(rng.uniform(0, 0.05))
            killed.end(signal.SIGKILL)
            for child in (one, two):
                said = child.said().decode()
                findings.expect(child.end() == 0, f"a saver failed that raced with others: {said[-300:]}")
        findings.count("races of three savers, one of them killed")
        try:
            found = version_of(path)
        except TornError as error:
            findings.expect(False, f"race: {error}")
            continue
        last = {first + 3, first + 103} | {first + 200 + k for k in range(4)}
        findings.expect(found in last, f"race: version {found} is none of {sorted(last)}")
    save_checkpoint(path, 1)
    findings.measure(
        "races of three savers, one of them killed: left after one more save", len(litter(folder, "model")), 0
    )


def _refused(
    findings: Findings, what: str, folder: str, save: Callable[[Tell], object], look: Callable[[], int]
) -> None:
    """Let a saver fail: it says so with an OSError, and the old file is whole and alone."""
    with forked(save) as child:
        said = child.said().decode()
        code = child.end()
    findings.count(f"{what}: savers")
    findings.count(f"{what}: refused", int(said == "OSError"))
    findings.expect(code == 0 and said == "OSError", f"{what}: exit code {code}, and not one OSError: {said[-300:]!r}")
    try:
        found = look()
        findings.expect(found == 1, f"{what}: version {found} in the place of 1")
    except TornError as error:
        findings.expect(False, f"{what}: {error}")
    left = litter(folder, "model")
    findings.expect(not left, f"{what}: {left} is left")


def _fails(tell: Tell, path: str, version: int = 2) -> None:
    try:
        save_checkpoint(path, version)
    except OSError:
        tell(b"OSError")


def size_limit(findings: Findings, folder: str, runs: int, rng: random.Random) -> None:
    """Let the system refuse to make files larger than random limits."""
    path = os.path.join(folder, "model")
    save_checkpoint(path, 1)
    for _ in range(runs):
        limit = rng.randrange(4 * KEPT)

        def save(tell: Tell, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            _fails(tell, path)

        _refused(findings, "file size limit", folder, save, lambda: version_of(path))


def full_disk(findings: Findings, folder: str, runs: int, rng: random.Random) -> None:
    """Save on a disk that has room for the old file, and not for the new one."""
    size = 4 * KEPT

    def work(tell: Tell) -> None:
        mounts.private()
        inner = Findings("full disk")
        for turn in range(runs):
            place = os.path.join(folder, f"disk {turn}")
            os.mkdir(place)
            mounts.tmpfs(place, size + 200_000 + rng.randrange(size - 200_000))
            path = os.path.join(place, "model")
            save_checkpoint(path, 1)
            save, look = functools.partial(_fails, path=path), functools.partial(version_of, path)
            _refused(inner, "full disk", place, save, look)
            mounts.unmount(place)
        tell(str(inner.counts["full disk: refused"]).encode() if not inner.failures else inner.failures[0].encode())

    _in_own_mounts(findings, "full disk", work, runs)


def read_only(findings: Findings, folder: str) -> None:
    """Save on a disk that is read only."""

    def work(tell: Tell) -> None:
        mounts.private()
        mounts.tmpfs(folder, 8 * KEPT)
        path = os.path.join(folder, "model")
        save_checkpoint(path, 1)
        mounts.make_read_only(folder)
        inner = Findings("read-only disk")
        _refused(inner, "read-only disk", folder, lambda tell: _fails(tell, path), lambda: version_of(path))
        tell(b"1" if not inner.failures else inner.failures[0].encode())

    _in_own_mounts(findings, "read-only disk", work, 1)


def _in_own_mounts(findings: Findings, what: str, work: Callable[[Tell], None], runs: int) -> None:
    why = mounts.why_not()
    if why:
        findings.skipped[what] = why
        return
    with forked(work) as child:
        said = child.said().decode()
        code = child.end()
    findings.count(f"{what}: savers", runs)
    findings.count(f"{what}: refused", int(said) if said.isdigit() else 0)
    findings.expect(code == 0 and said == str(runs), f"{what}: exit code {code}: {said[-500:]}")


def denied(findings: Findings, folder: str) -> None:
    """Save in a folder in which a user may not write."""
    path = os.path.join(folder, "model")
    save_checkpoint(path, 1)
    os.chmod(path, 0o444)
    os.chmod(folder, 0o555)

    def save(tell: Tell) -> None:
        if os.geteuid() == 0:  # whom no permission stops
            os.setuid(65534)
        _fails(tell, path)

    _refused(findings, "permission denied", folder, save, lambda: version_of(path))
    os.chmod(folder, 0o755)


def handled_signals(findings: Findings, folder: str, runs: int) -> None:
    """Save while signals arrive every millisecond that the program handles and goes on."""
    path = os.path.join(folder, "model")

    def work(tell: Tell) -> None:
        arrived = []
        signal.signal(signal.SIGALRM, lambda *_: arrived.append(1))
        signal.siginterrupt(signal.SIGALRM, True)  # calls of the system return early
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for version in range(runs):
            save_checkpoint(path, version)
            if version_of(path) != version:
                raise TornError(f"version {version} was saved, and another one is there")
        signal.setitimer(signal.ITIMER_REAL, 0)
        tell(str(len(arrived)).encode())

    with forked(work) as child:
        said = child.said().decode()
        code = child.end()
    findings.count("saves while signals arrive", runs)
    findings.count("signals that arrived", int(said) if said.isdigit() else 0)
    findings.expect(code == 0 and said.isdigit() and int(said) > 0, f"signals: exit code {code}: {said[-500:]}")
    findings.expect(not litter(folder, "model"), f"signals: {litter(folder, 'model')} is left")
