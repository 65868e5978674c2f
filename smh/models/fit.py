"""Fitting: variables whose generated weights come close to given ones, such as those of a trained model.

The way of the data, :mod:`smh.core.generate` walked backwards:

    weights -> canonical shape (view) -> wanted v (scale) -> virtual vector (layout) -> pool -> integers -> scales

Every tensor is divided by its scale, and the pool then takes the least squares of all virtual weights alike
(``smh/models/fit_pool.py``). Scales are fitted last, to the weights that the integers generate.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.plan import Plan
from smh.core.pools import Pool, Sum
from smh.core.pools.base import LeafPool
from smh.core.scales import LEAST, LIMIT, modified
from smh.core.tensors import TensorSpec
from smh.core.warning import warn
from smh.errors import PlanError, SmhError, VariableError, install_line
from smh.models.fit_pool import FITTERS, KERNELS, SMOOTH, Grids, fit_pool
from smh.models.patience import Tick, track
from smh.models.progress import Progress
from smh.models.rounding import dot
from smh.tables import Table, counted, data_frame, paragraph

if TYPE_CHECKING:
    import rich.table

_WEIGHTS = 1 << 18  # weights that are generated at a time, fewer with several parts
_FAR = 2.0**40  # virtual weights from here on leave the grids of pools no room
_FAINT = 2.0**-20  # virtual weights should have unit mean square; anything this small is rounding error
_LOST = 0.5  # an error from which on most of a model is lost

Values = Mapping[str, np.ndarray]
Variables = dict[str, np.ndarray]


@dataclass(frozen=True)
class FitReport:
    """How close the weights of fitted variables are; ``str`` gives a paragraph, rich prints a table.

    Attributes
    ----------
    errors : dict of str to float
        By tensor ``||w - target|| / ||target||`` in the Frobenius norm, or ``||w||`` for a target of zeros.
    error : float
        The same of all tensors as one vector.
    error_unrounded : float
        The same before variables were rounded to integers: the difference is what bits would buy.
    """

    errors: dict[str, float]
    error: float
    error_unrounded: float

    def __str__(self) -> str:
        """Return a paragraph: the error of all weights, and the worst tensors."""
        worst = sorted(self.errors, key=lambda name: -self.errors[name])[:3]
        tensors = counted(len(self.errors), "tensor")
        return (
            f"The weights of {tensors} are generated with a relative error of {self.error:.3g} "
            f"({self.error_unrounded:.3g} before rounding to integers); worst: "
            f"{', '.join(f'{name!r} {self.errors[name]:.3g}' for name in worst)}."
        )

    def __rich__(self) -> rich.table.Table:
        """Return a table of all tensors, with the paragraph below it."""
        return self._table().rich(str(self))

    def _repr_html_(self) -> str:
        return paragraph(str(self)) + self._table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return dataclasses.asdict(self)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row per tensor; raises :class:`~smh.SmhError` without pandas."""
        return data_frame([{"tensor": name, "error": error} for name, error in self.errors.items()])

    def _table(self) -> Table:
        rows = [(name, f"{error:.3g}") for name, error in self.errors.items()]
        return Table(("tensor", "relative error"), rows, right=["relative error"])


@np.errstate(all="ignore")
def fit_variables(plan: Plan, values: Values, *, progress: bool | None = None) -> tuple[Variables, FitReport]:
    """Return variables whose weights are close to given ones: a warm start from a trained model.

    Parameters
    ----------
    plan : Plan
        Any plan whose pool is a matmul, Kronecker or hash pool, or a sum of such.
    values : mapping of str to numpy.ndarray, any real dtype
        The wanted weights of every tensor, in its viewed shape. Each is asked for three times and not kept, so a
        mapping may read them from a file.
    progress : bool, optional
        Whether to show progress on stderr; by default on a terminal, for work of more than two seconds.

    Returns
    -------
    variables : dict of str to numpy.ndarray, float32
        All variables of the plan, in its order, on their grids.
    report : FitReport
        The errors of the weights that they generate, after modifiers.

    Raises
    ------
    UnknownNameError
        If the plan has no tensor of a name in ``values``.
    VariableError
        If a tensor is missing, of the wrong shape or dtype, not finite in float32, or too large for a fixed scale.
    PlanError
        If the pool is or contains a product of pools, which has no closed form.
    SmhError
        If SciPy is not installed.

    Warns
    -----
    UserWarning
        If the error is above 0.5: most of the model is lost, and training must follow.

    Notes
    -----
    Scaled virtual weights are fitted to the target itself, without modifiers. One that several cells show (cyclic
    layout) gets the value with the least squared error of their weights; cells of the padding cannot be fitted.
    Learnable scales become what fits best to the pool, or 0 for a tensor of zeros. If all are learnable, virtual
    weights may come out up to twice as large or small as usual. Terms of a matrix product that the target does not need
    get left variables of 0 and right ones like the initial ones, so that training can use them. Up to a ratio of 0.5 it
    takes at most four times the memory of the virtual weights in float32, from a million of them on.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.core.plan import Plan
    >>> target = np.outer(np.arange(1, 9), np.arange(1, 9)) / 8.0
    >>> variables, report = fit_variables(Plan.build({"fc": (8, 8)}, ratio=0.25), {"fc": target})
    >>> {name: x.shape for name, x in variables.items()}
    {'pool/left': (8, 1), 'pool/right': (1, 8), 'scale/fc': ()}
    >>> report.error < 0.02, report.error_unrounded < 1e-6
    (True, True)
    """
    _check(plan, values)
    with Progress(progress) as bars:
        scales, wanted, used = _wanted(plan, values, bars.tick)
        fitted = fit_pool(plan, wanted, used, _is_free(plan, scales), bars.tick)
        del wanted, used
        *_, error_unrounded = _fit_scales(SMOOTH, plan, values, scales, next(fitted), bars.tick)
        grids = next(fitted)
        del fitted  # and the wanted virtual weights with it
        variables, errors, error = _fit_scales(KERNELS, plan, values, scales, grids, bars.tick)
    pool = {f"pool/{name}": one.integers * one.unit + np.float32(0.0) for name, one in grids.items()}  # -0 becomes +0
    if error > _LOST:
        warn(
            f"the fitted weights are off by {error:.2f} (relative error): most of the model is lost, so it must be "
            "trained. A larger ratio keeps more, and so does leaving out what fits badly (exclude)"
        )
    return pool | variables, FitReport(errors, error, error_unrounded)


def _check(plan: Plan, values: Values) -> None:
    """Raise unless SciPy is installed, the pool can be fitted, and there are values for the tensors of the plan."""
    try:
        import scipy.linalg  # noqa: F401
    except ImportError as error:
        raise SmhError(f"fitting needs SciPy: {install_line('fit')}") from error
    parts: list[Pool] = [plan.pool]
    while parts:
        part = parts.pop()
        if isinstance(part, Sum):
            parts += part.parts
        elif type(part) not in FITTERS:
            kinds = ", ".join(cls.kind for cls in FITTERS)
            raise PlanError(f"pools that can be fitted are {kinds}, and sums of these; got a {part.kind}: {part!r}")
    plan.select(values)
    for tensor in plan.tensors:
        if tensor.name not in values:
            what = f"the values of {tensor.name!r} are missing: the plan needs them, shape {tensor.viewed_shape}"
            raise VariableError(what)


def _target(tensor: TensorSpec, values: Values) -> np.ndarray:
    """Return the wanted weights of a tensor in canonical order, shape (size,), float32, or raise VariableError."""
    what, x = f"the values of {tensor.name!r}", values[tensor.name]
    if not isinstance(x, (np.ndarray, np.generic)):
        raise VariableError(f"{what} must be a NumPy array; got {type(x).__name__}: convert them with numpy.asarray")
    if x.dtype.kind == "b" or not np.can_cast(x.dtype, np.float64, "same_kind"):
        raise VariableError(f"{what} must be real numbers, such as float32; got dtype {x.dtype}")
    if x.shape != tensor.viewed_shape:
        raise VariableError(f"{what} must have shape {tensor.viewed_shape}, as the model has it; got {x.shape}")
    narrow = x.astype(np.float32, copy=False)
    bad = x.size - np.count_nonzero(np.isfinite(narrow))
    if bad:
        raise VariableError(f"{what} must be finite in float32; got {bad} of {x.size} that are not: fix the model")
    canonical = tensor.view.invert(np, narrow, tensor.shape) if tensor.view else narrow
    return np.reshape(canonical, (-1,))


def _wanted(plan: Plan, values: Values, tick: Tick) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return the scale of every tensor, the wanted virtual weights, float32, and which of them are wanted.

    They are as many as the largest leaf has. For one that several cells show, the squared error of weights decides.
    """
    scales, room = {}, max(leaf.pool.capacity for leaf in plan.pool.leaves(plan.seed))
    wanted, used = np.zeros(room, dtype=np.float32), np.zeros(room, dtype=bool)
    shared = plan.layout == "cyclic" and plan.num_weights > plan.capacity
    squares = np.zeros(room if shared else 0, dtype=np.float32)
    for tensor in track(tick, "reading tensors", plan.tensors):
        target = _target(tensor, values)
        scale = tensor.initial_scale
        if tensor.learn_scale:
            scale = math.sqrt(dot(target, target) / target.size)
            scale = float(np.float32(min(max(scale, LEAST), LIMIT / 2))) if scale else 0.0
        scales[tensor.name] = scale
        if not scale:
            continue
        largest = max(float(np.max(target)), -float(np.min(target)))
        if largest >= _FAR * scale:
            raise VariableError(
                f"the values of {tensor.name!r} must be below 2**40 times its scale {scale:.4g}; got magnitude "
                f"{largest:.4g}: make a plan with learnable scales, or a larger one"
            )
        for cells, elements in _shown(plan, tensor):
            used[cells] = True
            if shared:
                wanted[cells] += np.float32(scale) * target[elements]
                squares[cells] += np.float32(scale * scale)
            else:
                np.divide(target[elements], np.float32(scale), out=wanted[cells])
    if shared:
        np.divide(wanted, squares, out=wanted, where=used)
    return scales, wanted, used


def _shown(plan: Plan, tensor: TensorSpec) -> Iterator[tuple[slice, slice]]:
    """Iterate over ranges of virtual weights, each with the range of a tensor's elements that shows it."""
    at = tensor.offset
    while at < tensor.stop and (plan.layout == "cyclic" or at < plan.capacity):
        first = at % plan.capacity
        count = min(plan.capacity - first, tensor.stop - at)
        yield slice(first, first + count), slice(at - tensor.offset, at - tensor.offset + count)
        at += count


def _is_free(plan: Plan, scales: Mapping[str, float]) -> bool:
    """Say whether learnable scales can make up for a factor of all virtual weights."""
    return (
        isinstance(plan.pool, LeafPool)
        and (plan.layout != "padding" or plan.num_weights <= plan.capacity)
        and all(tensor.learn_scale for tensor in plan.tensors)
        and all(scale == 0.0 or 2.0**10 * LEAST < scale < 2.0**-10 * LIMIT for scale in scales.values())
    )


def _fit_scales(
    kernels: NumpyKernels, plan: Plan, values: Values, scales: Mapping[str, float], grids: Grids, tick: Tick
) -> tuple[Variables, dict[str, float], float]:
    """Return the variables of learnable scales, and the relative errors: of each tensor, and of all."""
    variables, errors, distances, norms = {}, {}, [], []
    done = 0
    for tensor in plan.tensors:
        target = _target(tensor, values)
        blocks = functools.partial(_blocks, kernels, plan, grids, tensor, target)
        if tensor.learn_scale:
            scale = _best_scale(tensor, blocks(), scales[tensor.name])
            variables[tensor.scale_variable] = np.asarray(scale * 2.0**tensor.kappa, dtype=np.float32)
        cleaned, square = generate.scale_of(kernels, tensor, variables), 0.0
        for v, wanted in blocks():
            w = modified(kernels, kernels.scale(v, cleaned), tensor.modifiers)
            difference = np.asarray(w) - wanted.astype(np.float64)
            square += float(difference @ difference)
            done += v.size
            tick("fitting scales, measuring errors", done / plan.num_weights)
        distances.append(math.sqrt(square))
        norms.append(math.sqrt(dot(target, target)))
        errors[tensor.name] = distances[-1] / (norms[-1] or 1.0)
    return variables, errors, math.hypot(*distances) / (math.hypot(*norms) or 1.0)


def _blocks(
    kernels: NumpyKernels, plan: Plan, grids: Grids, tensor: TensorSpec, target: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the elements of a tensor: their virtual weights and their targets."""
    step = _WEIGHTS // sum(1 for _ in plan.pool.leaves(plan.seed))
    for start in range(0, tensor.size, step):
        wanted = target[start : start + step]
        first = tensor.offset + start
        yield np.asarray(generate.cells(kernels, plan, grids, first, first + len(wanted))), wanted


def _best_scale(tensor: TensorSpec, blocks: Iterable[tuple[np.ndarray, np.ndarray]], scale: float) -> float:
    """Return the better of two scales for virtual weights: the one given, and that of least squares.

    Virtual weights of next to nothing tell no scale, and with a scale of 0 could not be trained: they keep theirs.
    """
    energy = shared = 0.0
    for v, wanted in blocks:
        if "relu" in tensor.modifiers:
            v = np.maximum(v, np.float32(0.0))
        energy += dot(v, v)
        shared += dot(v, wanted)
    if energy < _FAINT**2 * tensor.size:
        return scale or tensor.initial_scale
    least = float(np.float32(shared / energy))
    least = 0.0 if abs(least) < LEAST else math.copysign(min(abs(least), LIMIT / 2), least)
    if "relu" in tensor.modifiers and least <= 0.0:
        return scale
    return min(scale, least, key=lambda s: s * s * energy - 2.0 * s * shared)
