"""A long training: memory stays flat, residencies do not drift apart, a stopped training goes on as it was.

A small model is trained by SGD with momentum, on one thread. Each residency has its own training; at
marks on the way, all that the model stores and the digest of its weights are compared. In the middle the model is saved
by ``smh.save`` with the values of training, and the optimiser by ``torch.save``; another process reads both and trains
to the end.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from smh.backends import torch as smh
from smh.models.compression import RESIDENCIES
from trust.record import ROOT, Findings

MOST_MARKS = 20
"""How often the trainings are compared at most; short ones are every 20 steps."""
MEMORY = 8.0
"""How many MiB the process may have grown by between the first mark and the last, for each training."""
BATCH, FEATURES, CLASSES = 32, 64, 10
RATE = 0.1


def fresh(residency: str = "full") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the compressed model and its optimiser, as every training begins."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(FEATURES, 96),
        nn.BatchNorm1d(96),
        nn.ReLU(),
        nn.Linear(96, 48),
        nn.ReLU(),
        nn.Linear(48, CLASSES),
    ]
    model = smh.compress(nn.Sequential(*layers), ratio=0.2, residency=residency)
    return model, torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of a step; the labels follow from the inputs, with some noise."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, FEATURES, generator=generator)
    scores = x[:, :CLASSES] + x[:, CLASSES : 2 * CLASSES] * x[:, 2 * CLASSES : 3 * CLASSES]
    return x, (scores + 0.1 * torch.randn(BATCH, CLASSES, generator=generator)).argmax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> float:
    """Do steps of training, look at the model without gradients in between, and return the mean loss of all steps."""
    total = 0.0
    for step in range(start, stop):
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step % 10 == 9:  # what is cached is built now, and out of date at the next step
            model.eval()
            with torch.no_grad():
                model(x), model(x)
            model.train()
    return total / (stop - start)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return the SHA-256 of all that the model and its optimiser hold, and of the generated weights."""
    sha = hashlib.sha256(smh.digest(model).encode())
    momenta = (values["momentum_buffer"] for values in optimizer.state_dict()["state"].values())
    for x in (*model.state_dict().values(), *momenta):
        sha.update(x.numpy().tobytes())
    return sha.hexdigest()


def run(steps: int) -> Findings:
    """Train with every residency, and go on from the middle in another process."""
    findings = Findings("soak")
    torch.set_num_threads(1)
    marks = marks_of(steps)
    middle = marks[len(marks) // 2 - 1]
    states: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="smh-soak-") as folder:
        for residency in RESIDENCIES:
            started = time.monotonic()
            states[residency] = list(_training(findings, residency, marks, middle, Path(folder)))
            findings.measure(f"{residency}: steps per second", round(steps / (time.monotonic() - started), 1))
            findings.count("steps", steps)
        for residency in RESIDENCIES[1:]:
            for mark, one, other in zip(marks, states[RESIDENCIES[0]], states[residency], strict=True):
                findings.count("states compared between residencies")
                findings.expect(one == other, f"after {mark} steps, residency {residency!r} has other bits")
        resumed = _elsewhere(Path(folder), middle, steps)
        findings.count("steps after going on", steps - middle)
        findings.expect(resumed == states["full"][-1], f"gone on from step {middle}, the end has other bits")
        findings.count("trainings gone on with", 1)
    findings.expect(len(set(states["full"])) == len(marks), "the training stands still")
    return findings


def marks_of(steps: int) -> list[int]:
    """Return after how many steps trainings are compared."""
    number = max(2, min(MOST_MARKS, steps // 20))
    return [steps * k // number for k in range(1, number + 1)]


def _training(findings: Findings, residency: str, marks: list[int], middle: int, folder: Path) -> Iterator[str]:
    """Train up to each mark, and iterate over the states there; the model is saved at all of them."""
    model, optimizer = fresh(residency)
    losses, before = [], (0.0, 0, 0)
    for start, stop in zip([0, *marks], marks, strict=False):
        losses.append(train(model, optimizer, start, stop))
        digest = smh.save(folder / f"{residency}.safetensors", model)
        findings.count("checkpoints saved")
        findings.expect(digest == smh.digest(model), f"{residency}: another digest was saved")
        if stop == middle and residency == "full":
            smh.save(folder / "middle.safetensors", model, training=True)
            torch.save(optimizer.state_dict(), folder / "middle.pt")
        yield state(model, optimizer)
        if stop == marks[0]:
            before = _used()
    memory, objects, files = (now - then for now, then in zip(_used(), before, strict=True))
    findings.measure(f"{residency}: MiB grown by", round(memory, 3), MEMORY)
    findings.measure(f"{residency}: Python objects grown by", objects, 200)
    findings.measure(f"{residency}: open files grown by", files, 0)
    findings.measure(f"{residency}: mean loss at first", round(losses[0], 4))
    findings.measure(f"{residency}: mean loss in the end", round(losses[-1], 4), losses[0])


def _used() -> tuple[float, int, int]:
    """Return MiB of memory that this process has, its Python objects, and its open files."""
    gc.collect()
    status = Path("/proc/self/statm")
    if status.exists():
        memory = int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
        return memory, len(gc.get_objects()), len(os.listdir("/proc/self/fd"))
    unit = 2**20 if sys.platform == "darwin" else 2**10  # where the peak is known, not the present use
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, len(gc.get_objects()), 0


def _elsewhere(folder: Path, start: int, stop: int) -> str:
    """Go on in another process, and return the state at the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "trust.soak", str(folder), str(start), str(stop)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


def go_on(folder: Path, start: int, stop: int) -> str:
    """Read model and optimiser, train, and return the state at the end."""
    torch.set_num_threads(1)
    model, optimizer = fresh()
    with torch.no_grad():
        for x in model.parameters():
            x.fill_(0.5)  # so that all values come from the file
    smh.load(folder / "middle.safetensors", model)
    optimizer.load_state_dict(torch.load(folder / "middle.pt", weights_only=True))
    train(model, optimizer, start, stop)
    return state(model, optimizer)


if __name__ == "__main__":
    print(go_on(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
