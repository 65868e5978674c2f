"""What compressing a model means, before any framework: which tensors are generated, by what plan, and what that saves.

A backend lists the tensors of a model as :class:`ModelTensor`, in order, and asks :func:`plan_for` for the plan and
:func:`make_report` for the report. How a model then gets its weights is the backend's own affair.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from rich.table import Table

from smh.core.plan import Plan
from smh.core.selection import select, why_not
from smh.core.tensors import TensorSpec
from smh.errors import CheckpointError, PlanError
from smh.files.checkpoint import CARRIED, Checkpoint
from smh.text import some

RESIDENCIES = ("full", "cached", "layer")
"""When weights are built: once per forward pass, once until a variable changes, or layer by layer."""
GRADIENTS = ("exact", "fast")
"""How gradients of variables are computed: with the bits of the specification, or by float32 products."""

_FEW = 10_000  # models of fewer numbers are toys, which nobody compresses to save bytes


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of a model."""

    name: str  # its first name in the model
    shape: tuple[int, ...]  # as the model holds it
    nbytes: int
    axes: str | None = None  # what its axes mean, where the default by rank does not hold; see Plan.build
    aliases: tuple[str, ...] = ()  # other names of the same tensor: it is generated once, and stays tied
    kept: str = ""  # why it cannot be generated, or empty
    note: str = ""  # what one should know if it is generated


@dataclass(frozen=True)
class Compression:
    """How a model was compressed: what every compressed model carries, besides its arrays."""

    plan: Plan
    tensors: tuple[ModelTensor, ...]  # all of the model as it was before, in order
    residency: str = "full"
    ratio_asked: float | None = field(default=None, compare=False)  # a file, which has none, gives the same model
    gradients: str = "exact"

    @property
    def fast(self) -> bool:
        """Whether gradients are fast ones, without a promise of bits."""
        return self.gradients == "fast"


@dataclass(frozen=True)
class TensorReport:
    """A line of a report.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        As the model uses it.
    aliases : tuple of str
        Its other names.
    generated : bool
        Whether it is generated.
    why : str
        Why it is generated or kept.
    scale : float or None
        Its present scale, if it is generated.
    offset : int or None
        Its first cell, if it is generated.
    """

    name: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...]
    generated: bool
    why: str
    scale: float | None
    offset: int | None


@dataclass(frozen=True)
class Report:
    """What compression did to a model; ``str`` gives a paragraph, rich prints a table.

    Attributes
    ----------
    tensors : tuple of TensorReport
        In the order of the model.
    num_weights, num_variables, num_kept : int
        Generated elements, trained elements that generate them, and elements that stay as they were.
    ratio_asked : float or None
        What was asked for; None where a plan was given.
    ratio : float
        Pool variables per generated weight, as reached.
    bytes_before, bytes_after : int
        Of all tensors of the model in a file, before, and with integers and scales in place of weights.
    residency : str
        When weights are built.
    gradients : str
        How gradients are computed.
    """

    tensors: tuple[TensorReport, ...]
    num_weights: int
    num_variables: int
    num_kept: int
    ratio_asked: float | None
    ratio: float
    bytes_before: int
    bytes_after: int
    residency: str
    gradients: str

    def __str__(self) -> str:
        """Return a paragraph."""
        count = sum(tensor.generated for tensor in self.tensors)
        asked = "" if self.ratio_asked is None else f", asked {self.ratio_asked:.4g}"
        return (
            f"{self.num_weights:,} weights ({_tensors(count)}) are generated from {self.num_variables:,} variables "
            f"(pool ratio {self.ratio:.4g}{asked}); {self.num_kept:,} numbers ({_tensors(len(self.tensors) - count)}) "
            f"are kept. A file takes {self.bytes_after:,} bytes instead of {self.bytes_before:,} "
            f"({self.bytes_after / self.bytes_before:.1%}); residency {self.residency!r}, "
            f"gradients {self.gradients!r}."
        )

    def __rich__(self) -> Table:
        """Return a table, with the paragraph below it."""
        table = Table(caption=str(self), caption_justify="left")
        for column in ("tensor", "shape", "scale", "offset", "", "why"):
            table.add_column(column, justify="right" if column in ("scale", "offset") else "left")
        for tensor in self.tensors:
            table.add_row(
                " = ".join((tensor.name, *tensor.aliases)),
                " x ".join(map(str, tensor.shape)) or "scalar",
                "" if tensor.scale is None else f"{tensor.scale:.4g}",
                "" if tensor.offset is None else f"{tensor.offset:,}",
                "generated" if tensor.generated else "kept",
                tensor.why,
            )
        return table


def check_residency(residency: Any) -> str:
    """Return a residency, or raise :class:`~smh.PlanError` for what is none."""
    return _check_choice("residency", residency, RESIDENCIES)


def check_gradients(gradients: Any) -> str:
    """Return a kind of gradients, or raise :class:`~smh.PlanError` for what is none."""
    return _check_choice("gradients", gradients, GRADIENTS)


def not_compressed(model: Any) -> PlanError:
    """Return the error for a model that has no plan."""
    what = "the model is not compressed: smh.compress(model, ratio=0.1) makes it so"
    return PlanError(f"{what}; got {type(model).__name__}")


def plan_for(
    tensors: Sequence[ModelTensor], *, plan: Plan | None = None, allow_expansion: bool = False, **options: Any
) -> Plan:
    """Return the plan by which a model is compressed: one made before, which has to fit, or a new one.

    Options are those of :meth:`smh.Plan.build`, ``ratio`` or ``size`` among them; those that are None are left out. A
    size is that of all arrays in the file, tensors that are kept included. Raises :class:`~smh.PlanError` if there is
    nothing to generate, options contradict each other, the plan does not fit the model, or the model would not get
    smaller and ``allow_expansion`` does not say that it need not.

    Examples
    --------
    >>> tensors = [ModelTensor("w", (30, 20), 2400), ModelTensor("b", (20,), 80)]
    >>> plan_for(tensors, ratio=0.2).num_weights
    600
    >>> plan_for(tensors, size=284).file_bytes
    204
    """
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, Iterator) else value
        for name, value in options.items()
        if value is not None
    }
    if plan is not None:
        if given:
            raise PlanError(f"a plan decides everything: leave out {', '.join(given)}, or leave out the plan")
        check_fit(tensors, plan)
        return plan
    if "ratio" not in given and "size" not in given:
        raise PlanError("say how much to compress: give ratio, for example ratio=0.1, or size='500 kB', or a plan")
    check_ratio(given.get("ratio"), allow_expansion)
    free = {tensor.name: tensor for tensor in tensors if not tensor.kept}
    default = given.get("include") is None
    if not any(not default or not why_not(tensor.name, tensor.shape) for tensor in free.values()):
        frozen = any("frozen" in tensor.kept for tensor in tensors)
        hint = ". What is frozen is kept: unfreeze it before, and freeze the compressed model" if frozen else ""
        raise PlanError(f"the model has nothing to generate: {_reasons(tensors)}{hint}")
    shapes = {name: tensor.shape for name, tensor in free.items()}
    try:
        generated = select(shapes, given.get("include"), given.get("exclude"))
    except PlanError as error:
        kept = [tensor for tensor in tensors if tensor.kept]
        raise PlanError(f"{error}" + (f" (not to be generated: {_reasons(kept)})" if kept else "")) from error
    known = {name: axes for name in generated if (axes := free[name].axes) is not None}
    kept_bytes = sum(tensor.nbytes for tensor in tensors if tensor.name not in generated)
    built = Plan.build(shapes, **{**given, "axes": {**known, **given.get("axes", {})}, "kept_bytes": kept_bytes})
    if "size" in given and built.ratio >= 1 and not allow_expansion:
        raise PlanError(
            f"a size of {given['size']!r} leaves room for {built.ratio:.3g} pool variables per weight, as many as "
            "before or more: ask for less, or pass allow_expansion=True (--allow-expansion)"
        )
    check_fit(tensors, built)  # a view may give another shape
    return built


def warn_of_little(tensors: Iterable[ModelTensor], plan: Plan) -> None:
    """Warn if less than half of the numbers of a model are generated, and say what keeps the others."""
    generated = {tensor.name for tensor in plan.tensors}
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name not in generated:
            sizes[tensor.kept or why_not(tensor.name, tensor.shape)] += math.prod(tensor.shape)
    total = plan.num_weights + sizes.total()
    if 2 * plan.num_weights < total and total >= _FEW:
        reasons = "; ".join(f"{size:,} ({why})" for why, size in sizes.most_common(3))
        warnings.warn(
            f"only {plan.num_weights:,} of {total:,} numbers are generated, so the model gets little "
            f"smaller. Kept are {reasons}; smh.report(model) lists them all",
            UserWarning,
            stacklevel=4,
        )


def check_ratio(ratio: Any, allow_expansion: bool) -> None:
    """Raise :class:`~smh.PlanError` for a ratio that compresses nothing, unless that is allowed."""
    if isinstance(ratio, int | float | Fraction) and ratio >= 1 and not allow_expansion:
        hint = f"{float(ratio) / 100:.2g}" if 2 <= ratio < 100 else "0.1"
        what = f"a ratio of {float(ratio):.4g} stores as many numbers as before or more: did you mean {hint}?"
        raise PlanError(f"{what} If not, allow_expansion=True (--allow-expansion) takes it")


def check_fit(tensors: Iterable[ModelTensor], plan: Plan) -> None:
    """Raise :class:`~smh.PlanError` unless every tensor of a plan is one of the model, of the same shape."""
    known = {tensor.name: tensor for tensor in tensors}
    missing = [tensor.name for tensor in plan.tensors if tensor.name not in known]
    if missing:
        raise PlanError(f"the plan generates tensors that the model does not have: {some(missing)}")
    for tensor in plan.tensors:
        found = known[tensor.name]
        if found.kept:
            raise PlanError(f"the plan generates {tensor.name!r}, which cannot be: {found.kept}")
        if found.shape != tensor.viewed_shape:
            raise PlanError(f"the plan gives {tensor.name!r} the shape {tensor.viewed_shape}; the model {found.shape}")


def check_loaded(checkpoint: Checkpoint, kept: Mapping[str, Any], plan: Plan | None = None) -> None:
    """Raise :class:`~smh.CheckpointError` unless a file holds just what a model stores.

    So loading cannot leave a model half changed. ``kept`` are the arrays that the model keeps, ``plan`` is the plan of
    a model that is compressed already.
    """
    if plan is not None and checkpoint.plan != plan:
        raise CheckpointError(
            "the file has another plan than the model: load it into a plain model, or compress with the file's plan, "
            f"smh.load(path).plan. The file: {_summary(checkpoint.plan)}; the model: {_summary(plan)}"
        )
    missing = [name for name in kept if name not in checkpoint.dense]
    unexpected = [name for name in checkpoint.dense if name not in kept and not name.startswith(CARRIED)]
    if missing or unexpected:
        raise CheckpointError(
            f"the file does not fit the model; missing: {some(missing) or 'none'}; "
            f"unexpected: {some(unexpected) or 'none'}"
        )
    for name, x in kept.items():
        found, shape = checkpoint.dense[name], tuple(x.shape)
        if tuple(found.shape) != shape:
            raise CheckpointError(f"{name!r} has the shape {tuple(found.shape)} in the file, {shape} in the model")
        given, dtype = (str(y.dtype).rpartition(".")[2] for y in (found, x))
        if _kind(given) != _kind(dtype):
            raise CheckpointError(f"{name!r} has the type {given} in the file, {dtype} in the model")


def fingerprint(plan: Plan) -> np.ndarray:
    """Return the fingerprint of a plan, shape (32,), uint8, by which what a framework saves names the plan.

    The same variables give other weights by another plan, also where all shapes agree: with another seed or gain.
    """
    return np.frombuffer(bytes.fromhex(plan.fingerprint), dtype=np.uint8)


def check_fingerprint(plan: Plan, found: bytes | None, advice: str) -> None:
    """Raise :class:`~smh.CheckpointError` unless a saved fingerprint, or None where there is none, is that of a plan.

    ``advice`` says what to do instead, in the words of the framework.
    """
    if found is None:
        raise CheckpointError(f"the saved state does not name the plan that generates its weights: {advice}")
    if found.hex() != plan.fingerprint:
        raise CheckpointError(
            f"the saved state is of a model with another plan: its fingerprint is {found.hex()}, that of this model is "
            f"{plan.fingerprint} ({plan.pool!r}, layout {plan.layout}, {len(plan.tensors)} tensors, seed {plan.seed}). "
            f"Nothing was loaded: {advice}"
        )


def make_report(compression: Compression, scale_variables: Mapping[str, float]) -> Report:
    """Return the report of a compressed model, given present values of scale variables by their names."""
    plan = compression.plan
    generated = {tensor.name: tensor for tensor in plan.tensors}
    lines = []
    for tensor in compression.tensors:
        spec = generated.get(tensor.name)
        why = tensor.kept or why_not(tensor.name, tensor.shape) or "not selected"
        if spec is not None:
            tied = f"tied with {', '.join(tensor.aliases)}" if tensor.aliases else ""
            why = "; ".join(filter(None, (tied, tensor.note)))
        lines.append(
            TensorReport(
                name=tensor.name,
                shape=tensor.shape,
                aliases=tensor.aliases,
                generated=spec is not None,
                why=why,
                scale=None if spec is None else _scale(spec, scale_variables),
                offset=None if spec is None else spec.offset,
            )
        )
    kept = [tensor for tensor in compression.tensors if tensor.name not in generated]
    return Report(
        tensors=tuple(lines),
        num_weights=plan.num_weights,
        num_variables=plan.num_variables,
        num_kept=sum(math.prod(tensor.shape) for tensor in kept),
        ratio_asked=compression.ratio_asked,
        ratio=plan.ratio,
        bytes_before=sum(tensor.nbytes for tensor in compression.tensors),
        bytes_after=plan.file_bytes + sum(tensor.nbytes for tensor in kept),
        residency=compression.residency,
        gradients=compression.gradients,
    )


def _check_choice(what: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise PlanError(f"{what} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def _scale(spec: TensorSpec, scale_variables: Mapping[str, float]) -> float:
    if spec.scale_variable not in scale_variables:
        return spec.initial_scale
    return scale_variables[spec.scale_variable] * 2.0**-spec.kappa


def _reasons(tensors: Sequence[ModelTensor]) -> str:
    """Describe why tensors are kept."""
    if not tensors:
        return "it has no tensors"
    whys: dict[str, list[str]] = {}
    for tensor in tensors:
        whys.setdefault(tensor.kept or f"its shape is {tensor.shape}", []).append(tensor.name)
    shown = [f"{some(names)}: {why}" for why, names in whys.items()]
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} reasons more" if len(shown) > 3 else "")


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _summary(plan: Plan) -> str:
    return f"{plan.pool!r}, {len(plan.tensors)} tensors, {plan.num_weights:,} weights, seed {plan.seed}"


def _kind(dtype: str) -> str:
    """Return ``float``, ``int``, ``uint``, ``bool`` and the like, without the bits."""
    return dtype.rstrip("0123456789").removeprefix("b" if dtype == "bfloat16" else "")
