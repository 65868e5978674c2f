"""The page on training for small files, from the results of :mod:`experiments.mnist_rate`."""

from __future__ import annotations

from experiments.results import Line


def page(lines: list[Line]) -> str:
    """Return the page, in Markdown."""
    raise NotImplementedError
