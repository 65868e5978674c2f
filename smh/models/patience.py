"""Long calls during which ctrl-C is heard, and progress shown."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

_WAIT = 0.2  # seconds


def interruptible(fn: Callable[[], Any], waiting: Callable[[], None] | None = None) -> Any:
    """Return what a function returns that may run for minutes without looking at signals, as those of LAPACK do.

    It runs in a thread that does not outlive the process, so an interrupt ends the wait at once.

    Parameters
    ----------
    fn : callable
        The function, without arguments.
    waiting : callable, optional
        Called some times a second meanwhile.

    Examples
    --------
    >>> interruptible(lambda: divmod(7, 2))
    (3, 1)
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    context = contextvars.copy_context()  # NumPy's treatment of floating-point errors is part of it

    def run() -> None:
        try:
            results.put((context.run(fn), None))
        except BaseException as error:  # handed over, whatever it is
            results.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        try:
            value, error = results.get(timeout=_WAIT)
        except queue.Empty:
            if waiting is not None:
                waiting()
            continue
        thread.join()  # it holds the function, and with it perhaps large arrays
        if error is not None:
            raise error
        return value
