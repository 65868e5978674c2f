"""Errors of experiments, and how command lines show them."""

import sys
from collections.abc import Callable

from smh.errors import SmhError


def run_app(app: Callable[[], object]) -> None:
    """Run a command line. Errors of the project print one line without a traceback."""
    try:
        app()
    except SmhError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class ExperimentError(SmhError):
    """Missing or broken data, an invalid configuration, or unreadable results."""


class CannotReachError(ExperimentError):
    """A method without a model within the budget.

    Parameters
    ----------
    least : int
        The smallest number of stored variables that the method can reach.
    budget : int
        The number of stored variables allowed.
    """

    def __init__(self, least: int, budget: int) -> None:
        super().__init__(f"the smallest model of this method stores {least:,} variables; the budget is {budget:,}")
        self.least = least
        self.budget = budget
