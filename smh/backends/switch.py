"""Settings of a process that are on unless a block turns them off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Switch:
    """A setting of all threads.

    Parameters
    ----------
    on : bool
        Its value outside of blocks.

    Examples
    --------
    >>> switch = Switch()
    >>> with switch.off():
    ...     switch.on
    False
    >>> switch.on
    True
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn it off within the block."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before
