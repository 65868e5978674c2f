"""How much memory is taken: that of what is asked for, and little more."""

import tracemalloc

import numpy as np
import pytest

from smh.backends.numpy_kernels import NumpyKernels
from smh.core import generate, pools
from smh.core.initial import initial_variables
from smh.core.plan import Plan

KERNELS = NumpyKernels()


def peak(call):
    """Return the most bytes that were allocated at a time during a call, and its result."""
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pool", ["matmul", "kronecker", pools.Hash(hashes=2)], ids=str)
def test_one_tensor_of_a_billion_weights_needs_little_memory(pool):
    """A megabyte of weights of a billion, from 10 million variables: their integers, and a few rows of products."""
    plan = Plan.build({f"t{i}": (500, 500) for i in range(4000)}, ratio=0.01, pool=pool)
    assert plan.num_weights == 10**9
    variables = {name: np.ones(shape, dtype=np.float32) for name, shape in plan.variable_shapes.items()}
    stored = sum(x.nbytes for x in variables.values())
    taken, _ = peak(lambda: generate.materialize(KERNELS, plan, variables, ["t617"]))
    assert taken < 3 * stored + 32e6, f"{taken / 1e6:.0f} MB, variables {stored / 1e6:.0f} MB"


@pytest.mark.parametrize("pool", ["matmul", pools.Hash(hashes=2)], ids=str)
def test_building_all_weights_needs_little_more_than_the_weights(pool):
    """Neither a float64 matrix nor float32 copies of all integers are there: 1.2 times the weights' own bytes."""
    plan = Plan.build({f"t{i}": (400, 500) for i in range(20)}, ratio=0.1, pool=pool)
    variables = initial_variables(plan)
    taken, weights = peak(lambda: generate.materialize(KERNELS, plan, variables))
    size = sum(w.nbytes for w in weights.values())
    assert taken < 1.2 * size + 3e6, f"{taken / size:.2f}"


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_one_large_matrix_needs_little_more_than_its_weights_and_half_of_them_for_gradients(ratio):
    side = 2300
    plan = Plan.build({"a": (side, side)}, ratio=9, pool=pools.Matmul(n=side, m=int(ratio * side / 2)))
    variables = initial_variables(plan)
    taken, weights = peak(lambda: generate.materialize(KERNELS, plan, variables))
    size = weights["a"].nbytes
    assert taken < 1.2 * size, f"{taken / size:.2f}"
    taken, gradients = peak(lambda: generate.vjp(KERNELS, plan, variables, weights))
    taken -= sum(x.nbytes for x in gradients.values())
    assert taken < 0.5 * size, f"{taken / size:.2f}"


def test_a_plan_needs_no_arrays():
    taken, plan = peak(lambda: Plan.build({f"t{i}": (1000, 1000) for i in range(100)}, ratio=0.1))
    assert plan.num_weights == 10**8
    assert taken < 4e6, f"{taken / 1e6:.1f} MB"
