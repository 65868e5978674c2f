"""Errors of experiments."""

from smh.errors import SmhError


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
