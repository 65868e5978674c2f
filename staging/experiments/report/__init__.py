"""The page of results and its plots, all of it from results."""

from experiments.report.page import write

__all__ = ["write"]
