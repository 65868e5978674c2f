"""Kernels by blocks of rows change no bit, whatever the namespace: here on NumPy, against the default kernels."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.bits import assert_same_bits
from smh.backends.block_kernels import BlockKernels
from smh.core import generate
from smh.core.kernels import Kernels
from tests.core.cases import KINDS, floats, seeds
from tests.core.test_numpy_kernels import matmul_plans

DEFAULT = Kernels(np)


class SmallBlocks(BlockKernels):
    """Blocks of a row or two, so that small plans have several."""

    block_elements, most_blocks = 12, 100


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plan=matmul_plans(),
    seed=seeds,
    kinds=st.tuples(st.sampled_from(["normal", "normal", "ties", "edges", "special"]), st.sampled_from(KINDS)),
    exponents=st.none() | st.tuples(st.integers(-29, 30), st.integers(-29, 30)),
    powers=st.tuples(st.just(0) | st.integers(-130, 100), st.sampled_from([-31, -30, 0, 3, 27, 28, 29, 30])),
    spread=st.booleans(),
)
def test_all_gradients_in_one_pass_have_the_bits_of_the_default_kernels(plan, seed, kinds, exponents, powers, spread):
    plan = dataclasses.replace(plan, pool=dataclasses.replace(plan.pool, exponents=exponents))
    rng = np.random.default_rng(seed)
    variables = {name: floats(rng, shape, kinds[0]) for name, shape in plan.variable_shapes.items()}
    for tensor in plan.tensors:
        if tensor.learn_scale:
            scale = rng.choice([1.0, rng.uniform(0.5, 1)]) * 2.0 ** (powers[1] + tensor.kappa)
            variables[tensor.scale_variable] = np.asarray(scale * rng.choice([-1, 1]), dtype=np.float32)
    cotangents = {t.name: floats(rng, t.viewed_shape, kinds[1]) for t in plan.tensors if rng.random() < 0.8}
    with np.errstate(all="ignore"):
        for name, g in cotangents.items():
            power = powers[0] - (rng.integers(0, 140, g.shape) if spread else 0)
            cotangents[name] = np.ldexp(g, power).astype(np.float32)
        for kernels in (SmallBlocks(np), BlockKernels(np)):
            for name, expected in generate.materialize(DEFAULT, plan, variables).items():
                assert_same_bits(generate.materialize(kernels, plan, variables)[name], expected, name)
            found = generate.vjp(kernels, plan, variables, cotangents)
            for name, expected in generate.vjp(DEFAULT, plan, variables, cotangents).items():
                assert_same_bits(found[name], expected, name)


@pytest.mark.parametrize("terms", [1024, 1025, 2048, 5000])
def test_products_of_more_terms_than_float32_adds_exactly(terms):
    """The largest integers of one sign, and sums next to a tie, which float32 sums of products would round twice."""
    left = np.full((3, terms), 127.0, dtype=np.float32)
    left[1, -1], left[2, : terms // 2] = 126.0, -125.0
    right = np.repeat(np.asarray([[127.0, 1.0, 126.0]], dtype=np.float32), terms, axis=0)
    right[0, 0] = 1.0
    unit = np.float32(0.25)
    expected = (left.astype(np.int64) @ right.astype(np.int64)).astype(np.float32) * unit
    assert_same_bits(BlockKernels(np).product(left, right, unit, 1024), expected)
    with np.errstate(invalid="ignore"):  # of what is cast and not used
        assert np.isnan(BlockKernels(np).product(left * np.float32(np.nan), right, unit, 1024)).all()
