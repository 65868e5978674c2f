"""Weights from variables, and gradients back: the whole way through the core (specification, sections 4 to 7).

    variables -> virtual weights (pool) -> cells (layout) -> scale, modifiers -> canonical shape -> view

Both directions are written once, here; a backend brings its namespace and registers the second as the derivative of the
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from smh import exact, fast, layout, scales, stripes
from smh.errors import UnknownNameError, VariableError, near_names
from smh.ops import Array, Finish, Ops
from smh.plan import Plan
from smh.pools import BoundMatmul, BoundPool
from smh.stripes import Stripe
from smh.tensors import TensorSpec

Piece = tuple[TensorSpec, int, int]
"""A tensor, and a range of its weights."""
_ARITHMETIC: dict[str, ModuleType] = {"exact": exact, "fast": fast}
_TOGETHER = 1 << 20
"""How many virtual weights of small tensors are read at once where they are not kept."""


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
    cells = Cells(ops.sparing() if len(chosen) == 1 < len(plan.tensors) else ops, plan, variables)
    weights = {}
    for tensor, w in cells.whole(chosen):
        w = ops.xp.reshape(w, tensor.shape)
        weights[tensor.name] = tensor.view.apply(ops.xp, w) if tensor.view else w
    return weights


class Cells:
    """The weights of a plan, to be read in ranges: what all ranges share is prepared once.

    Parameters
    ----------
    ops : Ops
        The namespace of the variables.
    plan : Plan
        What to build.
    variables : mapping of str to array, float32
        All variables of the plan, which :func:`check_variables` accepts.
    """

    def __init__(self, ops: Ops, plan: Plan, variables: Mapping[str, Array]) -> None:
        self._ops = ops
        self._plan = plan
        self._variables = variables
        self._pool = _bind(ops, plan, variables)
        self._factors = _scaled_factors(plan, self._pool)

    def read(self, tensor: TensorSpec, start: int = 0, stop: int | None = None) -> Array:
        """Return the weights ``start`` to ``stop`` of a tensor, all by default, counted in its canonical order.

        Law: in exact arithmetic equal to the same slice of the whole tensor, bit for bit.

        Parameters
        ----------
        tensor : TensorSpec
            One of the plan's.
        start, stop : int
            A range that is not empty.

        Returns
        -------
        array, shape (stop - start,), float32
        """
        first, last = tensor.offset + start, tensor.stop if stop is None else tensor.offset + stop
        if self._factors is not None:
            (w,) = self._factors.read_scaled([(first, last, self._scale(tensor))])
        else:
            w = layout.read(self._ops, self._plan.layout, self._pool, first, last, self._finish(tensor))
        return self._ops.own(w) if self._ops.apart and last - first <= self._ops.block_elements else w

    def whole(self, tensors: Iterable[TensorSpec]) -> Iterator[tuple[TensorSpec, Array]]:
        """Iterate over tensors and all their weights, which overlap nowhere.

        Small tensors that follow one another in the plan are read together: each read of a factorized pool computes
        whole rows of its product, and may have to bring a factor to its grid.
        """
        for run in _neighbours(tensors, self._ops.together):
            if len(run) == 1:
                yield run[0], self.read(run[0])
                continue
            pieces = [(tensor, 0, tensor.size) for tensor in run]
            yield from ((tensor, w) for tensor, _, w in self._together(pieces, own=self._ops.apart))

    def pieces(self, tensors: Iterable[TensorSpec], most: int) -> Iterator[tuple[TensorSpec, int, Array]]:
        """Iterate over the weights of tensors, in memory for about ``most`` of them.

        Tensors that follow one another in the plan are read together, so that the work which a read takes, whatever
        its size, is not done for every one of them.

        Parameters
        ----------
        tensors : iterable of TensorSpec
            Some of the plan's.
        most : int
            How many weights are read at a time.

        Yields
        ------
        tuple of (TensorSpec, int, array)
            A tensor, the place of a piece in it, and the piece: together all weights of all tensors, in order.
        """
        for run in _runs(tensors, most):
            yield from self._together(run, own=False)

    def _together(self, run: Sequence[Piece], own: bool) -> Iterator[tuple[TensorSpec, int, Array]]:
        """Iterate over the weights of pieces that follow one another, read at once; ``own``: each has its memory."""
        ops, arithmetic = self._ops, _ARITHMETIC[self._plan.arithmetic]
        if self._factors is not None:
            found = self._factors.read_scaled(
                [(t.offset + start, t.offset + stop, self._scale(t)) for t, start, stop in run]
            )
            for (tensor, start, _), w in zip(run, found, strict=True):
                yield tensor, start, ops.own(w) if own else w
            return
        (head, start, _), (tail, _, stop) = run[0], run[-1]
        first = head.offset + start
        v = layout.read(ops, self._plan.layout, self._pool, first, tail.offset + stop)
        for tensor, start, stop in run:
            part = v[tensor.offset + start - first : tensor.offset + stop - first]
            finish = self._finish(tensor)
            yield (
                tensor,
                start,
                arithmetic.map_rows(ops, finish, part, 1) if own else arithmetic.map_own(ops, finish, part),
            )

    def _scale(self, tensor: TensorSpec) -> Array | float:
        return _scale(self._ops, self._plan, tensor, self._variables)

    def _finish(self, tensor: TensorSpec) -> Finish:
        return scales.finish(self._ops, self._scale(tensor), tensor.modifiers)


def _virtual_weights(ops: Ops, plan: Plan, pool: BoundPool, tensors: Iterable[TensorSpec]) -> Iterator[Array]:
    """Iterate over the virtual weights of tensors, which nobody keeps; neighbours are read together."""
    for run in _neighbours(tensors, _TOGETHER):
        first = run[0].offset
        v = layout.read(ops, plan.layout, pool, first, run[-1].stop)
        yield from (v[tensor.offset - first : tensor.stop - first] for tensor in run)


def _neighbours(tensors: Iterable[TensorSpec], most: int) -> Iterator[list[TensorSpec]]:
    """Gather tensors whose cells follow one another, up to ``most`` cells; a larger one is alone."""
    run: list[TensorSpec] = []
    for tensor in tensors:
        if run and (run[-1].stop != tensor.offset or tensor.stop - run[0].offset > most):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run


def _runs(tensors: Iterable[TensorSpec], most: int) -> Iterator[list[Piece]]:
    """Cut tensors into ranges, and gather those whose cells follow one another, up to ``most`` cells."""
    run: list[Piece] = []
    room = most
    for tensor in tensors:
        if run and run[-1][0].stop != tensor.offset:
            yield run
            run, room = [], most
        start = 0
        while start < tensor.size:
            stop = min(start + room, tensor.size)
            run.append((tensor, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield run
                run, room = [], most
    if run:
        yield run


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
    pool = _bind(ops, plan, variables)
    parts = []
    for tensor in plan.tensors:
        g = cotangents.get(tensor.name)
        if g is not None:
            g = xp.reshape(tensor.view.invert(xp, g, tensor.shape) if tensor.view else g, (-1,))
        parts.append((tensor, _scale(ops, plan, tensor, variables), g))
    like = next(iter(variables.values()))
    factors = _scaled_factors(plan, pool)
    if factors is None:
        gradients, of_scales = _pull_cells(ops, plan, pool, parts, like)
    else:
        gradients, of_scales = _pull_factors(ops, factors, parts, like)
    found = {f"pool/{name}": gradient for name, gradient in gradients.items()}
    found |= {tensor.scale_variable: x for tensor, x in zip(plan.tensors, of_scales, strict=True) if tensor.learn_scale}
    return {name: found[name] for name in plan.variable_shapes}


def _pull_cells(
    ops: Ops, plan: Plan, pool: BoundPool, parts: Sequence[tuple[TensorSpec, Any, Array | None]], like: Array
) -> tuple[dict[str, Array], list[Array | None]]:
    """Return the gradients of pool variables and of scales, through the cotangents of all cells."""
    arithmetic = _ARITHMETIC[plan.arithmetic]
    of_scales: list[Array | None] = []
    asked = [tensor for tensor, _, g in parts if g is not None and (tensor.learn_scale or tensor.modifiers)]
    virtual = _virtual_weights(ops, plan, pool, asked)

    def zeros(*shape: int) -> Array:
        return ops.xp.zeros(shape, dtype=ops.xp.float32, device=ops.device(like))

    cells = []
    for tensor, scale, g in parts:
        if g is None:
            of_scales.append(zeros())
            cells.append(Stripe(zeros(tensor.size)))
            continue
        of_scale = None
        if tensor.learn_scale or tensor.modifiers:
            v = next(virtual)
            g = scales.pull(ops, scale, tensor.modifiers, v, g)
            of_scale = arithmetic.dot_with_flushed(ops, g, v)
        of_scales.append(of_scale)
        cells.append(Stripe(g, arithmetic.flushed_times(ops, scale)))
    missing = layout.filled(plan.layout, plan.capacity, plan.num_weights) - plan.num_weights
    if missing:
        cells.append(Stripe(zeros(missing)))
    if plan.layout == "basic" and isinstance(pool, BoundMatmul):
        return pool.pull_parts(cells), of_scales
    joined = stripes.join(ops, arithmetic.map_rows, cells, like)
    return pool.pull(layout.scatter(ops, plan.layout, plan.capacity, joined)), of_scales


def _pull_factors(
    ops: Ops, factors: BoundMatmul, parts: Sequence[tuple[TensorSpec, Any, Array | None]], like: Array
) -> tuple[dict[str, Array], list[Array]]:
    """Return the same where rows of a factor take the scales."""
    known = []
    for tensor, scale, g in parts:
        if g is None:
            g = ops.xp.zeros((tensor.size,), dtype=ops.xp.float32, device=ops.device(like))
        known.append((tensor.offset, tensor.stop, scale, g))
    return factors.pull_scaled(known)


def _scaled_factors(plan: Plan, pool: BoundPool) -> BoundMatmul | None:
    """Return the pool if rows of a factor can take the scales: where no bits are promised, and no layout interferes."""
    plain = plan.layout == "basic" and not any(tensor.modifiers for tensor in plan.tensors)
    return pool if plan.arithmetic == "fast" and plain and isinstance(pool, BoundMatmul) else None


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


def _scale(ops: Ops, plan: Plan, tensor: TensorSpec, variables: Mapping[str, Array]) -> Array | float:
    if not tensor.learn_scale:
        return tensor.initial_scale
    scale: Array = _ARITHMETIC[plan.arithmetic].flush(ops.xp, variables[tensor.scale_variable])
    return scale
