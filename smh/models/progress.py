"""The progress of long work, on one line of stderr."""

from __future__ import annotations

import sys
import time
from typing import Self

from smh.core.checks import check_flag

_PATIENCE = 2.0  # seconds of work that need no progress
_PAUSE = 0.1  # seconds between two looks of the line
_WIDTH = 79


class Progress:
    """A line on stderr with the present task and its progress, erased at the end.

    Parameters
    ----------
    shown : bool or None
        None: only on a terminal, and only for work of more than two seconds. True: at once, and where stderr is no
        terminal a line for every new step.
    """

    def __init__(self, shown: bool | None) -> None:
        check_flag("progress", shown, optional=True)
        self._live = sys.stderr.isatty()
        self._shown = self._live if shown is None else shown
        self._next = time.monotonic() + (_PATIENCE if shown is None else 0.0)
        self._step = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._step and self._live:
            self._write(f"\r{'':{_WIDTH}}\r")

    def tick(self, what: str, share: float) -> None:
        """Show the present task and its progress from 0 to 1."""
        if not self._shown:
            return
        if not self._live:
            if what != self._step:
                self._write(f"{what}\n")
        elif (now := time.monotonic()) < self._next:
            return
        else:
            self._next = now + _PAUSE
            self._write(f"\r{f'{what}: {share:.0%}':{_WIDTH}.{_WIDTH}}")
        self._step = what

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
