"""The functions that take a plan and arrays, or a compressed pytree."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smh.api import Api
from smh.backends.jax import pytrees
from smh.backends.jax.adapter import backend
from smh.backends.jax.pytrees import Compressed
from smh.core.kernels import Array
from smh.core.plan import Plan
from smh.errors import PlanError
from smh.models.compression import check_fit, check_loaded

_api = Api(lambda: backend)
initialize = _api.initialize
vjp = _api.vjp


def materialize(
    plan: Plan | Compressed,
    variables: Mapping[str, Array] | None = None,
    names: Iterable[str] | None = None,
    *,
    max_bytes: int | None = None,
) -> Any:
    """Build weights from variables, differentiably.

    Parameters
    ----------
    plan : Compressed or Plan
        Compressed parameters, or a plan.
    variables : mapping of str to jax.Array, float32
        With a plan: all its variables, by name.
    names : iterable of str, optional
        With a plan: the tensors to build, all by default. The bits do not depend on what else is built.
    max_bytes : int, optional
        With a plan that came from elsewhere: the most bytes of weights to build; see :func:`smh.files.limits.default`.
        By default there is no limit.

    Returns
    -------
    pytree or dict of str to jax.Array
        Of compressed parameters, the pytree that was compressed, with generated weights, float32, in their places. Of a
        plan, the weights by name, in their viewed shapes.

    Raises
    ------
    PlanError
        If the first argument is neither.
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.
    UnknownNameError
        If the plan has no tensor of that name.
    LimitError
        If the weights are larger than ``max_bytes``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from smh.backends import jax as smh
    >>> compressed = smh.compress({"fc": {"kernel": jnp.ones((20, 5)), "bias": jnp.zeros(5)}}, ratio=0.4)
    >>> smh.materialize(compressed)["fc"]["kernel"].shape
    (20, 5)
    >>> list(smh.materialize(compressed.plan, compressed.variables))
    ['fc/kernel']
    """
    given = _plan_and_variables(plan, variables, max_bytes if names is None else names)
    if isinstance(plan, Compressed):
        return pytrees.materialize(backend, plan)
    return _api.materialize(*given, names, max_bytes=max_bytes)


def digest(plan: Plan | Compressed, variables: Mapping[str, Array] | None = None) -> str:
    """Return the SHA-256 of all generated weights: equal digests are equal bits, in every framework.

    Parameters
    ----------
    plan : Compressed or Plan
        Compressed parameters, or a plan.
    variables : mapping of str to jax.Array, float32
        With a plan: all its variables, by name.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    PlanError
        If the first argument is neither.
    VariableError
        If a variable is missing, unknown, or of the wrong shape or dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from smh.backends import jax as smh
    >>> compressed = smh.compress([jnp.ones((20, 5))], ratio=0.4)
    >>> smh.digest(compressed) == smh.digest(compressed.plan, compressed.variables)
    True
    """
    return _api.digest(*_plan_and_variables(plan, variables))


def save(
    path: str | os.PathLike[str],
    plan: Plan | Compressed,
    variables: Mapping[str, Array] | None = None,
    dense: Mapping[str, Array] | None = None,
    *,
    training: bool = False,
) -> str:
    """Write a checkpoint: one safetensors file with plan, integers of the pool, scales, kept arrays and the digest.

    The file is written beside its destination and moved there when it is complete.

    Parameters
    ----------
    path : str or path-like
        Where to.
    plan : Compressed or Plan
        Compressed parameters, or a plan.
    variables : mapping of str to jax.Array, float32
        With a plan: all its variables, by name.
    dense : mapping of str to jax.Array, optional
        With a plan: arrays that are kept as they are. Compressed parameters bring theirs, random keys by their data.
    training : bool
        Whether to store float32 values of the pool as well, so that training can go on where it stopped.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    PlanError
        If the second argument is neither.
    VariableError
        If an array cannot be stored, or does not fit the plan. Nothing is written then.

    Examples
    --------
    >>> import os, tempfile
    >>> import jax.numpy as jnp
    >>> from smh.backends import jax as smh
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> params = {"kernel": jnp.ones((20, 5)), "bias": jnp.zeros(5)}
    >>> digest = smh.save(path, smh.compress(params, ratio=0.4))
    >>> smh.digest(smh.load(path, params)) == digest
    True
    """
    given = _plan_and_variables(plan, variables, dense)
    if isinstance(plan, Compressed):
        dense = {name: jax.random.key_data(x) if _is_key(x) else x for name, x in plan.kept.items()}
    return _api.save(path, *given, dense, training=training)


def load(path: str | os.PathLike[str], like: Any = None, *, device: Any = None, max_bytes: int | None = None) -> Any:
    """Read a checkpoint, trusting nothing in it, as parameters if there are some to be like.

    Parameters
    ----------
    path : str or path-like
        The file.
    like : Compressed or pytree of jax.Array, optional
        Compressed parameters with the plan of the file, or plain ones that this plan fits. They are not changed.
    device : optional
        Without ``like``: a device of the backend.
    max_bytes : int, optional
        The most bytes of weights that the plan of the file may ask to be built. By default 1 GiB, or 1,024 times what
        the file stores, whichever is more; see :func:`smh.files.limits.default`.

    Returns
    -------
    Compressed or smh.Checkpoint
        Compressed parameters with the arrays of the file, of the types, and on the devices, of those that they are
        like; without these, what the file holds. Its ``digest`` is what the file says: compare it with :func:`digest`
        for proof that the weights here are the same.

    Raises
    ------
    CheckpointError
        If the file is cut, changed, or not an honest checkpoint of a known version, or does not fit: then the message
        names what is missing, unexpected or different.
    PlanError
        If the plan of the file does not fit plain parameters.
    LimitError
        If its weights would be larger than the limit.

    Examples
    --------
    >>> from smh.backends import jax as smh
    >>> smh.load("/nowhere.safetensors")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: '/nowhere.safetensors'
    """
    if like is None or isinstance(like, (str, jax.Device, jax.sharding.Sharding)):
        return _api.load(path, device if like is None else like, max_bytes=max_bytes)
    found = _api.load(path, device, max_bytes=max_bytes)
    if isinstance(like, Compressed):
        check_loaded(found, _described(like.kept), like.plan)
        variables = {name: _placed(x, like.variables[name]) for name, x in found.variables.items()}
    else:
        treedef, named = pytrees.flatten(like)
        check_fit(pytrees.describe(named), found.plan)
        variables = dict(found.variables)
        like = pytrees.assemble(treedef, named, found.plan, variables, "full", None)
        check_loaded(found, _described(like.kept))
    kept = {name: _placed(found.dense[name], x) for name, x in like.kept.items()}
    return dataclasses.replace(like, variables=variables, kept=kept)


def _plan_and_variables(
    plan: Any, variables: Mapping[str, Array] | None, more: Any = None
) -> tuple[Plan, Mapping[str, Array]]:
    """Return a plan and its variables, given these or compressed parameters alone, or say what is wrong."""
    if isinstance(plan, Plan) and variables is not None:
        return plan, variables
    if isinstance(plan, Compressed) and variables is None and more is None:
        return plan.plan, plan.variables
    got = ", ".join(type(x).__name__ for x in (plan, variables, more) if x is not None)
    raise PlanError(f"give compressed parameters alone (smh.compress makes them), or a plan and variables; got {got}")


def _is_key(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _described(kept: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    data = {name: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x for name, x in kept.items()}
    return {name: (tuple(x.shape), str(x.dtype)) for name, x in data.items()}


def _placed(x: Array, like: Any) -> Any:
    """Return an array of a file as one of the same type, kind and place as another."""
    if isinstance(like, (np.ndarray, np.generic)):
        return np.asarray(x, dtype=like.dtype)
    if _is_key(like):
        x = jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
    elif x.dtype != like.dtype:
        x = x.astype(like.dtype)
    return jax.device_put(x, like.sharding) if like.committed else x
