"""Fitting: variables whose generated weights come close to given ones, such as those of a trained model.

The way of the data, :mod:`smh.core.generate` walked backwards:

    weights -> canonical shape (view) -> wanted v (scale) -> virtual vector (layout) -> pool -> integers -> scales

Every tensor is divided by its scale, and the pool then takes the least squares of all virtual weights alike. A single
pool reaches the optimum of that: a matrix product by the theorem of Eckart and Young, a sum of Kronecker products by
the same after the rearrangement of Van Loan and Pitsianis (1993), hash tables as a linear problem. Sums of pools are
fitted part by part, each to what the others leave. What a single pool does stands in ``smh/models/fitters.py``.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate
from smh.core.grid import grid
from smh.core.initial import initial_variables
from smh.core.plan import Plan
from smh.core.pools import Pool, Sum
from smh.core.pools.base import Leaf
from smh.core.scales import LEAST, LIMIT
from smh.core.tensors import TensorSpec
from smh.errors import PlanError, SmhError, UnknownNameError, VariableError, near_names
from smh.models.fitters import FITTERS, KERNELS, ROUNDS, STALL, Variables, can_fit, fit_leaf

_SMOOTH = NumpyKernels(smooth=True)
_BLOCK = 1 << 16  # elements that are held in float64 at a time
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
        The wanted weights, one array for every tensor of the plan, in its viewed shape. Each is asked for up to three
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

    Variables are on their grids at last: one factor is rounded, the other fitted anew to it and rounded in its turn,
    and scales are fitted to the weights that the integers generate. Wanted weights are held in float32, sums in
    float64; it takes up to four times the memory of the weights in float32.

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
        unrounded, pool = _fit_pool(plan, wanted, used, bars)
        del wanted, used
        variables = pool | _fit_scales(KERNELS, plan, values, pool, scales, bars)
        unrounded |= _fit_scales(_SMOOTH, plan, values, unrounded, scales, bars)
        report = _report(plan, values, variables, unrounded, bars)
    if report.error > _LOST:
        warnings.warn(
            f"the fitted weights are off by {report.error:.2f} of the given ones: most of the model is lost, and "
            "training must follow. A larger ratio, or leaving out what fits badly (exclude), keeps more",
            UserWarning,
            stacklevel=2,
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
    narrow = x.astype(np.float32)
    bad = x.size - np.count_nonzero(np.isfinite(narrow))
    if bad:
        raise VariableError(f"{what} must be finite in float32; got {bad} of {x.size} that are not: mend the model")
    canonical = tensor.view.invert(np, narrow, tensor.shape) if tensor.view else narrow
    return np.reshape(canonical, (-1,))


def _wanted(
    plan: Plan, values: Mapping[str, np.ndarray], bars: Progress
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return the scale of every tensor, the wanted virtual weights, and which of them are wanted; shape (capacity,)."""
    scales = {}
    shared = plan.layout == "cyclic" and plan.num_weights > plan.capacity
    wanted: np.ndarray = np.zeros(plan.capacity, dtype=np.float64 if shared else np.float32)
    squares: np.ndarray = np.zeros(plan.capacity if shared else 0)
    used = np.zeros(plan.capacity, dtype=bool)
    for tensor in bars.track(plan.tensors, description="reading tensors"):
        target = _target(tensor, values)
        scale = tensor.initial_scale
        if tensor.learn_scale:
            scale = math.sqrt(_dot(target, target) / target.size)
            scale = float(np.float32(min(max(scale, LEAST), LIMIT / 2))) if scale else 0.0
        largest = max(float(np.max(target)), -float(np.min(target)))
        if largest >= _FAR * scale > 0.0:
            raise VariableError(
                f"the values of {tensor.name!r} must be below 2**40 times its scale {scale:.4g}; got magnitude "
                f"{largest:.4g}: make a plan with learnable scales, or a larger one"
            )
        for cells, elements in _shown(plan, tensor):
            if shared:
                wanted[cells] += scale * target[elements]
                squares[cells] += scale * scale
            elif scale:
                wanted[cells] = target[elements] / scale
            if scale:
                used[cells] = True
        scales[tensor.name] = scale
    if shared:
        np.divide(wanted, squares, out=wanted, where=used)
    if used.all():
        used = np.broadcast_to(np.True_, used.shape)  # of no memory
    return scales, wanted.astype(np.float32, copy=False), used


def _shown(plan: Plan, tensor: TensorSpec) -> Iterator[tuple[slice, slice]]:
    """Iterate over ranges of virtual weights, each with the range of a tensor's elements that shows it."""
    at = tensor.offset
    while at < tensor.stop and (plan.layout == "cyclic" or at < plan.capacity):
        first = at % plan.capacity
        count = min(plan.capacity - first, tensor.stop - at)
        yield slice(first, first + count), slice(at - tensor.offset, at - tensor.offset + count)
        at += count


def _fit_pool(plan: Plan, wanted: np.ndarray, used: np.ndarray, bars: Progress) -> tuple[Variables, Variables]:
    """Return pool variables for the wanted virtual weights, unrounded and rounded to integers.

    Leaf by leaf, each is fitted to what the integers of the others leave.
    """
    leaves = list(plan.pool.leaves(plan.seed))
    initial = initial_variables(plan)
    parts: list[tuple[Variables, Variables]] = [({}, {}) for _ in leaves]
    shares = [np.zeros(leaf.pool.capacity if len(leaves) > 1 or not used.all() else 0, np.float32) for leaf in leaves]
    best, least = parts, math.inf
    for _ in range(ROUNDS):
        parts = list(parts)
        for p, leaf in enumerate(leaves):
            task = bars.add_task(f"fitting the pool, part {p + 1} of {len(leaves)}", total=1.0)
            tick = functools.partial(_tick, bars, task)
            start = {name: initial[f"pool/{leaf.path}{name}"] for name in leaf.pool.local_shapes()}
            if len(leaves) == 1:
                present = shares[0] if shares[0].size else wanted
                parts[p] = fit_leaf(leaf, wanted, used, present, start, tick)
            else:
                parts[p] = fit_leaf(leaf, _less(wanted, shares[:p] + shares[p + 1 :]), used, shares[p], start, tick)
                shares[p] = _virtual_weights(leaf, parts[p][1])
            bars.update(task, completed=1.0)
        if len(leaves) == 1:
            best = parts
            break
        error = float(np.linalg.norm(_less(wanted, shares)[used]))
        stalled = error >= (1.0 - STALL) * least
        if error < least:
            best, least = parts, error
        if stalled:
            break
    unrounded, rounded = (
        {f"pool/{leaf.path}{name}": x for leaf, part in zip(leaves, best, strict=True) for name, x in part[k].items()}
        for k in (0, 1)
    )
    return unrounded, rounded


def _tick(bars: Progress, task: TaskID, what: str, share: float) -> None:
    description = bars.tasks[task].description.partition(":")[0]
    bars.update(task, description=f"{description}: {what}", completed=min(share, 1.0))


def _virtual_weights(leaf: Leaf, part: Variables) -> np.ndarray:
    """Return all virtual weights of a leaf."""
    pool = leaf.pool
    grids = {
        name: grid(KERNELS, x, pool.grid_bits, 30, 30, pool.exponent(k)) for k, (name, x) in enumerate(part.items())
    }
    return np.asarray(pool.virtual_weights(KERNELS, grids, 0, pool.capacity, leaf.seed))


def _less(wanted: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """Return what some leaves, whose capacities may be larger, leave of the wanted virtual weights."""
    return functools.reduce(lambda rest, share: rest - share[: wanted.size], shares, wanted)


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
    for tensor in bars.track(learnable, description="fitting scales"):
        v = generate.cells(kernels, plan, grids, tensor.offset, tensor.stop)
        scale = _best_scale(tensor, v, _target(tensor, values), scales[tensor.name])
        found[tensor.scale_variable] = np.asarray(scale * 2.0**tensor.kappa, dtype=np.float32)
    return found


def _best_scale(tensor: TensorSpec, v: np.ndarray, target: np.ndarray, scale: float) -> float:
    """Return the better of two scales for virtual weights v: the one given, and that of least squares.

    Virtual weights of next to nothing tell no scale, and with a scale of 0 could not be trained: they keep theirs.
    """
    if math.sqrt(_dot(v, v) / v.size) < _FAINT:
        return scale or tensor.initial_scale
    relu = "relu" in tensor.modifiers
    v = np.maximum(v, np.float32(0.0)) if relu else v
    energy, shared = _dot(v, v), _dot(v, target)
    least = float(np.float32(shared / energy)) if energy else scale
    least = 0.0 if abs(least) < LEAST else math.copysign(min(abs(least), LIMIT / 2), least)
    if relu and least <= 0.0:
        return scale
    return min(scale, least, key=lambda s: s * s * energy - 2.0 * s * shared)


def _report(
    plan: Plan, values: Mapping[str, np.ndarray], variables: Variables, unrounded: Variables, bars: Progress
) -> FitReport:
    """Return the errors of the weights that are generated, one tensor at a time."""
    errors, off, before, whole = {}, 0.0, 0.0, 0.0
    ways = [
        ((kernels, plan, generate.put_on_grids(kernels, plan, given)), given)
        for kernels, given in ((KERNELS, variables), (_SMOOTH, unrounded))
    ]
    for tensor in bars.track(plan.tensors, description="measuring errors"):
        target = _target(tensor, values)
        distance, before_here = (
            _distance(generate.weights_of(*way, tensor, generate.scale_of(way[0], tensor, given)), target)
            for way, given in ways
        )
        norm = math.sqrt(_dot(target, target))
        before = math.hypot(before, before_here)
        errors[tensor.name] = distance / norm if norm else distance
        off, whole = math.hypot(off, distance), math.hypot(whole, norm)
    return FitReport(errors, off / (whole or 1.0), before / (whole or 1.0))


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product of two vectors, added in float64."""
    blocks = range(0, x.size, _BLOCK)
    return sum(float(x[k : k + _BLOCK].astype(np.float64) @ y[k : k + _BLOCK]) for k in blocks)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the norm of the difference of two vectors, added in float64."""
    blocks = (np.subtract(x[k : k + _BLOCK], y[k : k + _BLOCK], dtype=np.float64) for k in range(0, x.size, _BLOCK))
    return math.sqrt(sum(float(block @ block) for block in blocks))
