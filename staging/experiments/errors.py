"""What can go wrong in an experiment, in words for people."""

from smh.v2.errors import SmhError


class ExperimentError(SmhError):
    """Data that is absent or broken, a configuration that makes no sense, or results that cannot be read."""


class CannotReachError(ExperimentError):
    """A method that has no model as small as was asked for.

    Parameters
    ----------
    least : int
        The fewest stored variables that it can have.
    budget : int
        How many were allowed.
    """

    def __init__(self, least: int, budget: int) -> None:
        super().__init__(f"the smallest model of this method stores {least:,} variables; the budget is {budget:,}")
        self.least = least
        self.budget = budget
