"""Weights from variables, and gradients of variables from gradients of weights (specification, sections 3 to 7).

variables -> integers (grid) -> virtual weights (pool) -> cells (layout) -> scale, modifiers -> view
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from smh.core import layout, scales
from smh.core.grid import Grid, exponent_of, grid, power_bound
from smh.core.kernels import Array, Kernels
from smh.core.plan import Plan
from smh.core.pools import Matmul
from smh.core.tensors import TensorSpec
from smh.errors import VariableError, near_names


class Part(NamedTuple):
    """A tensor, its cleaned scale, and its cotangent in canonical order, or None."""

    tensor: TensorSpec
    scale: Array | float
    g: Array | None = None


def materialize(
    kernels: Kernels, plan: Plan, variables: Mapping[str, Array], names: Iterable[str] | None = None
) -> dict[str, Array]:
    """Build weights from variables: see :func:`smh.materialize`.

    Computes only the virtual weights of the named tensors.
    """
    selected = plan.select(names)
    check_variables(kernels, plan, variables)
    return build(kernels, plan, put_on_grids(kernels, plan, variables), variables, selected)


def build(
    kernels: Kernels,
    plan: Plan,
    grids: Mapping[str, Grid],
    variables: Mapping[str, Array],
    tensors: Sequence[TensorSpec],
) -> dict[str, Array]:
    """Return the weights of tensors, given the pool on its grids. Of the variables, reads only scales."""
    parts = [Part(tensor, scale_of(kernels, tensor, variables)) for tensor in tensors]
    weights = {}
    for tensor, w in zip(tensors, weights_of(kernels, plan, grids, parts), strict=True):
        w = kernels.xp.reshape(w, tensor.shape)
        weights[tensor.name] = tensor.view.apply(kernels.xp, w) if tensor.view else w
    return weights


def vjp(
    kernels: Kernels, plan: Plan, variables: Mapping[str, Array], cotangents: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the gradient of every variable: see :func:`smh.vjp`."""
    check_variables(kernels, plan, variables)
    check_cotangents(kernels, plan, cotangents)
    xp, parts = kernels.xp, []
    for tensor in plan.tensors:
        g = cotangents.get(tensor.name)
        if g is not None:
            g = xp.reshape(tensor.view.invert(xp, g, tensor.shape) if tensor.view else g, (-1,))
        parts.append(Part(tensor, scale_of(kernels, tensor, variables), g))
    gradients = pull(kernels, plan, put_on_grids(kernels, plan, variables), parts)
    return {name: gradients[name] for name in plan.variable_shapes}


def put_on_grids(kernels: Kernels, plan: Plan, variables: Mapping[str, Array]) -> dict[str, Grid]:
    """Return all arrays of the pool on their grids, by name without ``pool/`` (specification, section 3.2)."""
    return {
        leaf.path + name: grid(
            kernels, variables[f"pool/{leaf.path}{name}"], leaf.pool.grid_bits, 30, 30, leaf.pool.exponent(array)
        )
        for leaf in plan.pool.leaves(plan.seed)
        for array, name in enumerate(leaf.pool.local_shapes())
    }


def grids_of(
    kernels: Kernels,
    plan: Plan,
    integers: Mapping[str, Array],
    exponents: Mapping[str, int | None],
    cast: bool = True,
) -> dict[str, Grid]:
    """Return the grids of a pool that is given as integers: what :func:`put_on_grids` returns for their values.

    Parameters
    ----------
    integers : mapping of str to array
        The integers of every array of the pool, in its shape and any type that holds them, by name without ``pool/``.
    exponents : mapping of str to int or None
        Their exponents, None for an array whose integers are all 0.
    cast : bool
        Whether the grids have float32 integers, which all kernels accept.
    """
    xp, grids = kernels.xp, {}
    for leaf in plan.pool.leaves(plan.seed):
        for name in leaf.pool.local_shapes():
            q, e = integers[leaf.path + name], exponents[leaf.path + name]
            unit, power = (1.0, 0.0) if e is None else (2.0 ** (e - leaf.pool.grid_bits), 2.0**e)
            unit, power = (xp.asarray(x, dtype=xp.float32, device=kernels.device(q)) for x in (unit, power))
            grids[leaf.path + name] = Grid(xp.astype(q, xp.float32) if cast else q, unit, power)
    return grids


def on_grid(kernels: Kernels, plan: Plan, variables: Mapping[str, Array]) -> dict[str, Array]:
    """Return the variables with every array of the pool rounded to its grid, as in files: zeros are +0."""
    grids = put_on_grids(kernels, plan, variables)
    return dict(variables) | {f"pool/{name}": one.integers * one.unit + 0.0 for name, one in grids.items()}


def scale_of(kernels: Kernels, tensor: TensorSpec, variables: Mapping[str, Array]) -> Array | float:
    """Return the cleaned scale of a tensor."""
    if not tensor.learn_scale:
        return tensor.initial_scale
    return scales.cleaned(kernels, variables[tensor.scale_variable], tensor.kappa)


def weights_of(kernels: Kernels, plan: Plan, grids: Mapping[str, Grid], parts: Sequence[Part]) -> list[Array]:
    """Return the weights of tensors in canonical order, shapes (size,), before the view."""
    pool = plan.pool
    if parts and isinstance(pool, Matmul) and all(tensor.stop <= pool.capacity for tensor, _, _ in parts):
        left, right = grids["left"], grids["right"]
        places = [(scale, tensor.offset, tensor.stop) for tensor, scale, _ in parts]
        weights = kernels.scaled_products(
            left.integers, right.integers, pool.unit(kernels, left, right), pool.exact_terms, places
        )
    else:
        weights = [
            kernels.scale(cells(kernels, plan, grids, tensor.offset, tensor.stop), scale) for tensor, scale, _ in parts
        ]
    return [scales.modified(kernels, w, part.tensor.modifiers) for w, part in zip(weights, parts, strict=True)]


def cells(kernels: Kernels, plan: Plan, grids: Mapping[str, Grid], start: int, stop: int) -> Array:
    """Return the virtual weights of the cells ``start`` to ``stop``, shape (stop - start,)."""
    read = functools.partial(plan.pool.virtual_weights, kernels, grids, seed=plan.seed)
    return layout.cells(kernels, plan.layout, plan.capacity, read, start, stop)


def pull(kernels: Kernels, plan: Plan, grids: Mapping[str, Grid], parts: list[Part]) -> dict[str, Array]:
    """Return the gradients of all variables, given the cotangents of all tensors (specification, section 7)."""
    fused = _fused(kernels, plan, grids, parts)
    if fused is not None:
        return fused
    xp = kernels.xp
    healthy = xp.isfinite(sum(one.unit for one in grids.values()))
    bound = plan.pool.bound(kernels, grids)
    gradients, dv = {}, []
    like = next(iter(grids.values())).integers
    for tensor, scale, g in parts:
        if g is None:
            dv.append(xp.zeros((tensor.size,), dtype=xp.float32, device=kernels.device(like)))
            gradients[tensor.scale_variable] = xp.zeros((), dtype=xp.float32, device=kernels.device(like))
            continue
        if tensor.learn_scale or tensor.modifiers:
            v = cells(kernels, plan, grids, tensor.offset, tensor.stop)
            g = scales.masked(kernels, g, kernels.scale(v, scale), tensor.modifiers)
            if tensor.learn_scale:
                e = _bound(kernels, plan, bound, tensor, v)
                gradients[tensor.scale_variable] = scales.gradient(kernels, g, v, e, healthy, tensor.kappa)
        s = scale if tensor.learn_scale else xp.asarray(scale, dtype=xp.float32, device=kernels.device(like))
        dv.append(kernels.times(s, g))
    joined = layout.cotangents(kernels, plan.layout, plan.capacity, dv[0] if len(dv) == 1 else xp.concat(dv))
    pulled = plan.pool.vjp(kernels, grids, joined, plan.seed)
    return gradients | {f"pool/{name}": x for name, x in pulled.items()}


def indices(kernels: Kernels, plan: Plan, i: Array) -> dict[str, Array]:
    """Return the hash index of virtual weights: see :meth:`smh.core.pools.Pool.indices`."""
    return {f"pool/{name}": found for name, found in plan.pool.indices(kernels, i, plan.seed).items()}


def _bound(kernels: Kernels, plan: Plan, bound: Array | None, tensor: TensorSpec, v: Array) -> Array:
    """Return E of a tensor (specification, section 4.6)."""
    xp = kernels.xp
    if bound is None:
        return exponent_of(kernels, power_bound(kernels, xp.max(xp.abs(v)), -88, 128))
    if plan.layout == "padding" and tensor.stop > plan.capacity:
        return xp.where(bound < layout.PADDING_EXPONENT, float(layout.PADDING_EXPONENT), bound)
    return bound


def _fused(kernels: Kernels, plan: Plan, grids: Mapping[str, Grid], parts: list[Part]) -> dict[str, Array] | None:
    """Return the result of the kernel for matmul pools, or None without such a kernel or with a cyclic layout."""
    pool = plan.pool
    if not isinstance(pool, Matmul) or plan.num_weights > plan.capacity or any(t.modifiers for t, _, _ in parts):
        return None
    gradients = kernels.matmul_gradients(grids["left"], grids["right"], pool.exact_terms, pool.factor, parts)
    if gradients is None:
        return None
    left, right, of_scales = gradients
    named = {part.tensor.scale_variable: x for part, x in zip(parts, of_scales, strict=True)}
    return named | {"pool/left": left, "pool/right": right}


def check_variables(kernels: Kernels, plan: Plan, variables: Mapping[str, Array]) -> None:
    """Raise :class:`~smh.VariableError` unless the variables are exactly those of the plan."""
    shapes = plan.variable_shapes
    for name in variables:
        if name not in shapes:
            raise VariableError(f"the plan has no variable {name!r}: {near_names(str(name), shapes)}")
    for name, shape in shapes.items():
        if name not in variables:
            raise VariableError(f"variable {name!r} is missing: the plan needs it with shape {shape}, float32")
        _check_array(kernels, f"variable {name!r}", variables[name], shape)


def check_cotangents(kernels: Kernels, plan: Plan, cotangents: Mapping[str, Array]) -> None:
    """Raise unless every cotangent belongs to a tensor and has its viewed shape."""
    for tensor in plan.select(cotangents):
        _check_array(kernels, f"the cotangent of {tensor.name!r}", cotangents[tensor.name], tensor.viewed_shape)


def _check_array(kernels: Kernels, what: str, x: Array, shape: tuple[int, ...]) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise VariableError(f"{what} must be an array of this backend, float32; got {type(x).__name__}")
    if kernels.array_types and type(x) not in kernels.array_types:
        wanted = f"{kernels.array_types[0].__module__}.{kernels.array_types[0].__qualname__}"
        raise VariableError(
            f"{what} must be a plain {wanted}; smh.numpy, smh.torch, smh.jax and smh.keras take the arrays of their "
            f"framework; got {type(x).__module__}.{type(x).__qualname__}"
        )
    if tuple(x.shape) != shape:
        raise VariableError(f"{what} must have shape {shape}; got {tuple(x.shape)}")
    if x.dtype != kernels.xp.float32:
        raise VariableError(f"{what} must be float32; got {x.dtype}: convert it first")
