"""Learning rates: a scale is small, so what is a small step for the pool can be all of a scale.

Scales of the default rule are about 0.02 to 0.2. An optimiser whose steps have the size of the learning rate, as those
of Adam have, changes one of 0.02 by half with each step at a rate of 0.01, a good rate for the pool. Multiplied with
what it starts with, the rate of a scale is the share of itself by which a step changes it.
"""

from __future__ import annotations

from smh.v2.core.plan import Plan


def rate_multipliers(plan: Plan) -> dict[str, float]:
    """Return what the learning rate of each variable should be multiplied with, for Adam and its relatives.

    Parameters
    ----------
    plan : Plan
        The plan; only what it says counts, so a run that goes on from a checkpoint has the rates that it had.

    Returns
    -------
    dict of str to float
        1 for variables of pools; for a learnable scale what it starts with, which is positive.

    Examples
    --------
    >>> plan = Plan.build({"fc": (25, 12)}, ratio=0.4, scale=0.125)
    >>> rate_multipliers(plan)
    {'pool/left': 1.0, 'pool/right': 1.0, 'scale/fc': 0.125}
    """
    multipliers = dict.fromkeys(plan.variable_shapes, 1.0)
    for tensor in plan.tensors:
        if tensor.learn_scale:
            multipliers[tensor.scale_variable] = tensor.initial_scale
    return multipliers
