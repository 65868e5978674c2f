"""The state of a run in progress, in a file, so that an interrupted run continues after its last epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]


class Saved:
    """The states of the trainings of one run. Method ``fit`` has two trainings, other methods one.

    Parameters
    ----------
    path : Path, optional
        The file; without it, nothing is saved.

    Attributes
    ----------
    states : list of dict
        The states of all trainings that have begun.
    seconds : float
        The processor time of training before the interruption.
    interruptions : int
        How often the run was interrupted.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.states: list[State] = []
        self.seconds = 0.0
        self.interruptions = 0
        if path is not None and path.exists():
            saved = torch.load(path, weights_only=True)
            self.states, self.seconds = saved["states"], saved["seconds"]
            self.interruptions = saved["interruptions"] + 1

    def get(self, number: int) -> State | None:
        """Return the state of a training, counted from 0, or None."""
        return self.states[number] if number < len(self.states) else None

    def put(self, number: int, state: State) -> None:
        """Remember the state of a training in memory."""
        self.states[number:] = [state]

    def write(self, seconds: float) -> None:
        """Write all states and the processor time so far. The file is complete at any time.

        Two processes may train one teacher, so each uses a separate temporary file.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        content = {"states": self.states, "seconds": seconds, "interruptions": self.interruptions}
        torch.save(content, temporary)
        os.replace(temporary, self.path)

    def remove(self) -> None:
        """Remove the file of a run that has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
