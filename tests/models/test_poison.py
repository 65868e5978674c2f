"""The error for poisoned variables names those whose weights are NaN: compared with the weights of the core."""

import re

import numpy as np
import pytest

import smh
from smh.core import pools
from smh.models import poison

POOLS = {
    "matmul": pools.Matmul(),
    "kronecker": pools.Kronecker(),
    "hash": pools.Hash(),
    "sum": pools.Sum(pools.Matmul(), pools.Hash()),
    "product": pools.Product(pools.Matmul(), pools.Hash()),
}
LIMIT = np.float32(2.0**30)
BAD = {"NaN": np.nan, "infinity": -np.inf, "too large": LIMIT}


def plan_of(pool):
    return smh.Plan.build({"a": (12, 10), "b": (9, 11)}, ratio=0.6, pool=POOLS[pool])


def kappa(plan, name):
    return plan.select([name.removeprefix("scale/")])[0].kappa if name.startswith("scale/") else 0


def nan_weights(plan, variables):
    with np.errstate(all="ignore"):
        return {name for name, w in smh.materialize(plan, variables).items() if np.isnan(w).any()}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("pool", POOLS)
def test_names_are_those_that_make_weights_nan(pool, bad):
    plan = plan_of(pool)
    for name in plan.variable_shapes:
        variables = smh.initialize(plan)
        scale = name.startswith("scale/")
        x = variables[name] = np.array(variables[name])
        x.reshape(-1)[-1] = BAD[bad] * 2.0 ** kappa(plan, name)
        assert nan_weights(plan, variables) == ({name[6:]} if scale else {"a", "b"})
        message = poison.describe(plan, variables)
        assert re.findall("'([^']*/[^']*)'", message) == [name, name]
        assert ("all generated weights" in message) != scale
        assert (f"1 of {x.size} numbers" in message) == (bad != "too large")
        with pytest.raises(smh.VariableError, match="learning rate is too high"):
            poison.check(plan, variables)


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_large_and_finite_is_no_poison(pool):
    plan = plan_of(pool)
    variables = smh.initialize(plan)
    for name, x in variables.items():
        scale = name.startswith("scale/")
        largest = np.nextafter(LIMIT, np.float32(0)) * 2.0 ** kappa(plan, name) if scale else LIMIT * (1 - 2.0**-7)
        for value, expected in ((largest, ""), (0.0, ""), (np.nextafter(np.float32(largest), np.inf), name)):
            changed = variables | {name: np.array(x)}
            changed[name].reshape(-1)[0] = value
            assert bool(poison.describe(plan, changed)) == bool(expected), (name, value)
            assert expected in poison.describe(plan, changed)


def test_many_names_are_cut():
    plan = smh.Plan.build({f"t{i}": (4, 5) for i in range(9)}, ratio=0.9)
    message = poison.describe(plan, {name: np.full(s, np.nan, np.float32) for name, s in plan.variable_shapes.items()})
    assert "'pool/left', 'pool/right', 'scale/t0', 'scale/t1', 'scale/t2' and 6 more" in message


def test_array_functions_keep_nan():
    plan = plan_of("matmul")
    variables = smh.initialize(plan) | {"scale/a": np.float32(np.nan)}
    assert nan_weights(plan, variables) == {"a"}
    assert len(smh.digest(plan, variables)) == 64


def test_variables_of_another_plan_are_refused():
    plan = plan_of("matmul")
    with pytest.raises(smh.VariableError, match="'scale/b' is missing"):
        poison.check(plan, {name: x for name, x in smh.initialize(plan).items() if name != "scale/b"})
