"""Poisoned variables: not finite or too large, so that their weights are NaN (specification, sections 3.1 and 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smh.core.generate import check_variables, put_on_grids, scale_of
from smh.core.kernels import Kernels
from smh.core.plan import Plan
from smh.errors import VariableError
from smh.text import some


def describe(plan: Plan, variables: Mapping[str, np.ndarray]) -> str:
    """Return a message that names the poisoned variables and the likely causes; an empty one if there are none."""
    names = _poisoned(plan, variables)
    if not names:
        return ""
    x = np.asarray(variables[names[0]])
    count = x.size - np.count_nonzero(np.isfinite(x))
    got = f"{count} of {x.size} numbers that are not finite" if count else f"a magnitude of {np.max(np.abs(x)):.3g}"
    weights = "all generated weights" if any(name.startswith("pool/") for name in names) else "their weights"
    return (
        f"training has diverged: {some(names)} are not finite or too large, so {weights} are NaN. Likely causes: the "
        "learning rate is too high, a step was taken on a loss that was not finite, or smh.compress was given another "
        "optimizer ('sgd', the default, or 'adam') than the one that trains. Fix the cause, and start again from a "
        f"saved state; got {got} in {names[0]!r}"
    )


def check(plan: Plan, variables: Mapping[str, np.ndarray]) -> None:
    """Raise :class:`~smh.VariableError` if variables are poisoned, or not those of the plan."""
    check_variables(Kernels(np), plan, variables)
    if message := describe(plan, variables):
        raise VariableError(message)


def _poisoned(plan: Plan, variables: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the variables whose weights are NaN, in the order of the plan."""
    kernels, variables = Kernels(np), {name: np.asarray(x, dtype=np.float32) for name, x in variables.items()}
    with np.errstate(all="ignore"):
        grids = put_on_grids(kernels, plan, variables)
        values = {f"pool/{name}": one.unit for name, one in grids.items()}
        learned = [tensor for tensor in plan.tensors if tensor.learn_scale]
        values |= {tensor.scale_variable: scale_of(kernels, tensor, variables) for tensor in learned}
    return [name for name in plan.variable_shapes if np.isnan(values[name])]
