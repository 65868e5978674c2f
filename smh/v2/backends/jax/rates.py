"""Factors of learning rates, as a pytree."""

from __future__ import annotations

import dataclasses

from smh.v2.backends.jax.pytrees import Compressed, checked
from smh.v2.models.rates import rate_multipliers as of_plan


def rate_multipliers(compressed: Compressed) -> Compressed:
    """Return what to multiply the updates of an optimiser such as Adam with, so that scales change slower.

    Parameters
    ----------
    compressed : Compressed
        The compressed parameters.

    Returns
    -------
    Compressed
        Of the same structure, floats in place of arrays: 1 for the pool and for what is kept; for a scale what it
        starts with (:func:`smh.rates.rate_multipliers`), so that a step of Adam changes it by a share of that.

    Raises
    ------
    PlanError
        If they are not compressed.

    Examples
    --------
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from smh.v2.backends import jax as smh
    >>> params = smh.compress({"kernel": jnp.ones((300, 30)), "bias": jnp.zeros(30)}, ratio=0.1, gain="adam")
    >>> multipliers = smh.rate_multipliers(params)
    >>> {name: round(value, 4) for name, value in multipliers.variables.items()}
    {'pool/left': 1.0, 'pool/right': 1.0, 'scale/kernel': 0.0333}

    >>> slower = optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multipliers))
    >>> optimizer = optax.chain(optax.adamw(1e-2), slower)
    """
    plan = checked(compressed).plan
    return dataclasses.replace(compressed, variables=of_plan(plan), kept=dict.fromkeys(compressed.kept, 1.0))
