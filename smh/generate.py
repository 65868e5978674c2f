"""Weights from variables, and gradients back: the whole way through the core (specification, sections 4 to 7).

    variables -> virtual weights (pool) -> cells (layout) -> scale, modifiers -> canonical shape -> view

Both directions are written once, here; a backend brings its namespace and registers the second as the derivative of the
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType

from smh import exact, fast, layout, scales
from smh.errors import UnknownNameError, VariableError, near_names
from smh.grid import flush
from smh.ops import Array, Ops
from smh.plan import Plan
from smh.pools import BoundPool
from smh.tensors import TensorSpec

_ARITHMETIC: dict[str, ModuleType] = {"exact": exact, "fast": fast}


def materialize(
    ops: Ops, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
) -> dict[str, Array]:
    """Build weights from variables.

    Parameters
    ----------
    ops : Ops
        The namespace of the variables.
    plan : Plan
        What to build.
    variables : mapping of str to array, float32
        All variables of the plan.
    names : iterable of str, optional
        The tensors to build; all by default. Only the virtual weights that they show are computed.

    Returns
    -------
    dict of str to array, float32
        In their viewed shapes.

    Raises
    ------
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.
    UnknownNameError
        If the plan has no tensor of that name.
    """
    chosen = plan.select(names)
    check_variables(ops, plan, variables)
    arithmetic = _ARITHMETIC[plan.arithmetic]
    pool = _bind(ops, plan, variables)
    weights = {}
    for tensor in chosen:
        v = layout.read(ops, plan.layout, pool, tensor.offset, tensor.stop)
        w = scales.apply(ops, arithmetic, _scale(ops, tensor, variables), tensor.modifiers, v)
        w = ops.xp.reshape(w, tensor.shape)
        weights[tensor.name] = tensor.view.apply(ops.xp, w) if tensor.view else w
    return weights


def vjp(ops: Ops, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
    """Return the gradient of every variable: the vector-Jacobian product of :func:`materialize`.

    Parameters
    ----------
    ops : Ops
        The namespace of the arrays.
    plan : Plan
        What was built.
    variables : mapping of str to array, float32
        All variables of the plan.
    cotangents : mapping of str to array, float32
        Gradients with respect to weights, in their viewed shapes; tensors that are not named have none.

    Returns
    -------
    dict of str to array, float32
        One gradient for every variable, in the plan's order.

    Raises
    ------
    VariableError
        If a variable or cotangent has the wrong name, shape or dtype.
    UnknownNameError
        If the plan has no tensor of a cotangent's name.
    """
    check_variables(ops, plan, variables)
    check_cotangents(ops, plan, cotangents)
    xp = ops.xp
    arithmetic = _ARITHMETIC[plan.arithmetic]
    pool = _bind(ops, plan, variables)
    some = next(iter(variables.values()))
    cells = []
    gradients = {}
    for tensor in plan.tensors:
        if tensor.name not in cotangents:
            cells.append(xp.zeros((tensor.size,), dtype=xp.float32, device=ops.device(some)))
            if tensor.learn_scale:
                gradients[tensor.scale_variable] = xp.zeros((), dtype=xp.float32, device=ops.device(some))
            continue
        g = cotangents[tensor.name]
        g = tensor.view.invert(xp, g, tensor.shape) if tensor.view else g
        g = flush(xp, xp.reshape(g, (-1,)))
        scale = _scale(ops, tensor, variables)
        if tensor.learn_scale or tensor.modifiers:
            v = layout.read(ops, plan.layout, pool, tensor.offset, tensor.stop)
            g = scales.pull(ops, scale, tensor.modifiers, v, g)
            if tensor.learn_scale:
                gradients[tensor.scale_variable] = arithmetic.dot(ops, g, v)
        cells.append(flush(xp, g * scale))
    flat = cells[0] if len(cells) == 1 else xp.concat(cells)
    dv = layout.scatter(ops, plan.layout, plan.capacity, flat)
    gradients.update({f"pool/{name}": gradient for name, gradient in pool.pull(dv).items()})
    return {name: gradients[name] for name in plan.variable_shapes}


def indices(ops: Ops, plan: Plan, i: Array) -> dict[str, Array]:
    """Return the hash index: which elements of which variables virtual weights read.

    Parameters
    ----------
    ops : Ops
        The namespace of ``i``.
    plan : Plan
        The plan.
    i : array, shape (k,), int64
        Virtual weights, in ``[0, capacity)``.

    Returns
    -------
    dict of str to array, shape (k, terms), int64
        For each pool variable the flat indices into it, in the order in which the terms are added.
    """
    return {f"pool/{name}": found for name, found in plan.pool.indices(ops, i, plan.seed).items()}


def check_variables(ops: Ops, plan: Plan, variables: Mapping[str, Array]) -> None:
    """Raise :class:`~smh.VariableError` unless the variables are exactly those of the plan."""
    shapes = plan.variable_shapes
    for name in variables:
        if name not in shapes:
            raise VariableError(f"the plan has no variable {name!r}: {near_names(name, shapes)}")
    for name, shape in shapes.items():
        if name not in variables:
            raise VariableError(f"variable {name!r} is missing: the plan needs it with shape {shape}, float32")
        _check_array(ops, f"variable {name!r}", variables[name], shape)


def check_cotangents(ops: Ops, plan: Plan, cotangents: Mapping[str, Array]) -> None:
    """Raise unless every cotangent is that of a tensor, in its viewed shape."""
    known = {tensor.name: tensor for tensor in plan.tensors}
    for name, cotangent in cotangents.items():
        if name not in known:
            raise UnknownNameError(f"the plan has no tensor {name!r}: {near_names(name, known)}")
        _check_array(ops, f"the cotangent of {name!r}", cotangent, known[name].viewed_shape)


def _check_array(ops: Ops, what: str, x: Array, shape: tuple[int, ...]) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise VariableError(f"{what} must be an array of this backend, float32; got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise VariableError(f"{what} must have shape {shape}; got {tuple(x.shape)}")
    if x.dtype != ops.xp.float32:
        raise VariableError(f"{what} must be float32; got {x.dtype}: convert it first")


def _bind(ops: Ops, plan: Plan, variables: Mapping[str, Array]) -> BoundPool:
    own = {name: variables[f"pool/{name}"] for name in plan.pool.variable_shapes()}
    return plan.pool.bind(ops, _ARITHMETIC[plan.arithmetic], own, plan.seed)


def _scale(ops: Ops, tensor: TensorSpec, variables: Mapping[str, Array]) -> Array | float:
    if not tensor.learn_scale:
        return tensor.initial_scale
    return flush(ops.xp, variables[tensor.scale_variable])
