"""Fitting: variables whose generated weights come close to given ones, such as those of a trained model.

The way of the data, :mod:`smh.core.generate` walked backwards:

    weights -> canonical shape (view) -> wanted v (scale) -> virtual vector (layout) -> pool -> integers -> scales

Every tensor is divided by its scale, and the pool then takes the least squares of all virtual weights alike. A single
pool reaches the optimum of that: a matrix product by the theorem of Eckart and Young, a sum of Kronecker products by
the same after the rearrangement of Van Loan and Pitsianis (1993), hash tables as a linear problem. Sums of pools are
fitted part by part, each to what the others leave. What a single pool does stands in ``smh/models/fitters.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.plan import Plan
from smh.core.pools import Pool, Sum
from smh.core.pools.base import LeafPool
from smh.core.scales import LEAST, LIMIT, modified
from smh.core.tensors import TensorSpec
from smh.errors import PlanError, SmhError, UnknownNameError, VariableError, near_names
from smh.models.fit_pool import BLOCK, SMOOTH, dot, fit_pool
from smh.models.fitters import FITTERS, KERNELS, Used, Variables, can_fit

_WEIGHTS = 1 << 18  # weights that are generated at a time
_FAR = 2.0**40  # virtual weights from here on leave the grids of pools no room
_FAINT = 2.0**-20  # virtual weights are meant to have unit mean square; what is this small is rounding errors
_LOST = 0.5  # an error from which on most of a model is lost


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
        """Return a paragraph: the error of all weights, and the tensors that are furthest off."""
        worst = sorted(self.errors, key=lambda name: -self.errors[name])[:3]
        return (
            f"The weights of {len(self.errors)} tensors are generated with a relative error of {self.error:.3g} "
            f"({self.error_unrounded:.3g} before rounding to integers); furthest off: "
            f"{', '.join(f'{name!r} {self.errors[name]:.3g}' for name in worst)}."
        )

    def __rich__(self) -> Table:
        """Return a table of all tensors, with the paragraph below it."""
        table = Table("tensor", caption=str(self), caption_justify="left")
        table.add_column("relative error", justify="right")
        for name, error in self.errors.items():
            table.add_row(name, f"{error:.3g}")
        return table


@np.errstate(all="ignore")
def fit_variables(
    plan: Plan, values: Mapping[str, np.ndarray], *, progress: bool = False
) -> tuple[dict[str, np.ndarray], FitReport]:
    """Return variables whose weights are close to given ones: a warm start from a trained model.

    Parameters
    ----------
    plan : Plan
        Any plan whose pool is a matmul, Kronecker or hash pool, or a sum of such.
    values : mapping of str to numpy.ndarray, any real dtype
        The wanted weights, one array for every tensor of the plan, in its viewed shape. Each is asked for up to four
        times and not kept, so a mapping may read them from a file.
    progress : bool
        Show progress bars on stderr.

    Returns
    -------
    variables : dict of str to numpy.ndarray, float32
        All variables of the plan, in its order.
    report : FitReport
        The errors of the weights that they generate.

    Raises
    ------
    UnknownNameError
        If the plan has no tensor of a name in ``values``.
    VariableError
        If a tensor is missing, of the wrong shape or dtype, not finite in float32, or too large for a fixed scale.
    PlanError
        If the pool is or holds a product of pools: for that there is no closed form.
    SmhError
        If SciPy is not installed.

    Warns
    -----
    UserWarning
        If the error is above 0.5: most of the model is lost, and training must follow.

    Notes
    -----
    Learnable scales become the root mean square of their tensor, and at last what fits best to the fitted pool; fixed
    ones stay. Where cells of several tensors show one virtual weight (cyclic layout), it gets the value with the least
    squared error of their weights; cells of the padding cannot be fitted. Virtual weights that nothing shows are filled
    in so that the others come out better.

    Modifiers are no part of the fit of the pool: scaled virtual weights are fitted to the target itself. The report is
    about the weights after modifiers, so it shows where a target is out of their reach.

    The returned variables are on their grids. Steps and integers are chosen for the error of the product: a few large
    values may be clipped, and each integer makes up for the errors of those before it. One factor is held while the
    other is fitted to its integers, in turns, and scales are fitted last, to the weights that the integers generate. If
    all scales are learnable, virtual weights may come out up to twice as large or small as the scales suggest.

    Up to a ratio of 0.5 it takes at most four times the memory of the weights in float32.

    Terms of a matrix product that the target does not need get left variables of 0
    and right ones like the initial ones, so that training can use them. A learnable scale of zeros becomes 0.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.core.plan import Plan
    >>> target = np.outer(np.arange(1, 9), np.arange(1, 9)) / 8.0
    >>> plan = Plan.build({"fc": (8, 8)}, ratio=0.25)
    >>> variables, report = fit_variables(plan, {"fc": target})
    >>> {name: x.shape for name, x in variables.items()}
    {'pool/left': (8, 1), 'pool/right': (1, 8), 'scale/fc': ()}
    >>> report.error < 0.02, report.error_unrounded < 1e-6
    (True, True)
    """
    _check_scipy()
    _check_pool(plan.pool)
    _check_names(plan, values)
    with Progress(console=Console(stderr=True), disable=not progress) as bars:
        scales, wanted, used = _wanted(plan, values, bars)
        unrounded, pool = fit_pool(plan, wanted, used, _is_free(plan, scales), bars)
        del wanted, used
        variables = pool | _fit_scales(KERNELS, plan, values, pool, scales, bars)
        unrounded |= _fit_scales(SMOOTH, plan, values, unrounded, scales, bars)
        report = _report(plan, values, variables, unrounded, bars)
    if report.error > _LOST:
        warnings.warn(
            f"the fitted weights are off by {report.error:.2f} of the given ones: most of the model is lost, and "
            "training must follow. A larger ratio, or leaving out what fits badly (exclude), keeps more",
            UserWarning,
            stacklevel=3,  # above np.errstate
        )
    return variables, report


def _check_scipy() -> None:
    try:
        import scipy.linalg
        import scipy.sparse.linalg  # noqa: F401
    except ImportError as error:
        raise SmhError("fitting needs SciPy: pip install smh[fit]") from error


def _check_pool(pool: Pool) -> None:
    """Raise unless every leaf can be fitted, and is added to the others."""
    if isinstance(pool, Sum):
        for part in pool.parts:
            _check_pool(part)
    elif not can_fit(pool):
        kinds = ", ".join(cls.kind for cls in FITTERS)
        raise PlanError(f"pools that can be fitted are {kinds}, and sums of these; got a {pool.kind}: {pool!r}")


def _check_names(plan: Plan, values: Mapping[str, np.ndarray]) -> None:
    known = {tensor.name: tensor for tensor in plan.tensors}
    for name in values:
        if name not in known:
            raise UnknownNameError(f"the plan has no tensor {name!r}: {near_names(str(name), known)}")
    for name, tensor in known.items():
        if name not in values:
            raise VariableError(f"the values of {name!r} are missing: the plan needs them, shape {tensor.viewed_shape}")


def _target(tensor: TensorSpec, values: Mapping[str, np.ndarray]) -> np.ndarray:
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
        raise VariableError(f"{what} must be finite in float32; got {bad} of {x.size} that are not: mend the model")
    canonical = tensor.view.invert(np, narrow, tensor.shape) if tensor.view else narrow
    return np.reshape(canonical, (-1,))


def _wanted(plan: Plan, values: Mapping[str, np.ndarray], bars: Progress) -> tuple[dict[str, float], np.ndarray, Used]:
    """Return the scale of every tensor, the wanted virtual weights, and which of them are wanted.

    Virtual weights are as many as the largest leaf has, float32.
    """
    scales = {}
    room = max(leaf.pool.capacity for leaf in plan.pool.leaves(plan.seed))
    shared = plan.layout == "cyclic" and plan.num_weights > plan.capacity
    wanted: np.ndarray = np.zeros(room, dtype=np.float32)
    squares: np.ndarray = np.zeros(plan.capacity if shared else 0, dtype=np.float32)
    ranges = []
    for tensor in bars.track(plan.tensors, description="reading tensors"):
        target = _target(tensor, values)
        scale = tensor.initial_scale
        if tensor.learn_scale:
            scale = math.sqrt(dot(target, target) / target.size)
            scale = float(np.float32(min(max(scale, LEAST), LIMIT / 2))) if scale else 0.0
        largest = max(float(np.max(target)), -float(np.min(target)))
        if largest >= _FAR * scale > 0.0:
            raise VariableError(
                f"the values of {tensor.name!r} must be below 2**40 times its scale {scale:.4g}; got magnitude "
                f"{largest:.4g}: make a plan with learnable scales, or a larger one"
            )
        scales[tensor.name] = scale
        if not scale:
            continue
        for cells, elements in _shown(plan, tensor):
            ranges.append(cells)
            if shared:
                for k in range(0, cells.stop - cells.start, BLOCK):
                    block = target[elements][k : k + BLOCK]
                    wanted[cells.start + k : cells.start + k + len(block)] += np.float32(scale) * block
                squares[cells] += np.float32(scale * scale)
            else:
                np.divide(target[elements], np.float32(scale), out=wanted[cells])
    if shared:
        np.divide(wanted[: plan.capacity], squares, out=wanted[: plan.capacity], where=squares > 0.0)
    return scales, wanted, Used(ranges)


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
    kernels: NumpyKernels,
    plan: Plan,
    values: Mapping[str, np.ndarray],
    pool: Variables,
    scales: Mapping[str, float],
    bars: Progress,
) -> Variables:
    """Return the learnable scales by variable, with the least squared error for the virtual weights that there are."""
    learnable = [tensor for tensor in plan.tensors if tensor.learn_scale]
    grids = generate.put_on_grids(kernels, plan, pool)
    found = {}
    task = bars.add_task("fitting scales", total=sum(tensor.size for tensor in learnable))
    for tensor in learnable:
        target, whole, energy, shared = _target(tensor, values), 0.0, 0.0, 0.0
        for start, stop in _blocks(tensor):
            v = np.asarray(generate.cells(kernels, plan, grids, tensor.offset + start, tensor.offset + stop))
            whole += dot(v, v)
            if "relu" in tensor.modifiers:
                v = np.maximum(v, np.float32(0.0))
            energy += dot(v, v)
            shared += dot(v, target[start:stop])
            bars.advance(task, stop - start)
        scale = _best_scale(tensor, math.sqrt(whole / tensor.size), energy, shared, scales[tensor.name])
        found[tensor.scale_variable] = np.asarray(scale * 2.0**tensor.kappa, dtype=np.float32)
    return found


def _blocks(tensor: TensorSpec) -> Iterator[tuple[int, int]]:
    """Iterate over ranges of the elements of a tensor."""
    for start in range(0, tensor.size, _WEIGHTS):
        yield start, min(start + _WEIGHTS, tensor.size)


def _best_scale(tensor: TensorSpec, size: float, energy: float, shared: float, scale: float) -> float:
    """Return the better of two scales for virtual weights v: the one given, and that of least squares.

    ``size`` is their root mean square, ``energy`` the square of v, after relu, and ``shared`` its product with the
    target. Virtual weights of next to nothing tell no scale, and with a scale of 0 could not be trained: they keep
    theirs.
    """
    if size < _FAINT:
        return scale or tensor.initial_scale
    least = float(np.float32(shared / energy)) if energy else scale
    least = 0.0 if abs(least) < LEAST else math.copysign(min(abs(least), LIMIT / 2), least)
    if "relu" in tensor.modifiers and least <= 0.0:
        return scale
    return min(scale, least, key=lambda s: s * s * energy - 2.0 * s * shared)


def _report(
    plan: Plan, values: Mapping[str, np.ndarray], variables: Variables, unrounded: Variables, bars: Progress
) -> FitReport:
    """Return the errors of the weights that are generated, block by block."""
    errors, off, before, whole = {}, 0.0, 0.0, 0.0
    ways = [
        (kernels, generate.put_on_grids(kernels, plan, given), given)
        for kernels, given in ((KERNELS, variables), (SMOOTH, unrounded))
    ]
    task = bars.add_task("measuring errors", total=plan.num_weights)
    for tensor in plan.tensors:
        target, squares = _target(tensor, values), [0.0, 0.0]
        for start, stop in _blocks(tensor):
            for k, (kernels, grids, given) in enumerate(ways):
                v = generate.cells(kernels, plan, grids, tensor.offset + start, tensor.offset + stop)
                w = kernels.scale(v, generate.scale_of(kernels, tensor, given))
                distance = np.asarray(modified(kernels, w, tensor.modifiers)) - target[start:stop].astype(np.float64)
                squares[k] += float(distance @ distance)
            bars.advance(task, stop - start)
        norm, distances = math.sqrt(dot(target, target)), [math.sqrt(square) for square in squares]
        errors[tensor.name] = distances[0] / norm if norm else distances[0]
        off, before, whole = math.hypot(off, distances[0]), math.hypot(before, distances[1]), math.hypot(whole, norm)
    return FitReport(errors, off / (whole or 1.0), before / (whole or 1.0))
