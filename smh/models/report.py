"""What compression did to a model: its size before and after, by kind of layer and by tensor."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smh.core.sizes import file_bytes
from smh.core.tensors import TensorSpec
from smh.tables import Table, counted, data_frame, paragraph
from smh.text import some

if TYPE_CHECKING:
    import rich.table

    from smh.models.compression import Compression, ModelTensor
    from smh.plots import Figure

_REASONS = 8  # lines of reasons in the text
_KINDS = "bias scale slope cache token buffer".split()
_HEADINGS = {
    f"it is a {kind}": plural
    for kind, plural in zip(_KINDS, ("biases", "scales", "slopes", "caches", "tokens", "buffers"), strict=True)
} | {"it is a running statistic": "running statistics"}


@dataclass(frozen=True)
class TensorReport:
    """A tensor of a compressed model.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        As the model uses it.
    aliases : tuple of str
        Its other names.
    generated : bool
        Whether it is generated; otherwise it is kept.
    why : str
        Why it is generated or kept.
    scale : float or None
        Its present scale, if it is generated.
    offset : int or None
        Its first cell, if it is generated.
    kind : str
        The class of the layer that holds it; empty for pytrees, which have no layers.
    bytes_before, bytes_after : int
        In a file, before and after. A generated tensor has its share of the pool, by its number of weights, and its
        learned scale.
    note : str
        What its values were before, if they were regular, such as all zero.
    """

    name: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...]
    generated: bool
    why: str
    scale: float | None
    offset: int | None
    kind: str
    bytes_before: int
    bytes_after: int
    note: str = ""

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Report:
    """What compression did to a model.

    ``print`` gives a summary by kind of layer, with the reasons why tensors are kept; rich gives a line per tensor.

    Attributes
    ----------
    tensors : tuple of TensorReport
        In the order of the model.
    num_weights, num_variables, num_kept : int
        Generated elements, trained elements that generate them, and elements that stay as they were.
    num_trained, num_trained_before : int
        Trained numbers in all, after and before compression: variables, and kept parameters that are trained. A frozen
        model trains none.
    ratio_asked : float or None
        The requested ratio; None if a size or a plan was given.
    ratio : float
        Pool variables per generated weight, as reached.
    bytes_before, bytes_after : int
        Of all tensors of the model in a file, before, and with integers and scales in place of weights.
    residency : str
        When weights are built.
    gradients : str
        How gradients are computed.
    frozen : bool
        Whether the model holds the integers of its pool, for inference only.
    """

    tensors: tuple[TensorReport, ...]
    num_weights: int
    num_variables: int
    num_kept: int
    num_trained: int
    num_trained_before: int
    ratio_asked: float | None
    ratio: float
    bytes_before: int
    bytes_after: int
    residency: str
    gradients: str
    frozen: bool = False

    def __str__(self) -> str:
        """Return a paragraph, a table by kind of layer, and the reasons why tensors are kept."""
        parts = (self._paragraph(), str(self._by_kind()), "\n  ".join(self._reasons()))
        return "\n\n".join(filter(None, parts))

    def __rich__(self) -> rich.table.Table:
        """Return a table with a line per tensor, and the paragraph below it."""
        rows = [
            (
                " = ".join((tensor.name, *tensor.aliases)),
                tensor.kind,
                " x ".join(map(str, tensor.shape)) or "scalar",
                f"{tensor.bytes_before:,}",
                f"{tensor.bytes_after:,}",
                ("generated" if tensor.generated else "kept") + (f": {tensor.why}" if tensor.why else ""),
            )
            for tensor in self.tensors
        ]
        columns = ("tensor", "layer", "shape", "bytes before", "after", "how")
        return Table(columns, rows, right=("bytes before", "after")).rich(self._paragraph())

    def _repr_html_(self) -> str:
        reasons = "\n".join(self._reasons())
        return paragraph(self._paragraph()) + self._by_kind()._repr_html_() + paragraph(reasons)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a JSON object.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> report = smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1))
        >>> report.to_dict()["bytes_after"], report.to_dict()["tensors"][0]["shape"]
        (194, [30, 40])
        """
        lines = [
            dataclasses.asdict(tensor) | {"shape": list(tensor.shape), "aliases": list(tensor.aliases)}
            for tensor in self.tensors
        ]
        return {**dataclasses.asdict(self), "tensors": lines}

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row per tensor; raises :class:`~smh.SmhError` without pandas."""
        return data_frame(self.to_dict()["tensors"])

    def plot(self) -> Figure:
        """Return a Matplotlib figure: bytes before and after by layer, the largest layers first.

        Raises
        ------
        SmhError
            If Matplotlib is not installed.

        Examples
        --------
        >>> import torch
        >>> import smh
        >>> report = smh.report(smh.compress(torch.nn.Linear(40, 30), ratio=0.1))
        >>> report.plot().savefig("report.png")  # doctest: +SKIP
        """
        from smh import plots

        layers = _grouped(self.tensors, lambda tensor: re.sub("(^|[./])[^./]*$", "", tensor.name))
        sizes = {
            layer: (sum(tensor.bytes_before for tensor in held), sum(tensor.bytes_after for tensor in held))
            for layer, held in layers.items()
        }
        title = f"{self.bytes_after:,} bytes instead of {self.bytes_before:,} ({self.share:.1%})"
        return plots.bars(sizes, title)

    @property
    def share(self) -> float:
        """Bytes after compression per byte before."""
        return self.bytes_after / self.bytes_before

    def _paragraph(self) -> str:
        generated = [tensor for tensor in self.tensors if tensor.generated]
        asked = "" if self.ratio_asked is None else f", asked {self.ratio_asked:.4g}"
        regular = [tensor.name for tensor in generated if tensor.note]
        trained = f"{self.num_trained:,} numbers are trained instead of {self.num_trained_before:,}."
        if self.frozen:
            trained = "The model is frozen: it holds integers, for inference only."
        noted = f" These tensors were constant or structured; they are random now: {some(regular)}." if regular else ""
        return (
            f"{self.num_weights:,} weights ({counted(len(generated), 'tensor')}) are generated from "
            f"{self.num_variables:,} variables (pool ratio {self.ratio:.4g}{asked}); {self.num_kept:,} numbers "
            f"({counted(len(self.tensors) - len(generated), 'tensor')}) are kept. {trained} "
            f"The arrays of a file take {self.bytes_after:,} bytes instead of "
            f"{self.bytes_before:,} ({self.share:.1%}); residency {self.residency!r}, gradients {self.gradients!r}."
            f"{noted}"
        )

    def _reasons(self) -> list[str]:
        """Return a heading, and a line for each reason to keep tensors, that of the most numbers first."""
        groups = _grouped((tensor for tensor in self.tensors if not tensor.generated), _reason)
        lines = []
        for why, kept in sorted(groups.items(), key=lambda group: -_numbers(group[1])):
            example = f"{'' if len(kept) == 1 else 'such as '}{kept[0].name!r}"
            lines.append(f"{why}: {counted(len(kept), 'tensor')}, {counted(_numbers(kept), 'number')} ({example})")
        if len(lines) > _REASONS:
            lines[_REASONS:] = [f"and {counted(len(lines) - _REASONS, 'more reason')}"]
        return ["Kept tensors:", *lines] if lines else []

    def _by_kind(self) -> Table:
        """Return a table with a row per kind of layer, the largest first, and a row of sums."""
        columns = ("layer", "tensors", "generated numbers", "kept numbers", "bytes before", "bytes after")
        groups = _grouped(self.tensors, _kind)
        rows = []
        for kind, tensors in sorted(groups.items(), key=lambda group: -sum(x.bytes_before for x in group[1])):
            rows.append((kind, *_sums(tensors)))
        if len(rows) > 1:
            rows.append(("total", *_sums(self.tensors)))
        return Table(columns, rows, right=columns[1:])


def make_report(compression: Compression, scale_variables: Mapping[str, float]) -> Report:
    """Return the report of a compressed model, given present values of scale variables by their names."""
    plan = compression.plan
    generated = {tensor.name: tensor for tensor in plan.tensors}
    kept = [tensor for tensor in compression.tensors if tensor.name not in generated]
    pool_bytes = file_bytes(plan.pool)

    def line(tensor: ModelTensor) -> TensorReport:
        spec = generated.get(tensor.name)
        scale, offset, after = None, None, tensor.nbytes
        if spec is None:
            why = tensor.why_kept or "not selected"
        else:
            tied = f"tied with {', '.join(tensor.aliases)}" if tensor.aliases else ""
            why = "; ".join(filter(None, (tied, tensor.note)))
            scale, offset = _scale(spec, scale_variables), spec.offset
            first, last = (pool_bytes * cell // plan.num_weights for cell in (spec.offset, spec.stop))
            after = last - first + 4 * spec.learn_scale
        return TensorReport(
            tensor.name,
            tensor.shape,
            tensor.aliases,
            spec is not None,
            why,
            scale,
            offset,
            tensor.kind,
            tensor.nbytes,
            after,
            tensor.note,
        )

    return Report(
        tensors=tuple(map(line, compression.tensors)),
        num_weights=plan.num_weights,
        num_variables=plan.num_variables,
        num_kept=sum(math.prod(tensor.shape) for tensor in kept),
        num_trained=0 if compression.frozen else plan.num_variables + _trained(kept),
        num_trained_before=_trained(compression.tensors),
        ratio_asked=compression.ratio_asked,
        ratio=plan.ratio,
        bytes_before=sum(tensor.nbytes for tensor in compression.tensors),
        bytes_after=plan.file_bytes + sum(tensor.nbytes for tensor in kept),
        residency=compression.residency,
        gradients=compression.gradients,
        frozen=compression.frozen,
    )


def _trained(tensors: Iterable[ModelTensor]) -> int:
    """Return the number of trained numbers in tensors of a model."""
    return sum(math.prod(tensor.shape) for tensor in tensors if tensor.trained)


def one_line(compression: Compression) -> str:
    """Return how a model is compressed in a line, as the representations of compressed models show it."""
    plan = compression.plan
    how = "frozen" if compression.frozen else f"gradients {compression.gradients!r}"
    return (
        f"{plan.num_weights:,} weights generated from {plan.num_variables:,} variables (ratio {plan.ratio:.4g}, "
        f"{plan.pool.in_words()}), residency {compression.residency!r}, {how}"
    )


def _scale(spec: TensorSpec, scale_variables: Mapping[str, float]) -> float:
    if spec.scale_variable not in scale_variables:
        return spec.initial_scale
    return scale_variables[spec.scale_variable] * 2.0**-spec.kappa


def _grouped(tensors: Iterable[TensorReport], key: Callable[[TensorReport], str]) -> dict[str, list[TensorReport]]:
    groups: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return groups


def _kind(tensor: TensorReport) -> str:
    """Return the class of a tensor's layer, or in a pytree the last part of its name."""
    _, slash, last = tensor.name.rpartition("/")
    return tensor.kind or (f"*/{last}" if slash else last)


def _reason(tensor: TensorReport) -> str:
    """Return why a tensor is kept, as a heading; biases are all alike, however short they are."""
    last = re.split("[./]", tensor.name)[-1]
    if last == "bias" and tensor.why in ("fewer than two axes", "it is a bias"):
        return "biases"
    return _HEADINGS.get(tensor.why, tensor.why)


def _numbers(tensors: Iterable[TensorReport]) -> int:
    return sum(tensor.size for tensor in tensors)


def _sums(tensors: Sequence[TensorReport]) -> tuple[str, ...]:
    sums = (
        len(tensors),
        _numbers(tensor for tensor in tensors if tensor.generated),
        _numbers(tensor for tensor in tensors if not tensor.generated),
        sum(tensor.bytes_before for tensor in tensors),
        sum(tensor.bytes_after for tensor in tensors),
    )
    return tuple(f"{x:,}" for x in sums)
