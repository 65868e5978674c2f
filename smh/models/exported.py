"""What exports have in common, once for all frameworks."""

from __future__ import annotations

from typing import NamedTuple

from smh.errors import ExportError

WEIGHT = "weight:"
"""The prefix of the names of weights among the outputs of an exported model."""
MOST = 1.1
"""The most bytes of tensors in an exported file, per byte of integers and kept tensors."""


class Exported(NamedTuple):
    """The sizes of an exported file, in bytes."""

    file: int
    """Of the whole file."""
    integers: int
    """Of the integers of the pool."""
    kept: int
    """Of the kept tensors and the scales."""
    held: int
    """Of all tensors in the file."""

    @property
    def graph(self) -> int:
        """Of the file without tensors: the graph, or compiled code."""
        return self.file - self.held

    def check(self) -> Exported:
        """Return the sizes, or raise :class:`~smh.ExportError` if the file would hold much more than the model."""
        if self.held > MOST * (self.integers + self.kept) + 4096:
            raise ExportError(
                f"the export would hold {self.held:,} bytes of tensors instead of {self.integers + self.kept:,}, and "
                "nothing was written: a tool folded weights into it, or the model uses a tensor that is neither a "
                "parameter nor a buffer. Leave out what optimizes the graph, and register such tensors"
            )
        return self
