"""Sizes of a model by ratio, before anything is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from smh.core.checks import members
from smh.errors import PlanError
from smh.models.compression import ModelTensor, plan_for
from smh.tables import Table, data_frame, paragraph

if TYPE_CHECKING:
    import rich.table

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class SweepLine:
    """The sizes at a ratio.

    Attributes
    ----------
    ratio : float
        The requested ratio.
    num_variables : int or None
        Variables of the plan, those of scales included; None if the ratio is refused.
    bytes : int or None
        Of all tensors of the model in a file, kept ones included.
    share : float or None
        These bytes per byte of the dense model.
    why : str
        Why the ratio is refused, or empty.
    """

    ratio: float
    num_variables: int | None
    bytes: int | None
    share: float | None
    why: str = ""


@dataclass(frozen=True)
class Sweep:
    """Sizes of a model at several ratios; ``print`` and rich give a table.

    Attributes
    ----------
    lines : tuple of SweepLine
        One for each ratio, in the order in which they were given.
    num_weights, num_kept : int
        Generated elements, and elements that are kept.
    dense_bytes : int
        Of all tensors of the dense model in a file.
    """

    lines: tuple[SweepLine, ...]
    num_weights: int
    num_kept: int
    dense_bytes: int

    def __str__(self) -> str:
        """Return a sentence, a table, and why ratios are refused."""
        return "\n\n".join(filter(None, (self._sentence(), str(self._table()), self._refused())))

    def __rich__(self) -> rich.table.Table:
        """Return the table, and the text below it."""
        return self._table().rich("\n".join(filter(None, (self._sentence(), self._refused()))))

    def _repr_html_(self) -> str:
        return paragraph(self._sentence()) + self._table()._repr_html_() + paragraph(self._refused())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {**dataclasses.asdict(self), "lines": [dataclasses.asdict(line) for line in self.lines]}

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row per ratio; raises :class:`~smh.SmhError` without pandas."""
        return data_frame(self.to_dict()["lines"])

    def _sentence(self) -> str:
        return (
            f"{self.num_weights:,} weights are generated, {self.num_kept:,} numbers are kept; the dense model takes "
            f"{self.dense_bytes:,} bytes in a file."
        )

    def _table(self) -> Table:
        columns = ("ratio", "variables", "bytes in a file", "of dense")
        rows = [
            (f"{line.ratio:.4g}", f"{line.num_variables:,}", f"{line.bytes:,}", f"{line.share:.1%}")
            for line in self.lines
            if not line.why
        ]
        return Table(columns, rows, right=columns)

    def _refused(self) -> str:
        lines = [f"{line.ratio}: {line.why}" for line in self.lines if line.why]
        return "\n  ".join(["Refused ratios:", *lines]) if lines else ""


def make_sweep(tensors: Sequence[ModelTensor], ratios: Iterable[float | Fraction], **options: Any) -> Sweep:
    """Return the sizes of a model with these tensors; raises the error of the first ratio if all are refused."""
    asked = members(ratios)
    if not asked:
        raise PlanError(f"ratios must be a list of numbers above 0, such as [0.05, 0.1]; got {ratios!r}")
    dense, numbers = sum(tensor.nbytes for tensor in tensors), sum(math.prod(tensor.shape) for tensor in tensors)
    sizes = {tensor.name: tensor.nbytes for tensor in tensors}
    lines, problem, plan = [], None, None
    for ratio in asked:
        try:
            plan = plan_for(tensors, ratio=ratio, **options)
        except PlanError as error:
            problem = problem or error
            lines.append(SweepLine(ratio, None, None, None, str(error)))
        else:
            size = plan.file_bytes + dense - sum(sizes[tensor.name] for tensor in plan.tensors)
            lines.append(SweepLine(float(ratio), plan.num_variables, size, size / dense))
    if plan is None:
        raise problem or PlanError("no ratio was given")
    return Sweep(tuple(lines), plan.num_weights, numbers - plan.num_weights, dense)
