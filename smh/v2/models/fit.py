"""Fitting: variables whose generated weights come close to given ones, such as those of a trained model.

The way of the data, :mod:`smh.generate` walked backwards:

    weights -> canonical shape (view) -> v wanted in every cell (scale) -> virtual vector (layout) -> pool -> scales

Every tensor is divided by its scale, and the pool then takes the least squares of all virtual weights alike. A single
pool reaches the optimum of that: a matrix product by the theorem of Eckart and Young, a sum of Kronecker products by
the same after the rearrangement of Van Loan and Pitsianis (1993), hash tables as a linear problem. Sums of pools are
fitted part by part, each to what the others leave.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from smh.v2 import exact
from smh.v2.core import generate, layout
from smh.v2.core.grid import flush
from smh.v2.core.initial import initial_variables
from smh.v2.core.kernels import InPlaceOps
from smh.v2.core.plan import Plan
from smh.v2.core.pools import Hash, Kronecker, Matmul, Pool, Sum
from smh.v2.core.pools.base import Leaf
from smh.v2.core.tensors import TensorSpec
from smh.v2.errors import PlanError, SmhError, UnknownNameError, VariableError, near_names

_OPS = InPlaceOps(np)
_ROUNDS = 8  # of filling unused virtual weights, and of refitting the parts of a sum, at most
_STALL = 1e-3  # what one more round must take off the error, relatively
_LARGEST = float(np.finfo(np.float32).max)
_FAR = 2.0**100  # virtual weights from here on leave float32 no room for the arithmetic of pools
_FAINT = 2.0**-20  # virtual weights are meant to have unit mean square; what is this small is rounding errors
_SPARE = 2.0**-30  # singular values this small, relative to the largest, are rounding errors

_Variables = dict[str, np.ndarray]
_Fitter = Callable[[Any, int, np.ndarray, np.ndarray, _Variables], _Variables]


@dataclass(frozen=True)
class FitReport:
    """How close the weights of fitted variables are; ``str`` gives a paragraph, rich prints a table.

    Attributes
    ----------
    errors : dict of str to float
        By tensor ``||w - target|| / ||target||`` in the Frobenius norm, or ``||w||`` for a target of zeros.
    error : float
        The same of all tensors as one vector.
    """

    errors: dict[str, float]
    error: float

    def __str__(self) -> str:
        """Return a paragraph: the error of all weights, and the tensors that are furthest off."""
        worst = sorted(self.errors, key=lambda name: -self.errors[name])[:3]
        return (
            f"The weights of {len(self.errors)} tensors are generated with a relative error of {self.error:.3g}; "
            f"furthest off: {', '.join(f'{name!r} {self.errors[name]:.3g}' for name in worst)}."
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

    Notes
    -----
    Learnable scales become the root mean square of their tensor, and at last what fits best to the fitted pool; fixed
    ones stay. Where cells of several tensors show one virtual weight (cyclic layout), it gets the value with the least
    squared error of their weights; cells of the padding cannot be fitted. Virtual weights that nothing shows are filled
    in so that the others come out better.

    Modifiers are no part of the fit of the pool: scaled virtual weights are fitted to the target itself. The report is
    about the weights after modifiers, so it shows where a target is out of their reach.

    Everything is computed in float64. Terms of a matrix product that the target does not need get left variables of 0
    and right ones like the initial ones, so that training can use them. A learnable scale of zeros becomes 0.

    Examples
    --------
    >>> import numpy as np
    >>> from smh.v2.core.plan import Plan
    >>> target = np.outer(np.arange(1, 9), np.arange(1, 9)) / 8.0
    >>> plan = Plan.build({"fc": (8, 8)}, ratio=0.25)
    >>> variables, report = fit_variables(plan, {"fc": target})
    >>> {name: x.shape for name, x in variables.items()}
    {'pool/left': (8, 1), 'pool/right': (1, 8), 'scale/fc': ()}
    >>> report.error < 1e-6
    True
    """
    _check_scipy()
    _check_pool(plan.pool)
    _check_names(plan, values)
    with Progress(console=Console(stderr=True), disable=not progress) as bars:
        scales, wanted, used = _wanted(plan, values, bars)
        step = bars.add_task("fitting the pool", total=None)
        fitted = _fit_pool(plan, wanted, used)
        bars.update(step, total=1, completed=1)
        variables = {f"pool/{name}": x for name, x in fitted.items()}
        variables |= _fit_scales(plan, values, fitted, scales, bars)
        return variables, _report(plan, values, variables, bars)


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
    elif type(pool) not in _FITTERS:
        kinds = ", ".join(cls.kind for cls in _FITTERS)
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
    """Return the wanted weights of a tensor in canonical order, shape (size,), float64, or raise VariableError."""
    what, x = f"the values of {tensor.name!r}", values[tensor.name]
    if not isinstance(x, (np.ndarray, np.generic)):
        raise VariableError(f"{what} must be a NumPy array; got {type(x).__name__}: convert them with numpy.asarray")
    if x.dtype.kind == "b" or not np.can_cast(x.dtype, np.float64, "same_kind"):
        raise VariableError(f"{what} must be real numbers, such as float32; got dtype {x.dtype}")
    if x.shape != tensor.viewed_shape:
        raise VariableError(f"{what} must have shape {tensor.viewed_shape}, as the model has it; got {x.shape}")
    wide = x.astype(np.float64)
    bad = np.count_nonzero(~(np.abs(wide) <= _LARGEST))
    if bad:
        raise VariableError(f"{what} must be finite in float32; got {bad} of {x.size} that are not: mend the model")
    canonical = tensor.view.invert(np, wide, tensor.shape) if tensor.view else wide
    return np.reshape(canonical, (-1,))


def _wanted(
    plan: Plan, values: Mapping[str, np.ndarray], bars: Progress
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return the scale of every tensor, the wanted virtual weights, and which of them are wanted; shape (capacity,)."""
    scales = {}
    wanted, squares = np.zeros(plan.capacity), np.zeros(plan.capacity)
    for tensor in bars.track(plan.tensors, description="reading tensors"):
        target = _target(tensor, values)
        scale = tensor.initial_scale
        if tensor.learn_scale:
            scale = float(flush(np, np.float32(math.sqrt(np.mean(np.square(target))))))
        if np.max(np.abs(target)) >= _FAR * scale > 0.0:
            raise VariableError(
                f"the values of {tensor.name!r} must be below 2**100 times its fixed scale {scale:.4g}; got magnitude "
                f"{np.max(np.abs(target)):.4g}: make a plan with learnable scales, or a larger one"
            )
        for cells, elements in _shown(plan, tensor):
            wanted[cells] += scale * target[elements]
            squares[cells] += scale * scale
        scales[tensor.name] = scale
    used = squares > 0.0
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


def _fit_pool(plan: Plan, wanted: np.ndarray, used: np.ndarray) -> _Variables:
    """Return pool variables for the wanted virtual weights: leaf by leaf, each fitted to what the others leave."""
    leaves = list(plan.pool.leaves(plan.seed))
    initial = initial_variables(plan)
    parts: list[_Variables] = [{} for _ in leaves]
    shares = [np.zeros(leaf.pool.capacity, dtype=np.float32) for leaf in leaves]
    best, least = parts, math.inf
    for _ in range(_ROUNDS):
        parts = list(parts)
        for p, leaf in enumerate(leaves):
            rest = _less(wanted, shares[:p] + shares[p + 1 :])
            start = {name: initial[f"pool/{leaf.path}{name}"] for name in leaf.pool.local_shapes()}
            parts[p] = _fit_leaf(leaf, rest, used, shares[p], start)
            shares[p] = leaf.pool.bind(_OPS, exact, parts[p], leaf.seed).read(0, leaf.pool.capacity)
        error = float(np.linalg.norm(_less(wanted, shares)[used]))
        stalled = error >= (1.0 - _STALL) * least
        if error < least:
            best, least = parts, error
        if stalled or len(leaves) == 1:
            break
    return {leaf.path + name: x for leaf, part in zip(leaves, best, strict=True) for name, x in part.items()}


def _less(wanted: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """Return what some leaves, whose capacities may be larger, leave of the wanted virtual weights."""
    return functools.reduce(lambda rest, share: rest - share[: wanted.size], shares, wanted)


def _fit_leaf(leaf: Leaf, wanted: np.ndarray, used: np.ndarray, present: np.ndarray, initial: _Variables) -> _Variables:
    """Return the variables of a leaf, float32, with its gain; what is not used starts from its ``present`` values."""
    target, fixed = present.astype(np.float64), np.zeros(present.shape, dtype=bool)
    fixed[: used.size] = used
    np.copyto(target[: used.size], wanted, where=used)
    shrink = 2.0**-leaf.pool.gain
    plain = {name: x.astype(np.float64) / shrink for name, x in initial.items()}
    found = _FITTERS[type(leaf.pool)](leaf.pool, leaf.seed, target, fixed, plain)
    return {name: np.ascontiguousarray(x * shrink, dtype=np.float32) for name, x in found.items()}


def _fit_matmul(pool: Matmul, seed: int, target: np.ndarray, used: np.ndarray, initial: _Variables) -> _Variables:
    """Return the factors of the nearest matrix of rank m (Eckart and Young; equation 4 of the paper)."""
    left, right = _low_rank(target.reshape(pool.side, -1), used.reshape(pool.side, -1), initial["right"])
    return {"left": left, "right": right}


def _fit_kronecker(pool: Kronecker, seed: int, target: np.ndarray, used: np.ndarray, initial: _Variables) -> _Variables:
    """Return the nearest sum of t Kronecker products (Van Loan and Pitsianis).

    With virtual weight (i1, i2, j1, j2) in row (i1, j1) and column (i2, j2) of a matrix, a product is a term of rank 1.
    """
    d, side, shape = math.isqrt(pool.side), pool.side, initial["right"].shape

    def rearranged(x: np.ndarray) -> np.ndarray:
        return x.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(side, side)

    left, right = _low_rank(rearranged(target), rearranged(used), initial["right"].reshape(-1, side))
    return {"left": left.T.reshape(shape), "right": right.reshape(shape)}


def _low_rank(wanted: np.ndarray, used: np.ndarray, initial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return factors close to a matrix where it is used, filling in what is not.

    Each round takes the present product for the unused elements, and the nearest matrix to that; the error of the
    used ones cannot grow. ``wanted`` holds first guesses where it is not used.
    """
    filled, once = wanted, len(initial) >= len(wanted) or bool(used.all())
    best, least = (np.zeros_like(initial).T, initial), math.inf
    for _ in range(_ROUNDS):
        left, right = _nearest(filled, initial)
        product = left @ right
        error = float(np.linalg.norm((product - wanted)[used]))
        stalled = error >= (1.0 - _STALL) * least
        if error < least:
            best, least = (left, right), error
        if stalled or once:
            break
        filled = np.where(used, wanted, product)
    return best


def _nearest(matrix: np.ndarray, initial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return left, (n, terms), and right, (terms, n), whose product is the nearest of its rank; both equally large.

    Right singular vectors are the eigenvectors of ``matrix.T @ matrix``, and left ones follow by projection: a fraction
    of the cost of a whole decomposition, for a distance above the least by 1e-8 of the matrix, which float32 hides.
    Terms that are not needed get the right factor of ``initial``, and zeros.
    """
    from scipy.linalg import eigh

    n, terms = len(matrix), len(initial)
    rank = min(n, terms)
    ascending = eigh(matrix.T @ matrix, subset_by_index=(n - rank, n - 1), overwrite_a=True, check_finite=False)[1]
    basis = ascending[:, ::-1]
    image = matrix @ basis
    singular = np.linalg.norm(image, axis=0)
    needed = np.flatnonzero(singular > _SPARE * singular.max())
    root = np.sqrt(singular[needed])
    size = math.sqrt(float(np.linalg.norm(matrix)) / n) or 1.0  # as large as the others, whose grid they share
    left, right = np.zeros((n, terms)), size * initial
    left[:, needed] = image[:, needed] / root
    right[needed, :] = (basis[:, needed] * root).T
    return left, right


def _fit_hash(pool: Hash, seed: int, target: np.ndarray, used: np.ndarray, initial: _Variables) -> _Variables:
    """Return the table with the least squared error; with one hash function its entries are the means of buckets."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import lsqr

    i = np.flatnonzero(used)
    (columns,) = pool.indices(_OPS, i, seed).values()
    signs = pool.signs(_OPS, i, seed).astype(np.float64)
    shape = initial["table"].shape
    size = math.prod(shape)
    if pool.hashes == 1:
        total = np.bincount(columns[:, 0], weights=signs[:, 0] * target[i], minlength=size)
        count = np.bincount(columns[:, 0], minlength=size)
        return {"table": (total / np.maximum(count, 1)).reshape(shape)}
    rows = np.arange(0, signs.size + 1, pool.hashes)
    design = csr_array((signs.reshape(-1), columns.reshape(-1), rows), shape=(i.size, size))
    # The solution of least norm; the tolerances are relative, and below the resolution of float32.
    return {"table": lsqr(design, target[i], atol=1e-10, btol=1e-10, iter_lim=2000)[0].reshape(shape)}


_FITTERS: dict[type[Pool], _Fitter] = {Matmul: _fit_matmul, Kronecker: _fit_kronecker, Hash: _fit_hash}


def _fit_scales(
    plan: Plan, values: Mapping[str, np.ndarray], fitted: _Variables, scales: Mapping[str, float], bars: Progress
) -> _Variables:
    """Return the learnable scales by variable, with the least squared error for the virtual weights that there are."""
    bound = plan.pool.bind(_OPS, exact, fitted, plan.seed)
    learnable = [tensor for tensor in plan.tensors if tensor.learn_scale]
    found = {}
    for tensor in bars.track(learnable, description="fitting scales"):
        v = layout.read(_OPS, plan.layout, bound, tensor.offset, tensor.stop).astype(np.float64)
        scale = _best_scale(tensor, v, _target(tensor, values), scales[tensor.name])
        found[tensor.scale_variable] = np.asarray(scale, dtype=np.float32)
    return found


def _best_scale(tensor: TensorSpec, v: np.ndarray, target: np.ndarray, scale: float) -> float:
    """Return the better of two scales for virtual weights v: the one given, and that of least squares.

    Virtual weights of next to nothing tell no scale, and with a scale of 0 could not be trained: they keep theirs.
    """
    if math.sqrt(np.mean(np.square(v))) < _FAINT:
        return scale or tensor.initial_scale
    relu = "relu" in tensor.modifiers
    v = np.maximum(v, 0.0) if relu else v
    energy = float(v @ v)
    least = float(np.float32(v @ target / energy)) if energy else scale
    if relu and least <= 0.0:
        return scale
    return min(scale, least, key=lambda s: float(np.linalg.norm(s * v - target)))


def _report(plan: Plan, values: Mapping[str, np.ndarray], variables: _Variables, bars: Progress) -> FitReport:
    """Return the errors of the weights that are generated, one tensor at a time."""
    errors, off, whole = {}, 0.0, 0.0
    for tensor in bars.track(plan.tensors, description="measuring errors"):
        w = generate.materialize(_OPS, plan, variables, [tensor.name])[tensor.name]
        target = values[tensor.name].astype(np.float64)
        distance, norm = float(np.linalg.norm(w - target)), float(np.linalg.norm(target))
        errors[tensor.name] = distance / norm if norm else distance
        off, whole = math.hypot(off, distance), math.hypot(whole, norm)
    return FitReport(errors, off / whole if whole else off)
